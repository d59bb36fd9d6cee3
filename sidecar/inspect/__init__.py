"""Pictures of speech for people who debug seams: `python -m sidecar.inspect FILE.wav`."""
