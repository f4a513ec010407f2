"""Loaded models: llama.cpp, and who waits for it."""
