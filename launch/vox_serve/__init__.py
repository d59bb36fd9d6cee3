"""Starts vLLM and the sidecar together and stops them together. Standard library only."""
