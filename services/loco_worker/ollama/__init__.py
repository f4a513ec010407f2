"""Ollama as the stages use it."""
