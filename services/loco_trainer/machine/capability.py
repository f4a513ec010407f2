"""What this process's GPU can do."""

from functools import cache

from loco.planning.ways import AMPERE


@cache
def ampere_here() -> bool:
    """Whether this process's GPU has bfloat16 and FlashAttention over rows of unequal length."""
    import torch

    if not torch.cuda.is_available():
        return False
    major, minor = torch.cuda.get_device_capability()
    return major + minor / 10 >= AMPERE
