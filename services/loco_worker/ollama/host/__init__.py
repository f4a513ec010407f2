"""The Ollama API by its old name; it lives in `loco.serving.host`."""

from loco.serving.host import Answer, OllamaHost, full_name

__all__ = ["Answer", "OllamaHost", "full_name"]
