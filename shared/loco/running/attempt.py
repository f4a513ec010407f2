"""What one attempt of a stage reads and where it writes: inputs, fingerprint, folder.

adapters/NAME/runs/JOB_ID/spec.json                the resolved JobSpec
adapters/NAME/runs/JOB_ID/STAGE/a<token>/spec.json the StageRun, enough to replay the stage
                                         stage.log environment.json result.json and the files
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from loco.contracts.artifacts import Artifact
from loco.contracts.errors import DataError, LocoError
from loco.contracts.files import sha256_of, write_text
from loco.contracts.jobs import Job, Task
from loco.contracts.paths import inside
from loco.contracts.sources import SelfSource
from loco.contracts.specs import Inputs, PrepareSpec, StageRun
from loco.contracts.stages import STAGE_VERSIONS, Stage
from loco.contracts.versions import CandidateVersion, PromotedVersion
from loco.ledger.ledger import Claim, Ledger
from loco.planning.history import History
from loco.recipes.data_files import check_size, dataset_path, named_files
from loco.recipes.frozen import frozen_file
from loco.running.registry_file import take_over
from loco.running.verify import sealed, verified
from loco.settings import Settings

SPEC = "spec.json"
RESULT = "result.json"
LOG = "stage.log"
#: What the attempt ran on, an artifact of every stage; it decides nothing that a later one reads.
ENVIRONMENT = "environment.json"
#: What stays of an attempt that did not commit.
_RECORDS = (SPEC, RESULT, LOG, ENVIRONMENT)

logger = logging.getLogger(__name__)


def attempt_folder(settings: Settings, claim: Claim) -> Path:
    """The folder only this attempt writes to; made, with the job's spec beside it."""
    run = _run_folder(settings, claim.job)
    folder = inside(run, f"{claim.stage}/a{claim.token}")
    folder.mkdir(parents=True, exist_ok=True)
    if not (run / SPEC).exists():
        write_text(run / SPEC, claim.job.spec.model_dump_json(indent=2, by_alias=True) + "\n")
    return folder


def _run_folder(settings: Settings, job: Job) -> Path:
    """The folder of a job's files.

    Raises:
        UnsafePath: a link leads out of the adapters folder.
    """
    return inside(settings.adapters_dir, f"{job.adapter}/runs/{job.id}")


def stage_run(ledger: Ledger, settings: Settings, claim: Claim) -> StageRun:
    """The content of the attempt's spec.json.

    Raises:
        NotFound: an earlier stage this one builds on has no committed outputs any more.
        ArtifactChanged: one of them is not what was committed.
    """
    job = claim.job
    earlier = earlier_tasks(ledger, job, claim.stage)
    task = job.stage(claim.stage)
    run = _run_folder(settings, job)
    checkpoints = [
        inside(run, settings.adapters_dir / c.path) for c in (task.checkpoints if task else ())
    ]
    return StageRun(
        stage=claim.stage,
        spec=job.spec.part(claim.stage).model_dump(mode="json"),
        inputs=Inputs(
            job_id=job.id,
            adapter=job.adapter,
            adapter_dir=settings.adapters_dir / job.adapter,
            models_dir=settings.models_dir,
            locks_dir=settings.locks_dir,
            answers_dir=settings.answers_dir,
            dataset_dirs=settings.dataset_dirs,
            frozen={
                name: f.model_copy(
                    update={"path": str(frozen_file(settings.adapters_dir, name, f))}
                )
                for name, f in job.spec.inputs.items()
            },
            ollama_host=settings.ollama_host,
            files={
                f"{stage}/{a.name}": verified(settings.adapters_dir, a)
                for stage, t in earlier.items()
                for a in t.artifacts
            },
            results={stage: t.result or {} for stage, t in earlier.items()},
            resume=tuple(c for c in checkpoints if c.is_dir()),
            tried=History.of(ledger).tried(job.spec.train.base_model.name)
            if claim.stage is Stage.TRAIN
            else (),
            promoted=_promoted(ledger, settings, job, earlier)
            if claim.stage in (Stage.REGISTER, Stage.EVAL)
            else None,
            candidate=_candidate(ledger, job, earlier) if claim.stage is Stage.EVAL else None,
        ),
    )


def _promoted(
    ledger: Ledger, settings: Settings, job: Job, earlier: dict[Stage, Task]
) -> PromotedVersion | None:
    """What serves now under the job's model name, if it is another version than the job's own.

    An earlier release's registry is taken over before anything is numbered or compared.
    """
    take_over(ledger, settings.adapters_dir)
    candidate = _registered(earlier)
    model = candidate.partition(":")[0] or job.spec.register_.model_name
    pointer = ledger.registry.promoted(model)
    if pointer is None or pointer.adapter != job.adapter or pointer.candidate == candidate:
        return None
    return PromotedVersion(
        version=pointer.version,
        candidate=pointer.candidate,
        digest=pointer.digest,
        blob=ledger.registry.version(pointer.adapter, pointer.version).blob,
    )


