"""The HTTP API of locollm."""
