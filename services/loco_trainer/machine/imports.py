"""Imports that are left out: what transformers and PEFT import whenever they find it, unused here."""

import sys


def hide(*packages: str) -> None:
    """Has packages look as if they were not installed; those imported already stay.

    A start is several seconds shorter without them (measured; torchao comes with unsloth).
    """
    for name in packages:
        # None in sys.modules is Python's own way to say "not installed"
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
