"""The client alone, which a laptop installs from the box."""
