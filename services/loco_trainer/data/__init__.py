"""From chat rows to tensors."""
