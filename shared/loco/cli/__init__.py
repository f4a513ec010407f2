"""The command line `loco`, the same on the laptop and on the GPU box."""
