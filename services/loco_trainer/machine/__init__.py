"""What this machine has: memory, disk, CPUs, its GPU's abilities."""
