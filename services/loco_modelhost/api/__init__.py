"""Ollama's paths: requests in, streams of events out."""
