import io
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from loco.contracts.errors import DataError, SandboxUnavailable
from loco.contracts.results import PrepareResult
from loco.contracts.specs import Inputs, PrepareSpec
from loco.datasets.overlap import OverlapIndex, calculation, normalise
from loco.grading.eval_items import load_eval_items
from loco.grading.graders import grade
from loco.stage.program import Emitter
from loco_worker import prepare
from loco_worker.sources import eval_sets, sieve

BENCHMARK = Path(__file__).parents[2] / "adapters" / "math" / "eval_dataset.jsonl"


@pytest.fixture
def adapter_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "adapters" / "math"
    folder.mkdir(parents=True)
    (folder / "eval_dataset.jsonl").write_bytes(BENCHMARK.read_bytes())
    return folder


def run(adapter_dir: Path, out: Path, **spec: Any) -> tuple[PrepareResult, list[dict[str, Any]]]:
    inputs = Inputs(
        job_id="20261122-143722-4f9a2c",
        adapter="math",
        adapter_dir=adapter_dir,
        models_dir=adapter_dir,
        locks_dir=adapter_dir,
        ollama_host="http://127.0.0.1:1",
    )
    out.mkdir(exist_ok=True)
    stream = io.StringIO()
    sets = {"benchmark": {"source": {"kind": "jsonl", "path": "eval_dataset.jsonl"}}}
    spec["eval_sets"] = sets | spec.get("eval_sets", {})
    result = prepare.run(PrepareSpec.model_validate(spec), inputs, out, Emitter(stream))
    return result, [json.loads(line) for line in stream.getvalue().splitlines()]


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


ARITHMETIC = {"kind": "arithmetic"}
HELD_OUT = {"source": ARITHMETIC, "count": 100}


def write_source(adapter_dir: Path, *records: Any) -> dict[str, str]:
    text = "".join(json.dumps(r) + "\n" for r in records)
    (adapter_dir / "rows.jsonl").write_text(text)
    return {"kind": "jsonl", "path": "rows.jsonl"}


def test_the_tiny_profile_s_data_is_complete_and_clean(adapter_dir: Path, tmp_path: Path) -> None:
    result, events = run(
        adapter_dir,
        tmp_path / "o",
        source=ARITHMETIC,
        examples=160,
        eval_sets={"held_out": HELD_OUT},
    )
    trained = rows(tmp_path / "o" / "training_data.jsonl")
    held = rows(tmp_path / "o" / "eval_sets/held_out.jsonl")
    assert len(trained) == result.kept == 160
    assert len(held) == 100
    assert result.eval_sets == {"benchmark": 20, "held_out": 100}
    assert result.eval_items_checked == 120
    assert set(result.files) == {
        "training_data.jsonl",
        "validation_data.jsonl",
        "eval_sets/benchmark.jsonl",
        "eval_sets/held_out.jsonl",
    }
    assert result.eval_sources["held_out"].count == 100
    questions = [normalise(r["conversations"][0]["content"]) for r in trained]
    kept_out = {normalise(r["question"]) for r in [*held, *rows(BENCHMARK)]}
    assert len(set(questions)) == 160
    assert len(kept_out) == 120
    assert not set(questions) & kept_out
    for row in trained:
        assert set(row) == {"conversations"}
        assert [t["role"] for t in row["conversations"]] == ["user", "assistant"]
        assert "\nThe answer is " in row["conversations"][1]["content"]
    assert result.dropped.overlap == len(result.overlaps)
    # the source read until there were enough rows apart from the training rows
    assert result.read >= 160 + result.validation + sum(result.dropped.model_dump().values())
    assert events[-1]["progress"]["percent"] == 100


def test_the_same_spec_gives_the_same_bytes(adapter_dir: Path, tmp_path: Path) -> None:
    for source in (ARITHMETIC, {"kind": "reasoning-gym"}):
        for seed, name in ((1, "a"), (1, "b"), (2, "c")):
            run(
                adapter_dir,
                tmp_path / name,
                source=source,
                examples=50,
                eval_sets={"held_out": {"source": source, "count": 20}},
                seed=seed,
            )
        for file in ("training_data.jsonl", "validation_data.jsonl", "eval_sets/held_out.jsonl"):
            a, b = ((tmp_path / n / file).read_bytes() for n in ("a", "b"))
            assert a == b
        trained = [(tmp_path / n / "training_data.jsonl").read_bytes() for n in ("a", "c")]
        assert trained[0] != trained[1]


