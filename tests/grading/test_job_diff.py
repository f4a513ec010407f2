"""Two jobs side by side: every kind of difference, and the verdict."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from loco.contracts.artifacts import Artifact, FrozenFile, describe
from loco.contracts.diffs import JobDiff, Sameness
from loco.contracts.jobs import Job, JobStatus, StageStatus, Task
from loco.contracts.specs import JobSpec
from loco.contracts.stages import Stage
from loco.grading.job_diff import compare
from loco.grading.job_records import JobRecords, read_records

PREPARED = {
    "seconds": 1,
    "files": {},
    "source": "mine.jsonl",
    "read": 200,
    "kept": 160,
    "dropped": {},
    "overlaps": [],
    "eval_items_checked": 20,
}
SAMPLING = {
    "model": "smollm2:135m",
    "digest": "d1",
    "server_version": "0.12.0",
    "questions": 170,
    "asked": 300,
    "known": 0,
    "right": 165,
    "unfinished": 1,
    "pass_rate": 0.55,
    "solved": 160,
    "rows_by_tries": {1: 100, 2: 60},
    "tokens": 9000,
    "tokens_per_second": 88.0,
}
PLAN = {
    "engine": "peft",
    "precision": "fp32",
    "micro_batch": 8,
    "accumulation": 1,
    "gradient_checkpointing": False,
    "padding_free": True,
    "max_length": 80,
    "memory_gb": 2.4,
    "step_seconds": 1.0,
    "train_seconds": 20.0,
}
TRAINED = {
    "seconds": 20,
    "files": {},
    "engine": "peft",
    "device": "cpu",
    "dtype": "float32",
    "base_model": "smollm2-135m-instruct",
    "examples": 160,
    "tokens": 9000,
    "trainable_parameters": 1000,
    "total_steps": 20,
    "first_loss": 2.5,
    "last_loss": 0.75,
    "train_seconds": 2.0,
    "tokens_per_second": 512.0,
    "peak_gpu_memory_gb": 0,
    "plan": PLAN,
    "attempts": [],
    "lengths": {"rows": 1, "tokens": 1, "answer_tokens": 1, "p50": 1, "p95": 1, "longest": 1},
    "start_seconds": 10.0,
    "step_seconds": 1.0,
    "log": [],
    "validation_loss": 0.8,
    "base_validation_loss": 2.4,
}


def score(model: str, correct: int, total: int) -> dict[str, Any]:
    return {
        "model": model,
        "correct": correct,
        "total": total,
        "accuracy": correct / total,
        "low": max(0, correct / total - 0.1),
        "high": min(1, correct / total + 0.1),
        "unfinished": 0,
        "seconds": 1,
    }


class Made:
    """A job as its stages left it, to be changed before it is compared."""

    def __init__(self, folder: Path, name: str, spec: JobSpec) -> None:
        self.folder = folder
        self.name = name
        self.spec = spec
        self.files = {
            Stage.PREPARE: {"training_data.jsonl": b"rows", "eval_sets/held_out.jsonl": b"set"},
            Stage.TRAIN: {"checkpoints/adapter_model.safetensors": b"weights"},
            Stage.EXPORT: {"gguf/unsloth.Q4_K_M.gguf": b"GGUF", "Modelfile": b"FROM"},
            Stage.EVAL: {},
        }
        self.environment: dict[str, Any] = {"python": "3.11.9", "packages": {"torch": "2.9.0"}}
        self.results: dict[Stage, dict[str, Any]] = {
            Stage.PREPARE: PREPARED,
            Stage.TRAIN: TRAINED,
            Stage.EXPORT: {},
        }
        self.answers(["right"] * 60 + ["wrong"] * 40)

    def answers(self, texts: list[str]) -> None:
        """What the candidate answered to the problems of set held_out."""
        rows = [
            {
                "set": "held_out",
                "id": str(n),
                "role": role,
                "answer": text,
                "correct": text == "right",
            }
            for n, text in enumerate(texts)
            for role, text in (("base", "base's"), ("candidate", text))
        ]
        self.files[Stage.EVAL]["eval.jsonl"] = "".join(json.dumps(r) + "\n" for r in rows).encode()
        solved = texts.count("right")
        comparison = {
            "set": "held_out",
            "base": score("base", 10, len(texts)),
            "candidate": score("candidate", solved, len(texts)),
            "gain": (solved - 10) / len(texts),
            "won": 1,
            "lost": 0,
            "p_value": 0.001,
        }
        self.results[Stage.EVAL] = {
            "seconds": 1,
            "files": {},
            "base_model": "base",
            "candidate": "candidate",
            "comparisons": [comparison],
        }

    def records(self) -> JobRecords:
        tasks = {stage: self._task(stage) for stage in self.files}
        job = Job(
            id=self.name,
            adapter="math",
            profile="tiny",
            status=JobStatus.SUCCEEDED,
            created_at=datetime.now(UTC),
            stages=tuple(tasks.values()),
            spec=self.spec,
        )
        return read_records(job, tasks, self.folder)

    def _task(self, stage: Stage) -> Task:
        artifacts: list[Artifact] = []
        files = {"environment.json": json.dumps(self.environment).encode(), **self.files[stage]}
        for name, content in files.items():
            path = self.folder / "math" / "runs" / self.name / stage / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            artifacts.append(describe(self.folder, path, name=name, stage=stage))
        return Task(
            task_id=f"{self.name}-{stage}",
            job_id=self.name,
            stage=stage,
            status=StageStatus.SUCCEEDED,
            result=self.results[stage],
            artifacts=tuple(artifacts),
        )


@pytest.fixture
def one(tmp_path: Path, spec: Callable[..., JobSpec]) -> Made:
    return Made(tmp_path, "one", spec())


@pytest.fixture
def two(tmp_path: Path, spec: Callable[..., JobSpec]) -> Made:
    return Made(tmp_path, "two", spec())


def seen(one: Made, two: Made) -> JobDiff:
    return compare(one.records(), two.records())


def fields(rows: Any) -> dict[str, tuple[Any, Any]]:
    return {row.field: (row.first, row.second) for row in rows}


def test_the_same_bytes_and_answers_are_identical(one: Made, two: Made) -> None:
    found = seen(one, two)
    assert found.verdict is Sameness.IDENTICAL, found.reasons
    assert found.recipe == found.data == found.environment == found.outputs == ()
    scores = fields(found.scores)
    assert scores["train.last_loss"] == (0.75, 0.75)
    assert scores["eval.held_out.candidate.accuracy"] == (0.6, 0.6)
    assert scores["eval.held_out.base.p_value"] == (0.001, 0.001)


def test_a_replays_bookkeeping_makes_no_difference(one: Made, two: Made) -> None:
    gate = two.spec.eval.gate.model_copy(update={"policy": "never"})
    two.spec = two.spec.model_copy(
        update={
            "eval": two.spec.eval.model_copy(update={"gate": gate}),
            "replay_of": "one",
            "reuse": False,
            "place": "replays/one",
        }
    )
    found = seen(one, two)
    assert found.verdict is Sameness.IDENTICAL
    assert fields(found.recipe) == {"eval.gate.policy": ("not_worse", "never")}


def test_only_a_replays_gate_is_another_on_purpose(one: Made, two: Made) -> None:
    gate = two.spec.eval.gate.model_copy(update={"policy": "never"})
    eval_spec = two.spec.eval.model_copy(update={"gate": gate})
    two.spec = two.spec.model_copy(update={"eval": eval_spec})
    found = seen(one, two)
    assert found.verdict is Sameness.DIFFERENT
    assert found.reasons == ("The recipes differ: eval.gate.policy.",)
    two.spec = two.spec.model_copy(update={"replay_of": "another"})
    assert seen(one, two).verdict is Sameness.DIFFERENT
    two.spec = two.spec.model_copy(update={"replay_of": "one"})
    assert seen(one, two).verdict is Sameness.IDENTICAL
    assert seen(two, one).verdict is Sameness.IDENTICAL


def test_only_fields_of_the_recipe_that_differ_are_named(
    one: Made, two: Made, spec: Callable[..., JobSpec]
) -> None:
    two.spec = spec(train={"epochs": 7, "lora": {"r": 8}})
    found = seen(one, two)
    assert fields(found.recipe) == {"train.epochs": (1.0, 7.0), "train.lora.r": (16, 8)}
    assert found.verdict is Sameness.DIFFERENT
    assert found.reasons[0] == "The recipes differ: train.lora.r, train.epochs."


def test_other_inputs_and_rows_are_data(one: Made, two: Made) -> None:
    frozen = {n: FrozenFile(path=f".inputs/{n}/x", sha256=n * 64, size=1) for n in "ab"}
    one.spec = one.spec.model_copy(update={"inputs": {"mine.jsonl": frozen["a"]}})
    two.spec = two.spec.model_copy(update={"inputs": {"mine.jsonl": frozen["b"]}})
    two.files[Stage.PREPARE]["training_data.jsonl"] = b"others"
    two.results[Stage.PREPARE] = {**PREPARED, "kept": 150, "dropped": {"overlap": 10}}
    found = seen(one, two)
    data = fields(found.data)
    assert data["inputs/mine.jsonl"] == ("a" * 64, "b" * 64)
    assert data["prepare.kept"] == (160, 150)
    assert data["prepare.dropped.overlap"] == (0, 10)
    assert set(data) == {
        "inputs/mine.jsonl",
        "prepare/training_data.jsonl",
        "prepare.kept",
        "prepare.dropped.overlap",
    }
    assert found.verdict is Sameness.DIFFERENT
    assert "training_data.jsonl differs" in " ".join(found.reasons)


def test_what_was_asked_of_the_base_is_data(one: Made, two: Made) -> None:
    one.results[Stage.PREPARE] = {**PREPARED, "sampling": SAMPLING}
    again = {**SAMPLING, "known": 300, "tokens_per_second": None, "advice": ["Take gold rows."]}
    two.results[Stage.PREPARE] = {**PREPARED, "sampling": again}
    found = seen(one, two)
    assert found.verdict is Sameness.IDENTICAL
    assert found.data == (), "answers that were known give the same rows"
    again |= {"digest": "d2", "pass_rate": 0.5, "rows_by_tries": {1: 100, 3: 60}, "tokens": 9001}
    assert fields(seen(one, two).data) == {
        "prepare.sampling.digest": ("d1", "d2"),
        "prepare.sampling.pass_rate": (0.55, 0.5),
        "prepare.sampling.rows_by_tries.2": (60, None),
        "prepare.sampling.rows_by_tries.3": (None, 60),
        "prepare.sampling.tokens": (9000, 9001),
    }
    one.results[Stage.PREPARE] = PREPARED
    assert fields(seen(one, two).data)["prepare.sampling.pass_rate"] == (None, 0.5)


def test_other_pairs_are_other_data(one: Made, two: Made) -> None:
    for made, content in ((one, b"pairs"), (two, b"other pairs")):
        made.files[Stage.PREPARE]["preference_data.jsonl"] = content
    found = seen(one, two)
    assert found.verdict is Sameness.DIFFERENT
    assert "preference_data.jsonl differs" in found.reasons[0]


@pytest.mark.parametrize(
    ("last_loss", "verdict"), [(0.505, Sameness.IDENTICAL), (0.6, Sameness.DIFFERENT)]
)
def test_what_the_pairs_taught_is_compared(
    one: Made, two: Made, last_loss: float, verdict: Sameness
) -> None:
    pairs = {
        "pairs": 100,
        "left_out": 0,
        "steps": 7,
        "first_loss": 0.7,
        "last_loss": 0.5,
        "first_accuracy": 0.4,
        "last_accuracy": 0.8,
        "margin": 1.5,
        "seconds": 9.0,
        "step_seconds": 1.0,
        "reference_seconds": 2.0,
    }
    one.results[Stage.TRAIN] = {**TRAINED, "preference": pairs}
    two.results[Stage.TRAIN] = {**TRAINED, "preference": pairs | {"last_loss": last_loss}}
    found = seen(one, two)
    assert found.verdict is verdict
    scores = fields(found.scores)
    assert scores["train.preference.last_loss"] == (0.5, last_loss)
    assert scores["train.preference.last_accuracy"] == (0.8, 0.8)
    one.results[Stage.TRAIN] = TRAINED
    assert fields(seen(one, two).scores)["train.preference.last_loss"] == (None, last_loss)


def test_who_was_asked_is_told_by_the_base_and_the_source(
    one: Made, two: Made, spec: Callable[..., JobSpec]
) -> None:
    """What source self asks follows from the base: not every field of it once more."""
    own = {"kind": "self", "questions": {"kind": "arithmetic"}, "samples": 2}
    one.spec = spec(prepare={"source": own})
    two.spec = spec(prepare={"source": own | {"samples": 3}})
    assert fields(seen(one, two).recipe) == {"prepare.source.samples": (2, 3)}
    two.spec = spec()
    assert not [f for f in fields(seen(one, two).recipe) if "base_model" in f]


def test_another_environment_is_named_version_by_version(one: Made, two: Made) -> None:
    two.environment = {"python": "3.11.9", "packages": {"torch": "2.10.0", "new": "1"}}
    two.results[Stage.TRAIN] = {**TRAINED, "device": "NVIDIA H100"}
    found = seen(one, two)
    environment = fields(found.environment)
    assert environment["train.packages.torch"] == ("2.9.0", "2.10.0")
    assert environment["train.packages.new"] == (None, "1")
    assert environment["train.device"] == ("cpu", "NVIDIA H100")
    assert "train.python" not in environment
    assert found.verdict is Sameness.IDENTICAL, "where it ran is no difference in what came out"


@pytest.mark.parametrize(
    ("loss", "verdict"), [(0.81, Sameness.EQUIVALENT), (0.9, Sameness.DIFFERENT)]
)
def test_other_weights_are_equivalent_while_losses_and_scores_are_close(
    one: Made, two: Made, loss: float, verdict: Sameness
) -> None:
    two.files[Stage.TRAIN]["checkpoints/adapter_model.safetensors"] = b"nearly"
    two.files[Stage.EXPORT]["gguf/unsloth.Q4_K_M.gguf"] = b"NEAR"
    two.results[Stage.TRAIN] = {**TRAINED, "validation_loss": loss}
    two.answers(["right"] * 58 + ["wrong"] * 42)
    found = seen(one, two)
    assert found.verdict is verdict, found.reasons
    assert set(fields(found.outputs)) == {
        "train/checkpoints/adapter_model.safetensors",
        "export/gguf/unsloth.Q4_K_M.gguf",
        "eval.held_out.answers",
    }


def test_a_gguf_that_names_another_job_holds_the_same_weights(one: Made, two: Made) -> None:
    two.files[Stage.EXPORT]["gguf/unsloth.Q4_K_M.gguf"] = b"GGUF of another job"
    one.results[Stage.EXPORT] = two.results[Stage.EXPORT] = {"weights_sha256": "a" * 64}
    assert seen(one, two).verdict is Sameness.IDENTICAL
    two.results[Stage.EXPORT] = {"weights_sha256": "b" * 64}
    found = seen(one, two)
    assert found.verdict is Sameness.EQUIVALENT
    assert set(fields(found.outputs)) == {"export.weights_sha256"}


def test_significantly_other_scores_are_different(one: Made, two: Made) -> None:
    two.answers(["right"] * 40 + ["wrong"] * 60)
    found = seen(one, two)
    assert found.verdict is Sameness.DIFFERENT
    assert found.reasons == (
        "On held_out the second solved 0 more and 20 fewer problems, p = 1.9e-06.",
    )


def test_other_words_with_the_same_verdicts_are_equivalent(one: Made, two: Made) -> None:
    two.answers(["right"] * 60 + ["wrong!"] * 40)
    found = seen(one, two)
    assert found.verdict is Sameness.EQUIVALENT
    assert fields(found.outputs) == {
        "eval.held_out.answers": ("100 answers", "40 of them in other words")
    }


def test_without_readable_answers_nothing_is_called_identical(one: Made, two: Made) -> None:
    two.files[Stage.EVAL]["eval.jsonl"] = b"{broken\n"
    found = seen(one, two)
    assert found.verdict is Sameness.EQUIVALENT
    assert "The answers could not be read." in found.reasons


def test_a_stage_that_only_one_has_is_said(one: Made, two: Made) -> None:
    del two.files[Stage.EVAL]
    found = seen(one, two)
    assert found.verdict is Sameness.DIFFERENT
    assert found.reasons == ("Only job one has finished eval.",)
    assert fields(found.scores)["eval.held_out.candidate.accuracy"] == (0.6, None)


def test_jobs_that_have_committed_nothing_are_not_called_alike(one: Made, two: Made) -> None:
    one.files, two.files = {}, {}
    found = seen(one, two)
    assert found.verdict is Sameness.DIFFERENT
    assert "nothing to compare" in found.reasons[0]


def test_a_record_that_leads_outside_or_was_changed_is_not_read(one: Made, tmp_path: Path) -> None:
    records = one.records()
    assert records.environments[Stage.TRAIN]["python"] == "3.11.9"
    path = tmp_path / "math" / "runs" / "one" / Stage.TRAIN / "environment.json"
    secret = tmp_path.parent / "environment.json"
    secret.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(secret)
    again = read_records(records.job, records.tasks, tmp_path)
    assert Stage.TRAIN not in again.environments
    assert Stage.EXPORT in again.environments


@pytest.mark.parametrize(
    ("stage", "name"), [(Stage.EVAL, "eval.jsonl"), (Stage.TRAIN, "environment.json")]
)
def test_a_record_of_the_same_size_with_other_content_is_not_read(
    one: Made, tmp_path: Path, stage: Stage, name: str
) -> None:
    records = one.records()
    assert records.answers is not None
    path = tmp_path / "math" / "runs" / "one" / stage / name
    path.write_bytes(path.read_bytes().replace(b"right", b"wrong").replace(b"3.11", b"3.12"))
    again = read_records(records.job, records.tasks, tmp_path)
    if stage is Stage.EVAL:
        assert again.answers is None
    else:
        assert stage not in again.environments
