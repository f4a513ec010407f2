"""POST /plan over HTTP: what it shows, what it refuses, and what earlier runs teach it."""

import json
from datetime import UTC, datetime

import httpx
import pytest

from loco import Client
from loco.contracts.errors import InvalidRequest, OutOfMemory
from loco.contracts.jobs import WorkerInfo
from loco.contracts.plans import Device
from loco.contracts.previews import PlanRequest, Preview
from loco.contracts.stages import Stage
from loco.planning.preview import preview

pytestmark = pytest.mark.redis

TINY = {"adapter": "math", "profile": "tiny"}
CARD = {"name": "RTX 3070", "memory_gb": 8}
CPU = Device(name="cpu", memory_gb=32, free_gb=20, cores=2)
LENGTHS = {
    "rows": 160,
    "tokens": 10_289,
    "answer_tokens": 3_186,
    "p50": 64,
    "p95": 80,
    "longest": 87,
    "pairs": None,
}


@pytest.fixture
def http(live_api):
    with httpx.Client(base_url=live_api.url, trust_env=False) as client:
        yield client


@pytest.fixture
def trainer(live_api, hands):
    """A worker of queue gpu that says it trains on a CPU."""
    worker = WorkerInfo(
        id="gpu-box-1",
        queue="gpu",
        host="box",
        pid=1,
        device="cpu",
        hardware=CPU,
        seen_at=datetime.now(UTC),
    )
    hands.ledger.heartbeat(worker)
    return worker


def train_result(**changed: object) -> dict[str, object]:
    plan = {
        "engine": "peft",
        "precision": "fp32",
        "micro_batch": 8,
        "accumulation": 1,
        "gradient_checkpointing": False,
        "padding_free": True,
        "max_length": 87,
        "memory_gb": 2.9,
        "step_seconds": 2.7,
        "train_seconds": 70,
    }
    return {
        "seconds": 150.0,
        "files": {},
        "engine": "peft",
        "device": "cpu",
        "dtype": "float32",
        "base_model": "smollm2-135m-instruct",
        "examples": 160,
        "tokens": 10_289,
        "trainable_parameters": 1000,
        "total_steps": 20,
        "resumed_from_step": None,
        "first_loss": 1.0,
        "last_loss": 0.5,
        "train_seconds": 100.0,
        "tokens_per_second": 100.0,
        "peak_gpu_memory_gb": 0,
        "log": [],
        "plan": plan,
        "attempts": [],
        "lengths": LENGTHS,
        "start_seconds": 40.0,
        "step_seconds": 5.0,
        **changed,
    }


def prepared(count: int = 160) -> dict[str, object]:
    return {"seconds": 3.0, "files": {}, "kept": count}


def refusal(answer: httpx.Response) -> dict[str, str]:
    assert answer.status_code == 422, answer.text
    return answer.json()["error"]


def test_a_plan_for_a_card_nobody_has_started(http):
    answer = http.post("/plan", json={"adapter": "math", "device": CARD})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["device"]["compute_capability"] == 8.6
    assert found["device_from"] == "the request"
    assert found["plan"]["micro_batch"] * found["plan"]["accumulation"] == 8
    parts = {name: gb for name, gb in found["memory"].items() if name != "peak_gb"}
    assert found["memory"]["peak_gb"] == pytest.approx(sum(parts.values()), abs=0.01)
    assert found["plan"]["memory_gb"] == found["memory"]["peak_gb"]
    assert found["memory"]["peak_gb"] + found["margin_gb"] <= 8
    assert found["total_steps"] == 75
    assert found["lengths_from"] == "the worst case: every row filled to 1024 tokens"
    own = next(a for a in found["alternatives"] if a["name"] == "recipe's own batches")
    assert (own["plan"]["micro_batch"], own["plan"]["precision"]) == (2, "4bit")
    assert own["times"] >= 1
    stages = {s["stage"]: s for s in found["stages"]}
    assert list(stages) == [str(s) for s in Stage]
    assert stages["train"]["basis"] == "model"
    assert stages["eval"] == {"stage": "eval", "seconds": None, "basis": "unknown", "runs": 0}
    export = next(n for n in found["needs"] if n["stage"] == "export")
    assert export["disk_gb"] == pytest.approx(2.5, abs=0.05)  # Q4_K_M of Qwen3-4B
    assert 5.4 <= export["ram_gb"] <= 5.8  # 5.6 measured
    assert export["download_gb"] == pytest.approx(8.0, abs=0.1)


