"""What makes an optimizer step fast."""
