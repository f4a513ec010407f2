"""Base + adapter, one tensor at a time."""
