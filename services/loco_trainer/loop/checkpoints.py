"""Training checkpoints that can be trusted after a crash: sealed last, verified first.

The trainer writes a folder `checkpoint-N`; `seal` then syncs its files and writes a list of their
sizes and digests. A folder without that list, or with a file that differs, is not resumed from.
"""

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from loco.contracts.files import sha256_of, sync_folder, write_text
from loco.contracts.plans import Plan, PlanAttempt
from loco.stage.program import Emitter

_SEAL = "complete.json"
#: Raised when what a checkpoint holds changes, so that those of an older version are passed over.
_FORMAT = 4
_KEPT = 2


def seal(folder: Path) -> None:
    """Makes a written checkpoint folder durable and marks it complete."""
    digests = {}
    for file in _files(folder):
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
        digests[file.relative_to(folder).as_posix()] = [file.stat().st_size, sha256_of(file)]
    write_text(folder / _SEAL, json.dumps({"format": _FORMAT, "files": digests}) + "\n")
    sync_folder(folder.parent)


def fault(folder: Path) -> str | None:
    """Why a checkpoint folder cannot be resumed from, or None when it is whole."""
    try:
        seal = json.loads((folder / _SEAL).read_text())
        digests = seal["files"]
    except FileNotFoundError:
        return "it was not finished"
    except (ValueError, KeyError):
        return f"its {_SEAL} is damaged"
    if seal.get("format") != _FORMAT:
        return "it comes from another version of locollm"
    for name, (size, digest) in digests.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size or sha256_of(file) != digest:
            return f"{name} is damaged"
    return None


def newest_whole(folders: Iterable[Path], emit: Emitter) -> Path | None:
    """The first folder that is whole; says why earlier ones are passed over.

    Args:
        folders: checkpoints, newest first.
        emit: told about each that cannot be used.
    """
    for folder in folders:
        reason = fault(folder)
        if reason is None:
            return folder
        emit.log(f"Skipped checkpoint {folder.name}: {reason}.")
    return None


def step_of(folder: Path) -> int:
    """Optimizer steps a checkpoint holds, from its trainer state."""
    return int(json.loads((folder / "trainer_state.json").read_text())["global_step"])


def plan_of(folder: Path) -> Plan | None:
    """The plan whose steps a checkpoint holds; None in one of a release that did not say."""
    plan = json.loads((folder / "trainer_state.json").read_text()).get("plan")
    return None if plan is None else Plan.model_validate(plan)


def attempts_of(folder: Path) -> tuple[PlanAttempt, ...]:
    """The plans tried until a checkpoint, in order."""
    tried = json.loads((folder / "trainer_state.json").read_text()).get("attempts", ())
    return tuple(PlanAttempt.model_validate(attempt) for attempt in tried)


def prune(folder: Path) -> None:
    """Deletes all but the newest checkpoints below `folder`."""
    by_step = sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]))
    for old in by_step[:-_KEPT]:
        (old / _SEAL).unlink(missing_ok=True)  # first: half a deletion must not look whole
        shutil.rmtree(old)


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != _SEAL)
