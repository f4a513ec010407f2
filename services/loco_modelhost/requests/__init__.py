"""Ollama's words: bodies, names and options of requests, and how they are refused."""
