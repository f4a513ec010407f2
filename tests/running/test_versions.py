"""From a committed stage to what serves and what people read: by the runner, or else by the next look."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tags_server import Tags
from versions import MODEL, Builder, register_result

from loco.contracts.errors import Conflict
from loco.contracts.evaluation import Verdict
from loco.contracts.jobs import JobStatus
from loco.contracts.specs import JobSpec
from loco.contracts.stages import Queue, Stage
from loco.contracts.versions import CandidateVersion, PromotedVersion, Version
from loco.ledger.ledger import Claim, Ledger
from loco.recipes import registry
from loco.running.attempt import stage_run
from loco.running.registry_file import export, export_committed, take_over
from loco.running.runner import Runner
from loco.serving.latest import follow_all
from loco.settings import Settings

pytestmark = [pytest.mark.redis, pytest.mark.slow]

LOOP = Path(__file__).parents[1] / "programs" / "loop.py"
LATEST = f"{MODEL}:latest"


@pytest.fixture
def build(ledger: Ledger, spec: Callable[..., JobSpec]) -> Builder:
    return Builder(ledger, spec)


class Worker:
    """A worker of both queues, without Celery: a runner, and what follows its commits."""

    def __init__(self, ledger: Ledger, settings: Settings, tags: Tags) -> None:
        self.ledger = ledger
        self.settings = settings
        self.tags = tags
        self.runner = Runner(
            ledger,
            settings,
            worker_id="w1",
            send_hint=lambda *_: None,
            command=lambda stage: [sys.executable, str(LOOP), stage],
            follow=self.follow,
        )

    def follow(self) -> None:
        export_committed(self.ledger, self.settings)
        follow_all(self.ledger, self.tags.url)

    def run(self, verdict: Verdict, spec: JobSpec) -> str:
        """Runs a job to its end; its candidate is in Ollama once register has committed."""
        os.environ["LOOP_VERDICT"] = verdict.value
        job, _ = self.ledger.submit(spec)
        self.tags.models[f"{MODEL}:{job.id}"] = f"digest-{job.id}"
        for stage in job.spec.stages:
            assert self.runner.run_one(stage.queue)
        return job.id


@pytest.fixture
def worker(
    ledger: Ledger, settings: Settings, tags: Tags, monkeypatch: pytest.MonkeyPatch
) -> Worker:
    monkeypatch.setenv("LOOP_VERDICT", "better")
    monkeypatch.setenv("LOOP_STEP_SECONDS", "0")
    settings = settings.model_copy(
        update={"ollama_host": tags.url, "pass_env": ("LOOP_VERDICT", "LOOP_STEP_SECONDS")}
    )
    return Worker(ledger, settings, tags)


def exported(settings: Settings) -> list[tuple[int, bool]]:
    history = registry.read(settings.adapters_dir)["math"]
    return [(version.version, version.promoted) for version in history]


def test_a_good_job_serves_and_a_bad_one_does_not(worker, spec):
    first = worker.run(Verdict.UNPROVEN, spec())
    assert worker.tags.models[LATEST] == f"digest-{first}"
    second = worker.run(Verdict.REFUSED, spec(seed=1))
    job = worker.ledger.job(second)
    assert job.status is JobStatus.SUCCEEDED
    assert (job.promotion.promoted, job.promotion.serving) == (False, 1)
    assert worker.tags.models[LATEST] == f"digest-{first}"
    third = worker.run(Verdict.BETTER, spec(seed=2))
    assert worker.tags.models[LATEST] == f"digest-{third}"
    assert exported(worker.settings) == [(3, True), (2, False), (1, False)]
    document = yaml.safe_load((worker.settings.adapters_dir / "registry.yaml").read_text())
    assert document["adapters"]["math"]["job"] == third
    assert document["adapters"]["math"]["gate"]["verdict"] == "better"
    assert worker.ledger.registry.undeployed() == []


def test_what_a_worker_that_died_after_its_commit_left_is_made_up_for(worker, spec, monkeypatch):
    def die(*_: object) -> None:
        raise SystemExit

    job, _ = worker.ledger.submit(spec())
    worker.tags.models[f"{MODEL}:{job.id}"] = f"digest-{job.id}"
    for stage in (Stage.PREPARE, Stage.TRAIN, Stage.EXPORT, Stage.REGISTER):
        assert worker.runner.run_one(stage.queue)
    monkeypatch.setattr(Runner, "_after_commit", die)
    with pytest.raises(SystemExit):
        worker.runner.run_one(Queue.CPU)
    assert worker.ledger.job(job.id).promotion.promoted
    assert LATEST not in worker.tags.models
    assert exported(worker.settings) == [(1, False)]
    worker.follow()  # as the main process of every worker does, again and again
    assert worker.tags.models[LATEST] == f"digest-{job.id}"
    assert exported(worker.settings) == [(1, True)]


def test_a_fault_of_what_follows_does_not_undo_the_commit(worker, spec, monkeypatch):
    def fail() -> None:
        raise RuntimeError("no")

    worker.runner._follow = fail
    job = worker.run(Verdict.BETTER, spec())
    assert worker.ledger.job(job).status is JobStatus.SUCCEEDED
    worker.follow()
    assert worker.tags.models[LATEST] == f"digest-{job}"


class TestInputs:
    def claim(self, build: Builder) -> Claim:
        """The eval of a new job."""
        return build.evals[build.registered().id]

    def test_eval_and_register_are_told_what_serves(self, build, ledger, settings):
        assert stage_run(ledger, settings, self.claim(build)).inputs.promoted is None
        job = build.promoted()
        claim = self.claim(build)
        assert stage_run(ledger, settings, claim).inputs.promoted == PromotedVersion(
            version=2,
            candidate=f"{MODEL}:{job.id}",
            digest=f"digest-{job.id}",
            blob=f"sha256:{job.id}",
        )
        again, _ = ledger.submit(build._spec(stages=("register",), from_job=job.id))
        told = stage_run(ledger, settings, build.claim(Stage.REGISTER, again)).inputs.promoted
        assert told is not None
        assert told.version == 2

    def test_a_candidate_is_not_compared_with_itself(self, build, ledger, settings):
        job = build.promoted()
        claim = build.measure_again(job)
        assert stage_run(ledger, settings, claim).inputs.promoted is None

    def test_a_model_of_another_name_does_not_count(self, build, ledger, settings):
        build.promoted(model="locollm-math")
        assert stage_run(ledger, settings, self.claim(build)).inputs.promoted is None

    def test_eval_is_told_the_candidates_digest_of_today(self, build, ledger, settings):
        built = build.registered(stages=("prepare", "train", "export", "register"))
        claim = build.measure_again(built)
        for digest in (f"digest-{built.id}", "digest-of-another-ollama"):
            candidate = f"{MODEL}:{built.id}"
            ledger.registry.restored("math", 1, digest, candidate=candidate, by="me", reason="")
            assert stage_run(ledger, settings, claim).inputs.candidate == CandidateVersion(
                version=1, candidate=candidate, digest=digest
            )


class TestReadableCopy:
    def test_it_is_written_once_a_change(self, build, ledger, settings):
        assert not export(ledger, settings.adapters_dir)
        assert not (settings.adapters_dir / "registry.yaml").exists()
        build.promoted()
        assert export(ledger, settings.adapters_dir)
        assert not export(ledger, settings.adapters_dir)
        build.registered()
        assert export(ledger, settings.adapters_dir)
        assert exported(settings) == [(2, False), (1, True)]

    def test_edits_of_it_are_lost_and_change_nothing(self, build, ledger, settings):
        build.promoted()
        export(ledger, settings.adapters_dir)
        path = settings.adapters_dir / "registry.yaml"
        path.write_text(path.read_text().replace("version: 1", "version: 9"))
        build.registered()
        export(ledger, settings.adapters_dir)
        assert exported(settings) == [(2, False), (1, True)]

    def test_a_folder_that_takes_no_file_is_tried_again(self, build, ledger, settings, caplog):
        build.promoted()
        gone = settings.model_copy(update={"adapters_dir": settings.adapters_dir / "nowhere"})
        export_committed(ledger, gone)
        assert "could not write registry.yaml" in caplog.text
        assert export(ledger, settings.adapters_dir)

    def test_an_earlier_releases_file_is_taken_over_before_anything_is_numbered(
        self, build, ledger, settings, caplog
    ):
        caplog.set_level("INFO")
        old = [
            Version.model_validate(
                register_result(job)["version"] | {"version": number, "promoted": number == 2}
            )
            for number, job in ((1, "a"), (2, "b"))
        ]
        with registry.locked(settings.adapters_dir):
            registry.write(settings.adapters_dir, {"math": old})
        path = settings.adapters_dir / "registry.yaml"
        document = yaml.safe_load(path.read_text())
        for entry in document["adapters"]["math"]["history"]:  # as 0.0.x wrote it
            for new in ("gate", "events", "profile", "served_at"):
                del entry[new]
        path.write_text(yaml.dump(document))
        job, _ = ledger.submit(build._spec(stages=("prepare", "train", "export", "register")))
        for stage in (Stage.PREPARE, Stage.TRAIN, Stage.EXPORT):
            build.commit(build.claim(stage), {"seconds": 1})
        claim = build.claim(Stage.REGISTER)
        told = stage_run(ledger, settings, claim).inputs.promoted
        assert told == PromotedVersion(
            version=2, candidate=f"{MODEL}:b", digest="digest-b", blob="sha256:b"
        )
        assert "2 versions of" in caplog.text
        build.commit(claim, register_result(job.id))
        export(ledger, settings.adapters_dir)
        assert exported(settings) == [(3, False), (2, True), (1, False)]
        assert take_over(ledger, settings.adapters_dir) == 0

    def test_a_lost_ledger_comes_back_from_it(self, build, ledger, settings, redis_url):
        build.promoted()
        build.measured(build.registered(), Verdict.REFUSED, compared=1)
        export(ledger, settings.adapters_dir)
        new = Ledger.connect(redis_url, namespace=f"{ledger.namespace}-new")
        assert take_over(new, settings.adapters_dir) == 2
        assert new.registry.versions("math") == ledger.registry.versions("math")
        assert new.registry.promoted(MODEL).version == 1
        new.close()

    def test_a_damaged_file_stops_register_instead_of_being_overwritten(
        self, build, ledger, settings
    ):
        path = settings.adapters_dir / "registry.yaml"
        path.write_text("adapters: [")
        ledger.submit(build._spec(stages=("prepare", "train", "export", "register")))
        for stage in (Stage.PREPARE, Stage.TRAIN, Stage.EXPORT):
            build.commit(build.claim(stage), {"seconds": 1})
        with pytest.raises(Conflict, match="cannot be read") as caught:
            stage_run(ledger, settings, build.claim(Stage.REGISTER))
        assert "move it away" in str(caught.value.hint)
        export_committed(ledger, settings)
        assert path.read_text() == "adapters: ["
