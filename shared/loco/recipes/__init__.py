"""From what is written in the adapters folder, and a request, to a resolved `JobSpec`."""
