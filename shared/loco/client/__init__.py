"""The client of a locollm server, for scripts and for the command line."""
