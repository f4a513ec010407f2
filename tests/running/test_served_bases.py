"""Kept bases of adapters exported alone: those that nothing uses any more are deleted."""

import fcntl
import json
import os
import time
from pathlib import Path

import pytest
from versions import Builder

from loco.contracts.jobs import Job
from loco.contracts.removals import Removal
from loco.contracts.serving import ServedBase
from loco.contracts.stages import Stage
from loco.ledger.removals import Leftover
from loco.running import served_bases
from loco.running.served_bases import clear_unused

pytestmark = pytest.mark.redis


def base(models_dir: Path, name: str, *, days: float = 2) -> Path:
    """A kept base, used so long ago."""
    path = models_dir / "served" / f"smol.{name}.Q4_K_M.gguf"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"GGUF")
    path.with_suffix(".json").write_text("{}")
    at = time.time() - days * 86_400
    os.utime(path, (at, at))
    return path


def told(path: Path) -> dict:
    return ServedBase(
        model="locollm-base:smol", blob="sha256:1", path=f"served/{path.name}", size=4
    ).model_dump(mode="json")


def exported(hands, spec, path: Path) -> Job:
    job, _ = hands.ledger.submit(spec(stages=("prepare", "train", "export")))
    for stage in (Stage.PREPARE, Stage.TRAIN):
        hands.commit(hands.claim(stage), {})
    hands.commit(hands.claim(Stage.EXPORT), {"served_base": told(path)})
    return job


def test_only_what_no_run_and_no_version_names_goes(ledger, hands, spec, tmp_path) -> None:
    unused, of_run, of_version, new = (base(tmp_path, name) for name in ("1a", "2b", "3c", "4d"))
    os.utime(new)
    job = exported(hands, spec, of_run)
    build = Builder(ledger, spec)
    registered = build.registered(base=told(of_version), format="adapter", base_digest="d")
    assert ledger.registry.of_job("math", registered.id).base.path == f"served/{of_version.name}"
    assert clear_unused(ledger, tmp_path) == [unused]
    assert not unused.with_suffix(".json").exists()
    assert all(p.exists() and p.with_suffix(".json").exists() for p in (of_run, of_version, new))
    ledger.removals.remove(job, *_gone(job))
    assert clear_unused(ledger, tmp_path) == [of_run], "its job was deleted"
    assert clear_unused(ledger, tmp_path) == []


def _gone(job: Job):

    return Removal(job_id=job.id, size=0, files=0), Leftover(job.id, (), ())


def test_what_an_unreadable_record_names_stays(ledger, hands, spec, tmp_path) -> None:
    path = base(tmp_path, "1a")
    job = exported(hands, spec, path)
    with ledger._connection.client() as client:
        broken = '{"served_base": {"path": ' + json.dumps(f"served/{path.name}")
        client.hset(f"{ledger.namespace}:task:{job.id}-export", "result", broken)
    assert clear_unused(ledger, tmp_path) == []
    assert path.exists()


def test_nothing_goes_while_an_export_writes(ledger, tmp_path) -> None:
    path = base(tmp_path, "1a")
    with (path.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert clear_unused(ledger, tmp_path) == []
    assert clear_unused(ledger, tmp_path) == [path]


def test_one_that_is_taken_while_others_are_looked_up_stays(ledger, tmp_path, monkeypatch) -> None:
    path = base(tmp_path, "1a")
    named = ledger.removals.named
    monkeypatch.setattr(ledger.removals, "named", lambda files: (named(files), os.utime(path))[0])
    assert clear_unused(ledger, tmp_path) == []
    assert served_bases.PATIENCE_SECONDS >= 3600