def _candidate(ledger: Ledger, job: Job, earlier: dict[Stage, Task]) -> CandidateVersion | None:
    """The version that register made; its digest is another one where it was made again since."""
    builder = _registered(earlier).partition(":")[2]
    version = ledger.registry.of_job(job.adapter, builder) if builder else None
    if version is None:
        return None
    return CandidateVersion(
        version=version.version, candidate=version.candidate, digest=version.digest
    )


def _registered(earlier: dict[Stage, Task]) -> str:
    """`MODEL:JOB_ID` of the candidate; empty: there is none."""
    task = earlier.get(Stage.REGISTER)
    return str((task.result or {}).get("candidate", "")) if task else ""


def earlier_tasks(ledger: Ledger, job: Job, stage: Stage) -> dict[Stage, Task]:
    """The committed tasks a stage may read from: the job's own, then those it builds on."""
    return {s: t for s, t in ledger.outputs(job).items() if s in stage.predecessors}


def fingerprint(run: StageRun, earlier: dict[Stage, Task], spec: Any) -> str:
    """SHA-256 over everything that decides what a stage writes.

    That is its spec, its program's version and the content of the files it reads. Two attempts with
    one fingerprint can stand in for each other, in a stage that is `reusable`.

    Args:
        run: the attempt's spec and inputs.
        earlier: the tasks the inputs come from.
        spec: `run.spec`, validated.
    """
    document = {
        "stage": run.stage,
        "version": STAGE_VERSIONS[run.stage],
        "spec": _decisive(run.spec),
        "artifacts": {
            f"{stage}/{a.name}": a.sha256
            for stage, task in earlier.items()
            for a in task.artifacts
            if stage is not Stage.REGISTER and a.name != ENVIRONMENT
        },
        "files": [_content(run.inputs, *named) for named in named_files(spec).items()],
    }
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _decisive(spec: dict[str, Any]) -> dict[str, Any]:
    """A stage's spec without what no result depends on: the licence of the base is for people."""
    base = spec.get("base_model")
    if not isinstance(base, dict):
        return spec
    return {**spec, "base_model": {k: v for k, v in base.items() if k != "license"}}


def reusable(stage: Stage, spec: Any) -> bool:
    """Whether a committed run with the same fingerprint can stand in for a stage with this spec.

    Prepare of source self asks a model of Ollama, of which the spec has the name only: it may be another
    one by now. Run again it costs little, since the answers of the same model are known, and what it
    writes then has the same digests, so that train is reused all the same.

    Args:
        stage: the stage.
        spec: its spec, validated.
    """
    asks = isinstance(spec, PrepareSpec) and isinstance(spec.source, SelfSource)
    return stage.reusable and not asks


def collect(
    settings: Settings, folder: Path, stage: Stage
) -> tuple[dict[str, Any], list[Artifact]]:
    """The result a stage program left, and its files, read-only from now on, as artifacts.

    Raises:
        LocoError: the result names a file that is not there or lies outside the folder.
    """
    result = json.loads((folder / RESULT).read_bytes())
    artifacts = []
    files = {ENVIRONMENT: ENVIRONMENT} if (folder / ENVIRONMENT).is_file() else {}
    for name, relative in sorted({**files, **result["files"]}.items()):
        path = (folder / relative).resolve()
        inside = path.is_relative_to(folder.resolve()) and path.is_file()
        if not inside or Path(name).is_absolute() or ".." in Path(name).parts:
            raise LocoError(
                f"Stage {stage} names the file {name!r} at {relative!r}, "
                f"which is not a file inside its folder {folder}.",
                hint="This is a bug in the stage program. Please report it.",
            )
        artifacts.append(sealed(settings.adapters_dir, path, name=name, stage=stage))
    return result, artifacts


def sweep_others(folder: Path, *, resume: Iterable[Path] = ()) -> None:
    """Frees the disk that superseded attempts of a stage take; their records stay.

    Args:
        folder: the attempt that runs or has committed.
        resume: checkpoints that are still wanted.
    """
    wanted = tuple(resume)
    for other in folder.parent.iterdir():
        if other == folder:
            continue
        for entry in other.iterdir():
            if entry.name in _RECORDS or any(w.is_relative_to(entry) for w in wanted):
                continue
            try:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            except OSError as error:
                logger.warning("could not delete %s: %s", entry, error)


def _content(inputs: Inputs, field: str, path: str) -> list[str | None]:
    """The SHA-256 of a file a stage reads: as frozen, else of what lies there now."""
    if path in inputs.frozen:
        return [inputs.frozen[path].sha256]
    try:
        file = check_size(dataset_path(path, inputs.adapter_dir, inputs.dataset_dirs), field)
    except DataError:
        return [None]  # the stage says so
    return [sha256_of(file)]