def test_a_4_bit_base_that_is_not_here_is_said_to_be_taken_for_plain_nf4(ledger, settings):
    def notes(memory_gb):
        card = {"name": "RTX 3090", "memory_gb": memory_gb}
        asked = {"adapter": "math", "profile": "gold", "device": card}
        return preview(ledger, settings, PlanRequest.model_validate(asked)).notes

    assert any(
        "unsloth/Qwen3-4B-unsloth-bnb-4bit is not downloaded yet" in note for note in notes(8)
    )
    assert not notes(48)


def test_rows_that_are_held_back_are_told_and_not_planned_for(http, settings, hands):
    folder = settings.adapters_dir / "towns"
    folder.mkdir()
    (folder / "adapter.yaml").write_text(
        "{name: towns, description: Towns, base_model: smollm2-135m-instruct, model_name: towns, "
        "prepare: {source: {kind: jsonl, path: rows.jsonl}}}"
    )
    lines = [{"question": f"Where is town {n}?", "answer": f"north {n}"} for n in range(60)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def planned(**more):
        found = http.post("/plan", json={"adapter": "towns", "device": CARD, **more}).json()
        return found["lengths"]["rows"], [s["stage"] for s in found["stages"]], found["notes"]

    rows, stages, notes = planned()
    assert (rows, stages[-1]) == (40, "eval")
    (said,) = [note for note in notes if "held back" in note]
    assert "about 20 of 60 rows of rows.jsonl" in said
    assert "Grader words" in said
    rows, stages, notes = planned(
        eval={"sets": {"split": {"source": {"kind": "split", "most": 10}}}}
    )
    assert (rows, "about 10 of 60" in notes[-1]) == (50, True)
    uploaded = {"source": {"kind": "dataset", "dataset": "ds"}}
    assert "10 % of the usable rows" in planned(prepare=uploaded)[2][-1]

    job = http.post("/jobs", json={"adapter": "towns"}).json()
    claim = hands.claim(Stage.PREPARE)
    held = {"set": "split", "rows": 19, "grader": "words", "why": "short"}
    counted = {"source": "rows", "read": 60, "kept": 41, "eval_items_checked": 19, "overlaps": []}
    dropped = {"malformed": 0, "empty": 0, "duplicate": 0, "overlap": 0}
    result = {"seconds": 1, "files": {}, **counted, "dropped": dropped, "held_back": held}
    hands.commit(claim, result)
    said = f"eval.sets.split: 19 rows are held back, as in job {job['id']} (grader words: short)."
    assert said in planned()[2]


def test_nothing_is_accepted_by_planning(http):
    http.post("/plan", json={"adapter": "math", "device": CARD})
    assert http.get("/jobs").json()["data"] == []


def test_the_device_is_the_workers(http, trainer):
    found = http.post("/plan", json=TINY).json()
    assert found["device"] == CPU.model_dump()
    assert found["device_from"] == "worker gpu-box-1"
    assert found["plan"]["precision"] == "fp32"
    assert http.get("/workers").json()["data"][0]["hardware"]["cores"] == 2


def test_without_a_worker_and_a_device_it_says_what_to_do(http):
    error = refusal(http.post("/plan", json=TINY))
    assert error["param"] == "device"
    assert "--gpu-memory" in error["hint"]


def test_what_cannot_fit_is_refused_with_what_would(http):
    error = refusal(
        http.post("/plan", json={"adapter": "math", "device": {"name": "T4", "memory_gb": 3}})
    )
    assert error["code"] == "out_of_memory"
    assert "smollm2-135m-instruct" in error["hint"]
    error = refusal(
        http.post(
            "/plan",
            json={"adapter": "math", "device": CARD, "train": {"load_in_4bit": False}},
        )
    )
    assert error["param"] == "train.load_in_4bit"


def test_the_client_raises_the_servers_error(live_api):
    with Client(live_api.url) as client:
        found = client.plan("math", device=CARD, train={"max_length": 256})
        assert isinstance(found, Preview)
        assert found.lengths.longest == 256
        with pytest.raises(OutOfMemory):
            client.plan("math", device={"memory_gb": 2})


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"train": {"micro_batch": 3}}, "train.micro_batch"),
        ({"train": {"micro_batches": 3}}, "train.micro_batches"),
        ({"device": {"memory_gb": 0}}, "device.memory_gb"),
        ({"device": {"name": "RTX 3070"}}, "device.memory_gb"),
        ({"train": {"engine": "unsloth"}, "device": {"name": "cpu", "memory_gb": 64}}, None),
        ({"base_model": "qwen9"}, "base_model"),
        ({"profile": "huge"}, "profile"),
    ],
)
def test_mistakes_are_named(http, body, param):
    error = refusal(http.post("/plan", json={"adapter": "math", "device": CARD, **body}))
    assert error["param"] == (param or "train.engine")
    assert error["message"]


