"""A base model with an adapter, ready to train: one file an engine."""
