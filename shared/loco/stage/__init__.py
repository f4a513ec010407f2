"""The frame every stage program runs in."""
