"""Models on disk, laid out like Ollama's own folder."""
