"""The embedded stand-in for Ollama."""