def test_rows_an_answer_are_counted_as_the_last_run_had_them(http, hands, trainer):
    """160 conversations, of which Qwen3 makes 480 rows, are not 160 rows the next time."""
    http.post("/jobs", json=TINY)
    hands.commit(hands.claim(Stage.PREPARE), prepared())
    lengths = {**LENGTHS, "rows": 480, "tokens": 30_867, "answer_tokens": 9_558}
    hands.commit(hands.claim(Stage.TRAIN), train_result(lengths=lengths, conversations=160))
    assert http.post("/plan", json=TINY).json()["lengths"] == lengths


def test_earlier_runs_give_lengths_and_correct_the_seconds(http, hands, trainer):
    before = http.post("/plan", json=TINY).json()
    assert before["history_runs"] == 0
    job = http.post("/jobs", json=TINY).json()
    hands.commit(hands.claim(Stage.PREPARE), prepared())
    by_length = http.post("/plan", json=TINY).json()
    assert by_length["lengths_from"] == before["lengths_from"]  # no file was committed
    hands.commit(hands.claim(Stage.TRAIN), train_result())

    after = http.post("/plan", json=TINY).json()
    assert after["lengths"] == LENGTHS
    assert after["lengths_from"] == f"the rows of job {job['id']}"
    assert after["history_runs"] == 1
    assert after["plan"]["step_seconds"] == pytest.approx(5.0, rel=0.01)
    times = {s["stage"]: s for s in after["stages"]}
    # 20 steps of 5 s, 40 s to the end of the first, 15 s after the last, a little for checkpoints
    assert times["train"]["seconds"] == pytest.approx(40 + 100 + 15, rel=0.06)
    assert times["train"]["basis"] == "runs"
    assert times["prepare"] == {"stage": "prepare", "seconds": 3.0, "basis": "runs", "runs": 1}

    more = http.post("/plan", json={**TINY, "prepare": {"examples": 320}}).json()
    assert more["lengths"]["tokens"] == 2 * LENGTHS["tokens"]
    assert more["total_steps"] == 40
    other = http.post("/plan", json={**TINY, "device": {"name": "cpu", "memory_gb": 64}}).json()
    assert other["history_runs"] == 1  # another machine's CPU is the best guess there is
    elsewhere = http.post("/plan", json={**TINY, "device": CARD}).json()
    assert elsewhere["history_runs"] == 0


