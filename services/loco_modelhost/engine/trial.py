"""A GGUF is first loaded by a child (`loading`): llama.cpp aborts the whole process on some files."""

import os
import subprocess
import sys
from pathlib import Path

#: Seconds, and more for each GB of the file.
_SECONDS = 120.0
_SECONDS_A_GB = 30.0


def refusal(path: Path, *, seconds: float = _SECONDS) -> str | None:
    """Why a file cannot be loaded; None: a child could load it and compute with it.

    Args:
        path: the GGUF.
        seconds: patience for a small file.
    """
    size = path.stat().st_size
    patience = seconds + _SECONDS_A_GB * size / 1e9
    try:
        ended = subprocess.run(
            [sys.executable, "-P", "-m", "loco_modelhost.engine.loading", str(path)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=patience,
            env=dict(os.environ),
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"loading it takes more than {patience:.0f} seconds"
    if ended.returncode == 0:
        return None
    words = ended.stderr.decode(errors="replace").strip().splitlines()
    how = f"llama.cpp ended with {ended.returncode}"
    return f"{how}: {words[-1]:.300}" if words else how
