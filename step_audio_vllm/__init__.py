"""Step-Audio 2 for vLLM. Importing this package imports neither torch nor vLLM."""
