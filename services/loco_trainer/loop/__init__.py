"""Steps to the end: the training loop and what survives a crash."""
