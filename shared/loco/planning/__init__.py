"""How a recipe is trained on a device, and what it would take: pure arithmetic and the lab's history."""
