"""Looks through an upload in a process of its own: a packed file unpacks to all the memory there is."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from loco.contracts.datasets import Format, Inspected
from loco.contracts.errors import DataError, LocoError
from loco_api import inspection_child

#: Seconds a look may take; a file of a million rows takes some twenty.
SECONDS = 300.0
_KEPT = ("PATH", "PYTHONPATH", "LANG", "TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")


def inspect(path: Path, format: Format | None, mapping: Mapping[str, str]) -> Inspected:  # noqa: A002
    """As `loco.datasets.inspect.inspect`, within limits on memory and time. Takes as long; not for an event loop.

    Raises:
        DataError: see there; or it takes too much memory or time.
    """
    asked = {"path": str(path), "format": format, "mapping": dict(mapping)}
    kept = {name: value for name, value in os.environ.items() if name in _KEPT}
    # the threads of numeric libraries would take what memory it may have on a machine of many cores
    kept |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    try:
        ended = subprocess.run(
            [sys.executable, "-P", "-m", inspection_child.__name__, str(os.getpid())],
            input=json.dumps(asked).encode(),
            capture_output=True,
            timeout=SECONDS,
            env=kept,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _too_much(path) from error
    if ended.returncode == inspection_child.FAULT:
        last = ended.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise LocoError(f"Checking {path.name} failed: {' '.join(last):.300}")
    if ended.returncode != 0:  # a signal: the kernel's, for memory or time
        raise _too_much(path)
    answer = json.loads(ended.stdout)
    if (refused := answer.get("error")) is not None:
        raise DataError(refused["message"], param=refused["param"], hint=refused["hint"])
    return Inspected.model_validate(answer["found"])


def _too_much(path: Path) -> DataError:
    return DataError(
        f"{path.name} takes too much memory or time to read.",
        param="rows",
        hint="Send fewer rows, or export them as CSV or JSONL.",
    )
