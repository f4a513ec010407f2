"""The base's own answers as training rows: asked, checked, chosen (source `self`)."""
