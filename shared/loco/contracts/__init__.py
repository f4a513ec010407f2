"""The nouns every process shares: frozen pydantic models, and no I/O but the file writing in `files`."""
