"""`loco data`, and `loco submit --data`: rows from a laptop to a job in one step."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.redis


def test_rows_go_up_are_shown_and_deleted(loco, tmp_path: Path) -> None:
    (tmp_path / "units.csv").write_text("Frage,Antwort\nHow far is a mile?,1.6 km\n")
    told = loco("data", "push", "units.csv")
    assert told.returncode == 2
    assert "--map question=Frage --map answer=Antwort" in told.stderr
    named = ("--map", "question=Frage", "--map", "answer=Antwort")
    pushed = loco("data", "push", "units.csv", *named)
    assert pushed.returncode == 0, pushed.stderr
    assert "1 rows of question-answer, CSV" in pushed.stdout
    assert "--data units" in pushed.stderr
    assert "units" in loco("data", "list").stdout
    assert "assistant: 1.6 km" in loco("data", "show", "units").stdout
    assert loco("data", "rm", "units").returncode == 0
    assert json.loads(loco("data", "list", "--json").stdout) == []


def test_submit_uploads_a_file_once_and_keeps_some_rows_to_measure_on(
    loco, client, tmp_path: Path
) -> None:
    rows = [{"question": f"How far are {n} miles?", "answer": f"{n} x 1.6 km"} for n in range(250)]
    (tmp_path / "units.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for words in ((), ("--set", "prepare.examples=50")):
        told = loco(
            *("submit", "math", "--profile", "tiny", "--data", "units.jsonl", "--json"), *words
        )
        assert told.returncode == 0, told.stderr
    few, whole = (client.job(entry.id).spec.prepare for entry in client.jobs())
    [only] = client.datasets()
    assert few.source.dataset == whole.source.dataset == only.id
    assert (whole.examples, few.examples) == (225, 50)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--data", "nothing.jsonl"), "error: No file nothing.jsonl in "),
        (("--map", "question=Frage"), "--map needs --data"),
        (("--data", "units", "--set", "prepare.source={kind: arithmetic}"), "both choose the rows"),
    ],
)
def test_what_cannot_be_meant_is_said(loco, words: tuple[str, ...], said: str) -> None:
    told = loco("submit", "math", "--profile", "tiny", *words)
    assert told.returncode == 2
    assert said in told.stderr


def test_an_adapter_that_is_not_there_is_made_from_rows(loco) -> None:
    told = loco("submit", "units")
    assert told.returncode == 2
    assert "No adapter 'units'. Adapters here: " in told.stderr
    assert "`loco new units --data rows.csv`, then `loco adapters push units`" in told.stderr
