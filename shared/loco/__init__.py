"""What a script needs of locollm: the client, the nouns it returns, and the errors it raises.

    from loco import Client

    with Client() as loco:
        job = loco.wait(loco.submit("math", profile="tiny").id)

Importing this package loads nothing else: a name comes in when it is first used, so that a worker
pays for no HTTP client. The rooms below, from the bottom up: `contracts` (the nouns), `recipes`,
`grading`, `ledger`, `client`, `stage`, `planning`, `serving`, `queue`, `running`, `box`, `cli`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loco.client.client import Client, Overrides
    from loco.contracts.artifacts import Artifact
    from loco.contracts.diffs import JobDiff
    from loco.contracts.errors import (
        Conflict,
        InvalidRequest,
        LocoError,
        NotFound,
        ServerUnreachable,
    )
    from loco.contracts.jobs import (
        Failure,
        Job,
        JobEvent,
        JobStatus,
        StageStatus,
        Task,
        WorkerInfo,
    )
    from loco.contracts.keys import AuditEvent, KeyInfo, NewKey, Scope
    from loco.contracts.previews import Preview
    from loco.contracts.program_events import Progress
    from loco.contracts.stages import Stage
    from loco.contracts.sweeps import Sweep, SweepPoint, SweepSummary
    from loco.contracts.versions import Restored, Version

__all__ = [
    "Artifact",
    "AuditEvent",
    "Client",
    "Conflict",
    "Failure",
    "InvalidRequest",
    "Job",
    "JobDiff",
    "JobEvent",
    "JobStatus",
    "KeyInfo",
    "LocoError",
    "NewKey",
    "NotFound",
    "Overrides",
    "Preview",
    "Progress",
    "Restored",
    "Scope",
    "ServerUnreachable",
    "Stage",
    "StageStatus",
    "Sweep",
    "SweepPoint",
    "SweepSummary",
    "Task",
    "Version",
    "WorkerInfo",
]

_HOME = {
    "client.client": ("Client", "Overrides"),
    "contracts.artifacts": ("Artifact",),
    "contracts.diffs": ("JobDiff",),
    "contracts.errors": (
        "Conflict",
        "InvalidRequest",
        "LocoError",
        "NotFound",
        "ServerUnreachable",
    ),
    "contracts.jobs": (
        "Failure",
        "Job",
        "JobEvent",
        "JobStatus",
        "StageStatus",
        "Task",
        "WorkerInfo",
    ),
    "contracts.keys": ("AuditEvent", "KeyInfo", "NewKey", "Scope"),
    "contracts.previews": ("Preview",),
    "contracts.program_events": ("Progress",),
    "contracts.stages": ("Stage",),
    "contracts.sweeps": ("Sweep", "SweepPoint", "SweepSummary"),
    "contracts.versions": ("Restored", "Version"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"loco.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
