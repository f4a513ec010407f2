"""From a request to an accepted job, and every way to be refused before."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from celery import Celery

from loco.contracts.errors import (
    Conflict,
    DataError,
    DiskFull,
    IdempotencyConflict,
    InvalidRequest,
    NotFound,
    RedisUnavailable,
    StageGap,
    UnknownAdapter,
)
from loco.contracts.files import sha256_of
from loco.contracts.jobs import Job
from loco.contracts.requests import JobRequest
from loco.contracts.stages import Queue, Stage
from loco.ledger.ledger import Ledger, broker_prefix
from loco.queue import submission
from loco.queue.celery_app import celery_app, close_queue
from loco.queue.submission import submit
from loco.recipes import frozen
from loco.settings import Settings

pytestmark = pytest.mark.redis

Submit = Callable[..., Job]


@pytest.fixture
def ask(ledger: Ledger, app: Celery, settings: Settings) -> Submit:
    """Submits a request for math: `ask(stages=("train",), key="k")`."""

    def ask(*, key: str | None = None, **fields: object) -> Job:
        body = {"adapter": "math", "profile": "tiny", **fields}
        request = JobRequest.model_validate(body)
        return submit(ledger, app, settings, request, idempotency_key=key)[0]

    return ask


def run(ledger: Ledger, *stages: Stage) -> None:
    """Commits the next stages of the only job."""
    for stage in stages:
        claim = ledger.claim(stage.queue, worker_id="w", nonce=f"{stage}-{len(ledger.jobs()[0])}")
        assert claim is not None
        assert claim.stage is stage
        ledger.commit(
            claim.task_id, claim.token, result={}, artifacts=(), fingerprint=claim.task_id
        )


def waiting(ledger: Ledger, queue: Queue) -> int:
    with ledger._connection.client() as client:
        return int(client.llen(broker_prefix(ledger.namespace) + queue))


def test_an_accepted_job_is_recorded_and_hinted_at(ask: Submit, ledger: Ledger) -> None:
    job = ask(priority=5, metadata={"who": "me"}, train={"epochs": 2})
    assert ledger.job(job.id) == job
    assert (job.priority, job.metadata) == (5, {"who": "me"})
    assert job.spec.train.epochs == 2
    assert (waiting(ledger, Queue.CPU), waiting(ledger, Queue.GPU)) == (1, 0)


def test_a_repeated_request_is_the_same_job(
    ask: Submit, ledger: Ledger, settings: Settings
) -> None:
    job = ask(key="k")
    (settings.adapters_dir / "math" / "adapter.yaml").unlink()
    assert ask(key="k") == job, "the answer must not depend on what changed since"
    assert waiting(ledger, Queue.CPU) == 1
    with pytest.raises(IdempotencyConflict):
        ask(key="k", priority=1)


@pytest.mark.parametrize("key", ["", "x" * 256])
def test_keys_of_a_wrong_length_are_refused(ask: Submit, key: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ask(key=key)
    assert caught.value.param == "Idempotency-Key"


def test_what_the_recipe_refuses_leaves_no_job(ask: Submit, ledger: Ledger) -> None:
    with pytest.raises(UnknownAdapter, match="math"):
        ask(adapter="maths")
    with pytest.raises(InvalidRequest):
        ask(train={"epochs": -1})
    assert ledger.jobs() == ([], False)
    assert waiting(ledger, Queue.CPU) == 0


class TestBuildingOn:
    def test_nothing_to_build_on(self, ask: Submit, ledger: Ledger) -> None:
        with pytest.raises(StageGap, match="no job of math with profile tiny") as caught:
            ask(stages=("export",))
        assert (caught.value.code, caught.value.param) == ("stage_gap", "stages")
        ask()
        run(ledger, Stage.PREPARE)
        with pytest.raises(StageGap, match="has finished train"):
            ask(stages=("export",))

    def test_the_newest_that_fits_is_taken(self, ask: Submit, ledger: Ledger) -> None:
        job = ask()
        run(ledger, Stage.PREPARE, Stage.TRAIN)
        export = ask(stages=("export", "register"))
        assert export.spec.from_job == job.id
        assert waiting(ledger, Queue.GPU) == 1

    def test_a_chain_of_jobs_counts_as_one(self, ask: Submit, ledger: Ledger) -> None:
        first = ask(stages=("prepare",))
        run(ledger, Stage.PREPARE)
        second = ask(stages=("train",), from_job=first.id)
        run(ledger, Stage.TRAIN)
        third = ask(stages=("export",))
        assert third.spec.from_job == second.id
        assert set(ledger.outputs(third)) == {Stage.PREPARE, Stage.TRAIN}

    def test_a_job_that_lacks_a_stage_is_refused(self, ask: Submit, ledger: Ledger) -> None:
        job = ask()
        run(ledger, Stage.PREPARE)
        with pytest.raises(StageGap, match="has not finished train") as caught:
            ask(stages=("export",), from_job=job.id)
        assert caught.value.param == "from_job"
        assert "train" in str(caught.value.hint)

    def test_unknown_job(self, ask: Submit) -> None:
        with pytest.raises(NotFound, match="nope") as caught:
            ask(stages=("export",), from_job="nope")
        assert caught.value.param == "from_job"

    def test_a_job_of_another_adapter(
        self, ask: Submit, ledger: Ledger, settings: Settings
    ) -> None:
        folder = settings.adapters_dir / "algebra"
        folder.mkdir()
        recipe = (settings.adapters_dir / "math" / "adapter.yaml").read_text()
        (folder / "adapter.yaml").write_text(recipe.replace("name: math", "name: algebra"))
        job = ask()
        run(ledger, Stage.PREPARE)
        with pytest.raises(InvalidRequest, match="built adapter math, not algebra"):
            ask(adapter="algebra", stages=("train",), from_job=job.id)

    def test_a_job_on_another_base_model(self, ask: Submit, ledger: Ledger) -> None:
        job = ask()
        run(ledger, Stage.PREPARE, Stage.TRAIN)
        with pytest.raises(InvalidRequest, match="smollm2-135m-instruct") as caught:
            ask(profile="default", stages=("export",), from_job=job.id)
        assert "tiny" in str(caught.value.hint)

    def test_from_job_without_a_stage_left_out(self, ask: Submit) -> None:
        with pytest.raises(InvalidRequest) as caught:
            ask(from_job="any")
        assert caught.value.param == "from_job"

    def test_a_hole_in_the_stages(self, ask: Submit) -> None:
        with pytest.raises(StageGap, match="do not follow each other"):
            ask(stages=("prepare", "export"))


class TestSourceFiles:
    def test_a_file_of_the_adapter_is_fine(self, ask: Submit, settings: Settings) -> None:
        (settings.adapters_dir / "math" / "mine.jsonl").write_text("{}\n")
        job = ask(prepare={"source": {"kind": "jsonl", "path": "mine.jsonl"}})
        assert job.spec.prepare.source.path == "mine.jsonl"

    @pytest.mark.parametrize(
        "path",
        ["missing.jsonl", "../base_models.yaml", "/etc/passwd", "", "a\0b", "..", "link.jsonl"],
    )
    def test_anything_else_is_refused_before_the_job_exists(
        self, ask: Submit, ledger: Ledger, settings: Settings, tmp_path: Path, path: str
    ) -> None:
        (tmp_path / "secret").write_text("{}\n")
        (settings.adapters_dir / "math" / "link.jsonl").symlink_to(tmp_path / "secret")
        with pytest.raises(DataError) as caught:
            ask(prepare={"source": {"kind": "jsonl", "path": path}})
        assert caught.value.param == "prepare.source.path"
        assert ledger.jobs()[0] == []

    @pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
    def test_what_is_no_file_is_refused_at_once(
        self, ask: Submit, ledger: Ledger, settings: Settings, kind: str
    ) -> None:
        path = settings.adapters_dir / "math" / "thing"
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        else:
            os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero
        with pytest.raises(DataError, match="not a regular file") as caught:
            ask(prepare={"source": {"kind": "jsonl", "path": "thing"}})
        assert caught.value.param == "prepare.source.path"
        assert ledger.jobs()[0] == []

    def test_a_missing_eval_set_names_its_field(self, ask: Submit, ledger: Ledger) -> None:
        gone = {"sets": {"more": {"source": {"kind": "jsonl", "path": "more.jsonl"}}}}
        with pytest.raises(DataError, match=r"more\.jsonl") as caught:
            ask(eval=gone)
        assert caught.value.param == "eval.sets.more.source.path"
        assert ledger.jobs()[0] == []

    def test_a_dataset_folder_may_be_named(
        self, ledger: Ledger, app: Celery, settings: Settings, tmp_path: Path
    ) -> None:
        folder = tmp_path / "sets"
        folder.mkdir()
        (folder / "gsm8k.jsonl").write_text("{}\n")
        allowed = settings.model_copy(update={"dataset_dirs": (folder,)})
        for path in ("gsm8k.jsonl", str(folder / "gsm8k.jsonl")):
            source = {"kind": "jsonl", "path": path}
            request = JobRequest(adapter="math", profile="tiny", prepare={"source": source})
            assert submit(ledger, app, allowed, request, idempotency_key=None)[1]
            with pytest.raises(DataError):
                submit(ledger, app, settings, request, idempotency_key=None)

    def test_not_looked_at_when_prepare_is_left_out(self, ask: Submit, ledger: Ledger) -> None:
        ask()
        run(ledger, Stage.PREPARE)
        ask(stages=("train",), prepare={"source": {"kind": "jsonl", "path": "gone.jsonl"}})


class TestFreezing:
    def test_recipe_and_files_are_kept_as_they_were(self, ask: Submit, settings: Settings) -> None:
        math = settings.adapters_dir / "math"
        (math / "mine.jsonl").write_text("{}\n")
        recipe = (math / "adapter.yaml").read_bytes()
        job = ask(prepare={"source": {"kind": "jsonl", "path": "mine.jsonl"}})
        assert {"adapter.yaml", "mine.jsonl", "eval_dataset.jsonl"} <= set(job.spec.inputs)
        for name in ("adapter.yaml", "mine.jsonl"):
            (math / name).write_text("changed\n")
        copies = {n: settings.adapters_dir / f.path for n, f in job.spec.inputs.items()}
        assert copies["adapter.yaml"].read_bytes() == recipe
        assert copies["mine.jsonl"].read_text() == "{}\n"
        for name, copy in copies.items():
            assert sha256_of(copy) == job.spec.inputs[name].sha256

    def test_only_what_its_stages_read(self, ask: Submit, ledger: Ledger) -> None:
        ask()
        run(ledger, Stage.PREPARE, Stage.TRAIN)
        assert set(ask(stages=("export",)).spec.inputs) == {"adapter.yaml"}

    def test_a_job_that_builds_on_another_freezes_its_own_eval_sets(
        self, ask: Submit, ledger: Ledger, settings: Settings
    ) -> None:
        first = ask(stages=("prepare", "train", "export", "register"))
        run(ledger, Stage.PREPARE, Stage.TRAIN, Stage.EXPORT, Stage.REGISTER)
        (settings.adapters_dir / "math" / "eval_dataset.jsonl").write_text("{}\n")
        second = ask(stages=("eval",))
        assert second.spec.from_job == first.id
        name = "eval_dataset.jsonl"
        assert second.spec.inputs[name].sha256 != first.spec.inputs[name].sha256

    def test_a_repeat_is_the_same_job_with_the_same_inputs(
        self, ask: Submit, settings: Settings
    ) -> None:
        job = ask(key="k")
        (settings.adapters_dir / "math" / "eval_dataset.jsonl").write_text("{}\n")
        assert ask(key="k").spec.inputs == job.spec.inputs

    def test_a_full_disk_leaves_no_job(
        self, ask: Submit, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(frozen.shutil, "disk_usage", lambda _: type("U", (), {"free": 10}))
        with pytest.raises(DiskFull, match=r"no space for a copy of 'adapter\.yaml'"):
            ask()
        assert ledger.jobs()[0] == []

    def test_a_recipe_edited_meanwhile_is_read_again(
        self, ask: Submit, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = settings.adapters_dir / "math" / "adapter.yaml"
        resolved = submission.resolve
        edits = iter(["# once\n"])

        def resolve_and_edit(*arguments):
            spec = resolved(*arguments)
            path.write_text(path.read_text() + next(edits, ""))
            return spec

        monkeypatch.setattr(submission, "resolve", resolve_and_edit)
        job = ask()
        assert job.spec.inputs["adapter.yaml"].sha256 == sha256_of(path)
        edits = iter(f"# edit {n}\n" for n in range(10))
        with pytest.raises(Conflict, match="is changing right now"):
            ask()


def test_a_ledger_that_is_down_accepts_nothing(
    settings: Settings, app: Celery, free_port: int
) -> None:
    down = Ledger.connect(f"redis://127.0.0.1:{free_port}/0")
    with pytest.raises(RedisUnavailable):
        submit(down, app, settings, JobRequest(adapter="math"), idempotency_key="k")


def test_a_broker_that_is_down_costs_no_job(
    ledger: Ledger, settings: Settings, free_port: int
) -> None:
    url = f"redis://127.0.0.1:{free_port}/0"
    app = celery_app(settings.model_copy(update={"redis_url": url}))
    job, created = submit(ledger, app, settings, JobRequest(adapter="math"), idempotency_key=None)
    close_queue(app)
    assert created
    assert ledger.job(job.id) == job
