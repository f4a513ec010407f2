"""Imports that are left out: what transformers and PEFT import whenever they find it, unused here."""

import sys
from importlib import import_module
from importlib.machinery import PathFinder

#: Modules that remember which packages they have found.
_REMEMBERING = ("transformers.utils.import_utils", "peft.import_utils")


def hide(*packages: str) -> None:
    """Has packages look as if they were not installed; those imported already stay.

    A start is several seconds shorter without them (measured; torchao comes with unsloth).
    """
    for name in packages:
        # None in sys.modules is Python's own way to say "not installed"
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]


def show(*packages: str) -> None:
    """Has hidden packages found again, also by what has looked for them in vain before."""
    for name in packages:
        if name in sys.modules and sys.modules[name] is None:
            del sys.modules[name]
    for name in _REMEMBERING:
        for function in vars(import_module(name)).values():
            if hasattr(function, "cache_clear"):
                function.cache_clear()


def is_installed(package: str) -> bool:
    """Whether a package is there, hidden or not."""
    return PathFinder.find_spec(package) is not None
