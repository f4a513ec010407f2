"""The streaming export: a quantized GGUF in one pass, and its check."""