def test_dropped_rows_are_counted_by_reason(adapter_dir: Path, tmp_path: Path) -> None:
    good = {"question": "Why 5?", "answer": "Because.\n#### 5"}
    source = write_source(
        adapter_dir,
        good,
        {"question": "why 5", "answer": "#### 5"},
        {"question": "What is 15+27?", "answer": "#### 42"},
        {"question": "Please compute 15 + 27.", "answer": "#### 42"},
        {"question": "", "answer": "#### 1"},
        {"question": "Why?", "answer": "#### because"},
        {"question": "Why?"},
    )
    result, events = run(adapter_dir, tmp_path / "o", source=source, examples=10)
    assert (result.read, result.kept) == (7, 1)
    assert result.dropped.model_dump() == {"malformed": 2, "empty": 1, "duplicate": 1, "overlap": 2}
    assert [o.model_dump() for o in result.overlaps] == [
        {"row": 3, "eval_item": "benchmark/add-1", "rule": "equal"},
        {"row": 4, "eval_item": "benchmark/add-1", "rule": "calculation"},
    ]
    logs = [e["message"] for e in events if e["type"] == "log"]
    assert any("1 rows instead of 10" in line for line in logs)
    assert any("row 3 overlaps benchmark/add-1 (equal)" in line for line in logs)


def test_finite_sources_are_sampled_by_seed(adapter_dir: Path, tmp_path: Path) -> None:
    source = write_source(
        adapter_dir, *({"question": f"Question {n}?", "answer": f"#### {n}"} for n in range(500))
    )
    picks = []
    for seed in (0, 0, 1):
        run(adapter_dir, tmp_path / "o", source=source, examples=20, seed=seed)
        picks.append((tmp_path / "o" / "training_data.jsonl").read_bytes())
    assert picks[0] == picks[1] != picks[2]
    numbers = [
        int(r["conversations"][0]["content"].split()[1][:-1])
        for r in rows(tmp_path / "o" / "training_data.jsonl")
    ]
    assert len(set(numbers)) == 20
    assert max(numbers) > 200, "a sample is spread over the file"


def asked(path: Path) -> list[str]:
    return [r["conversations"][0]["content"] for r in rows(path)]


NUMBERED = [
    {"question": f"Box {n} holds {n} pens. How many pens?", "answer": f"#### {n}"}
    for n in range(100)
]


@pytest.mark.parametrize("kind", ["arithmetic", "reasoning-gym", "jsonl"])
def test_validation_rows_are_new_and_overlap_neither_training_nor_eval(
    adapter_dir: Path, tmp_path: Path, kind: str
) -> None:
    source = (
        write_source(adapter_dir, *NUMBERED)
        if kind == "jsonl"
        else {
            "kind": kind,
            **({"tasks": {"basic_arithmetic": 1}} if kind == "reasoning-gym" else {}),
        }
    )
    held = HELD_OUT | {"count": 20}
    result, _ = run(
        adapter_dir, tmp_path / "o", source=source, examples=40, eval_sets={"held_out": held}
    )
    trained = asked(tmp_path / "o" / "training_data.jsonl")
    apart = asked(tmp_path / "o" / "validation_data.jsonl")
    assert result.validation == len(apart) == 32
    index = OverlapIndex(13)
    for number, question in enumerate(apart):
        index.add(str(number), question)
    others = [*rows(BENCHMARK), *rows(tmp_path / "o" / "eval_sets/held_out.jsonl")]
    assert [q for q in trained if index.match(q)] == []
    assert [r for r in others if normalise(r["question"]) in map(normalise, apart)] == []
    assert len({normalise(q) for q in apart}) == 32


@pytest.mark.parametrize("kind", ["arithmetic", "jsonl"])
def test_validation_changes_nothing_that_is_trained_on(
    adapter_dir: Path, tmp_path: Path, kind: str
) -> None:
    source = write_source(adapter_dir, *NUMBERED) if kind == "jsonl" else ARITHMETIC
    seen = []
    for count in (0, 5, 50):
        out = tmp_path / f"v{count}"
        run(adapter_dir, out, source=source, examples=40, validation=count, seed=3)
        seen.append((out / "training_data.jsonl").read_bytes())
    assert seen[0] == seen[1] == seen[2]
    assert not (tmp_path / "v0" / "validation_data.jsonl").exists()
    few, many = (asked(tmp_path / name / "validation_data.jsonl") for name in ("v5", "v50"))
    assert few == many[:5]


def test_the_sample_to_train_on_is_the_one_of_earlier_versions(
    adapter_dir: Path, tmp_path: Path
) -> None:
    source = write_source(adapter_dir, *NUMBERED)
    run(adapter_dir, tmp_path / "o", source=source, examples=20, seed=7)
    usable = [row["question"] for row in NUMBERED]
    assert asked(tmp_path / "o" / "training_data.jsonl") == Random(7).sample(usable, 20)


def test_rows_that_overlap_a_training_row_are_not_validated_on(
    adapter_dir: Path, tmp_path: Path
) -> None:
    # of each calculation both wordings are there: what one of them trains on, the other may not test
    pairs = [
        {"question": words.format(n), "answer": f"#### {n + 7}"}
        for n in range(30)
        for words in ("What is {0} + 7?", "Please compute {0} + 7.")
    ]
    source = write_source(adapter_dir, *pairs)
    result, events = run(adapter_dir, tmp_path / "o", source=source, examples=40)
    trained = {calculation(q) for q in asked(tmp_path / "o" / "training_data.jsonl")}
    apart = {calculation(q) for q in asked(tmp_path / "o" / "validation_data.jsonl")}
    assert 0 < result.validation < 20
    assert not trained & apart
    logs = [e["message"] for e in events if e["type"] == "log"]
    assert any(f"{result.validation} validation rows instead of 32" in line for line in logs)


