"""The figures of the GPU benchmark: kept as lines, read back, turned into tables, put into a page."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "benchmarks"))

import gpu_journal  # noqa: E402
from gpu_journal import Journal  # noqa: E402
from gpu_speed import largest_difference  # noqa: E402

PLAN = {
    "engine": "peft",
    "precision": "bf16",
    "micro_batch": 8,
    "accumulation": 1,
    "gradient_checkpointing": False,
    "padding_free": True,
    "cuda_graphs": True,
}


def test_a_later_measurement_replaces_the_earlier_one(tmp_path):
    (tmp_path / "gpu-1.jsonl").write_text(
        '{"part": "speed", "name": "job, warm", "error": "killed"}\n'
        '{"part": "speed", "name": "by hand", "whole_seconds": 270.0}\n'
    )
    Journal(tmp_path / "later").put("speed", "job, warm", whole_seconds=70.0, losses=[1.0])
    found = {r["name"]: r for r in gpu_journal.read(tmp_path)}
    assert list(found) == ["job, warm", "by hand"]
    assert "error" not in found["job, warm"]
    table = gpu_journal.tables(list(found.values()))["speed"]
    assert "| job, warm | - | - | - | - | 70.0 s | - |" in table


def test_a_failed_run_says_why_in_its_row():
    record = {"part": "mfu", "name": "full rows", "error": "out_of_memory: no | more"}
    assert "| full rows | failed: out_of_memory: no / more |" in gpu_journal.tables([record])["mfu"]


def test_a_plan_in_words():
    record = {
        "part": "memory",
        "name": "bf16 8 x 512",
        "plan": PLAN,
        "tokens": 512,
        "predicted_gb": 12.0,
        "measured_gb": 10.0,
        "error_part": 0.2,
        "step_seconds": 0.25,
    }
    row = gpu_journal.tables([record])["memory"].splitlines()[-1]
    assert row == (
        "| bf16 8 x 512 | peft, bf16, 8 x 1, end to end, graphs | 512 | 12.00 | 10.00 | 20.0 % | 0.250 s |"
    )


def test_tables_go_between_their_marks_and_nothing_else_changes(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A\n<!-- gpu-bench mfu -->\nold\n<!-- end -->\n## B\n<!-- end -->\n")
    for table in ("| new |", "| newer |"):
        gpu_journal.fill(page, {"mfu": table})
    assert page.read_text() == (
        "# A\n<!-- gpu-bench mfu -->\n| newer |\n<!-- end -->\n## B\n<!-- end -->\n"
    )
    with pytest.raises(ValueError, match="gpu-bench speed"):
        gpu_journal.fill(page, {"speed": "| x |"})


def test_the_page_of_measurements_has_a_place_for_every_table():
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    for part in gpu_journal._TABLES:
        assert page.count(f"<!-- gpu-bench {part} -->") == 1


def test_the_largest_difference_of_two_curves():
    part, step = largest_difference([2.0, 1.0, 4.0], [2.0, 1.1, 4.1])
    assert part == pytest.approx(0.1)
    assert step == 2