def test_how_long_the_base_is_asked_follows_from_what_it_answered_before(http, hands, trainer):
    own = {"kind": "self", "questions": {"kind": "arithmetic"}, "samples": 3}
    asked = {**TINY, "prepare": {"source": own, "examples": 168}}
    before = http.post("/plan", json=asked).json()
    prepare = {"stage": "prepare", "seconds": None, "basis": "unknown", "runs": 0}
    assert before["stages"][0] == prepare
    assert "smollm2:135m has answered no questions of math yet" in before["notes"][-1]

    http.post("/jobs", json=asked)
    sampling = {
        "model": "smollm2:135m",
        "digest": "d",
        "server_version": "0.12.0",
        "questions": 400,
        "asked": 600,
        "known": 500,
        "right": 320,
        "unfinished": 0,
        "pass_rate": 0.5,
        "solved": 300,
        "rows_by_tries": {"1": 168},
        "tokens": 30_000,
        "tokens_per_second": 40.0,
    }
    rows = {"read": 400, "dropped": {}, "overlaps": [], "eval_items_checked": 0, "source": "own"}
    hands.commit(hands.claim(Stage.PREPARE), {**prepared(168), **rows, "sampling": sampling})
    after = http.post("/plan", json=asked).json()
    # 267 questions asked 1.83 times for 200 rows, 50 tokens an answer, 40 a second: that the job took
    # a second, as it knew most answers, is no measure
    assert after["stages"][0]["seconds"] == pytest.approx(267 * 1.833 * 50 / 40, rel=0.01)
    assert (after["stages"][0]["basis"], after["stages"][0]["runs"]) == ("runs", 1)
    assert "267 questions" in after["notes"][-1]
    assert after["total_seconds"] > before["total_seconds"]


def test_export_on_a_cpu_says_nothing_of_a_gpu(http, hands, trainer):
    http.post("/jobs", json=TINY)
    hands.commit(hands.claim(Stage.PREPARE), prepared())
    hands.commit(hands.claim(Stage.TRAIN), train_result())
    hands.commit(hands.claim(Stage.EXPORT), {"seconds": 77.0, "files": {}, "device": "cpu"})

    def export(**body: object) -> dict[str, object]:
        stages = http.post("/plan", json={**TINY, **body}).json()["stages"]
        return next(s for s in stages if s["stage"] == "export")

    assert export() == {"stage": "export", "seconds": 77.0, "basis": "runs", "runs": 1}
    assert export(device={"name": "CPU", "memory_gb": 64})["seconds"] == 77.0
    assert export(device=CARD)["basis"] == "model"


def test_runs_of_an_older_release_are_passed_over(http, hands, trainer):
    http.post("/jobs", json=TINY)
    hands.commit(hands.claim(Stage.PREPARE), prepared())
    old = {k: v for k, v in train_result().items() if k not in ("plan", "lengths")}
    hands.commit(hands.claim(Stage.TRAIN), old)
    assert http.post("/plan", json=TINY).json()["history_runs"] == 0


def test_prepared_rows_give_lengths_by_their_characters(http, hands, trainer):
    job = http.post("/jobs", json=TINY).json()
    question, answer = "How much is 12 + 30?", "12 + 30 = 42. The answer is 42"
    row = {
        "conversations": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    }
    lines = "".join(json.dumps(row) + "\n" for _ in range(50))
    claim = hands.claim(Stage.PREPARE)
    hands.commit(claim, prepared(50), {"training_data.jsonl": lines.encode()})
    found = http.post("/plan", json=TINY).json()
    assert found["lengths_from"] == f"the characters of the rows of job {job['id']}"
    expected = (len(question) + len(answer)) / 3.2 + 16
    assert found["lengths"]["p50"] == round(expected)
    assert found["lengths"]["rows"] == 160


def test_a_folder_says_its_shape_and_an_unknown_model_how_to_name_it(ledger, settings):
    catalog = settings.adapters_dir / "base_models.yaml"
    entry = (
        "\nmine: {kind: folder, train: mine, merge: mine, ollama: mine, parameters_billion: 0.1}\n"
    )
    catalog.write_text(catalog.read_text() + entry)
    request = PlanRequest.model_validate({**TINY, "base_model": "mine", "device": CARD})
    with pytest.raises(Exception, match="shape of mine is not known") as unknown:
        preview(ledger, settings, request)
    assert "num_hidden_layers" in unknown.value.hint
    folder = settings.models_dir / "mine"
    folder.mkdir(parents=True)
    config = {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 300,
    }
    (folder / "config.json").write_text(json.dumps(config))
    assert preview(ledger, settings, request).memory.weights_gb < 0.01
    (folder / "config.json").write_text(json.dumps(config | {"num_local_experts": 8}))
    with pytest.raises(InvalidRequest, match="mixture of experts"):
        preview(ledger, settings, request)
    (folder / "config.json").write_text(json.dumps({"hidden_size": 64}))
    with pytest.raises(Exception, match="does not describe a decoder"):
        preview(ledger, settings, request)