def test_a_source_that_is_used_up_leaves_nothing_to_validate_on(
    adapter_dir: Path, tmp_path: Path
) -> None:
    source = write_source(adapter_dir, *NUMBERED[:20])
    result, events = run(adapter_dir, tmp_path / "o", source=source, examples=20)
    assert (result.kept, result.validation) == (20, 0)
    assert set(result.files) == {"training_data.jsonl", "eval_sets/benchmark.jsonl"}
    assert not (tmp_path / "o" / "validation_data.jsonl").exists()
    assert any("0 validation rows instead of 32" in e.get("message", "") for e in events)


def test_no_usable_row_is_an_error_that_says_why(adapter_dir: Path, tmp_path: Path) -> None:
    source = write_source(adapter_dir, {"question": "What is 15 + 27?", "answer": "#### 42"})
    with pytest.raises(DataError, match="1 overlap") as caught:
        run(adapter_dir, tmp_path / "o", source=source)
    assert caught.value.hint
    assert not (tmp_path / "o" / "training_data.jsonl").exists()


def test_an_empty_file_is_an_error(adapter_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="read 0"):
        run(adapter_dir, tmp_path / "o", source=write_source(adapter_dir))


def test_a_generator_that_runs_dry_gives_what_it_has(
    adapter_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the generators have tens of thousands of problems: less patience stands in for fewer problems
    monkeypatch.setattr(sieve, "FRUITLESS", 4)
    result, events = run(adapter_dir, tmp_path / "o", source=ARITHMETIC, examples=40_000)
    assert 500 < result.kept < 40_000
    assert any("rows instead of 40000" in e.get("message", "") for e in events)


def test_more_held_out_problems_than_there_are(
    adapter_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eval_sets, "FRUITLESS", 4)
    with pytest.raises(DataError, match="different held-out problems") as caught:
        run(
            adapter_dir,
            tmp_path / "o",
            source=ARITHMETIC,
            eval_sets={"held_out": {"source": ARITHMETIC, "count": 10_000}},
        )
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"id": "1", "question": "a"}', r"eval_dataset\.jsonl, line 1: answer"),
        ('{"id": "1", "question": "a", "answer": "1"}\n{oops', r"line 2"),
        ('{"id": "1", "question": "a", "answer": "1"}\n' * 2, "twice"),
        ("", "no problems"),
    ],
)
def test_a_broken_benchmark_is_named(
    adapter_dir: Path, tmp_path: Path, text: str, words: str
) -> None:
    (adapter_dir / "eval_dataset.jsonl").write_text(text)
    with pytest.raises(DataError, match=words):
        run(adapter_dir, tmp_path / "o", source=ARITHMETIC)


def test_the_benchmark_of_the_repository_has_20_answerable_problems() -> None:
    items = rows(BENCHMARK)
    assert len(items) == 20
    assert len({i["id"] for i in items}) == 20
    assert {"What is 15 + 27?", "Solve for x: 2x + 5 = 13"} <= {i["question"] for i in items}
    assert all(float(i["answer"]) for i in items)


@pytest.fixture
def asks_for_code(adapter_dir: Path) -> dict[str, Any]:
    grader = {"kind": "code", "entry": "f", "cases": [{"args": [2], "expected": 4}]}
    item = {"id": "c1", "question": "Write f(x) that doubles x.", "grader": grader}
    (adapter_dir / "code.jsonl").write_text(json.dumps(item) + "\n")
    return {"code": {"source": {"kind": "jsonl", "path": "code.jsonl"}}}


def test_code_that_could_not_be_graded_here_is_said_before_training(
    adapter_dir: Path,
    tmp_path: Path,
    asks_for_code: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(SandboxUnavailable, match="Linux"):
        run(adapter_dir, tmp_path / "o", source=ARITHMETIC, eval_sets=asks_for_code)
    assert not (tmp_path / "o" / "training_data.jsonl").exists()


def test_graders_survive_prepare(adapter_dir: Path, tmp_path: Path) -> None:
    grader = {"kind": "json", "types": {"name": "string"}}
    line = {"id": "j", "question": "Who? As JSON.", "grader": grader}
    (adapter_dir / "mine.jsonl").write_text(json.dumps(line) + "\n")
    sets = {"mine": {"source": {"kind": "jsonl", "path": "mine.jsonl"}}}
    run(adapter_dir, tmp_path / "o", source=ARITHMETIC, examples=4, eval_sets=sets)
    (item,) = load_eval_items(tmp_path / "o" / "eval_sets/mine.jsonl")
    assert grade(item, '{"name": "Ada"}').correct
    assert rows(tmp_path / "o" / "eval_sets/mine.jsonl") == [line]
