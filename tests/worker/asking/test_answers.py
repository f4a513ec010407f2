"""Answers kept on disk: found again only where nothing differs, whatever happened to the file."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from loco.serving.host import Answer
from loco_worker.asking.answers import AnswerStore

OPTIONS = {"temperature": 0, "num_predict": 128}
GIVEN = Answer("It is 7.\nThe answer is 7 — sieben", "", "stop", 9, 20, 0.5, 0.4)


def store(folder: Path, version: str = "0.33", **options: int) -> AnswerStore:
    return AnswerStore(folder, server_version=version, options={**OPTIONS, **options})


def test_an_answer_is_found_by_the_next_run(tmp_path: Path) -> None:
    store(tmp_path / "a").keep("sha-1", "What is 3 + 4?", None, GIVEN)
    assert store(tmp_path / "a").find("sha-1", "What is 3 + 4?", None) == GIVEN


def test_whatever_decides_an_answer_tells_it_apart(tmp_path: Path) -> None:
    store(tmp_path).keep("sha-1", "q", None, GIVEN)
    assert store(tmp_path).find("sha-2", "q", None) is None
    assert store(tmp_path).find("sha-1", "r", None) is None
    assert store(tmp_path).find("sha-1", "q", "Be brief.") is None
    assert store(tmp_path, "0.34").find("sha-1", "q", None) is None
    assert store(tmp_path, num_predict=256).find("sha-1", "q", None) is None


@pytest.mark.parametrize(
    "answer",
    [
        GIVEN._replace(text=" \n"),
        GIVEN._replace(done_reason=""),
        GIVEN._replace(done_reason="load"),
    ],
)
def test_nothing_empty_or_failed_is_kept(tmp_path: Path, answer: Answer) -> None:
    store(tmp_path).keep("sha-1", "q", None, answer)
    assert store(tmp_path).find("sha-1", "q", None) is None


def test_a_model_without_a_digest_is_asked_again(tmp_path: Path) -> None:
    store(tmp_path).keep("", "q", None, GIVEN)
    assert store(tmp_path).find("", "q", None) is None


def test_a_cut_last_line_spoils_no_other(tmp_path: Path) -> None:
    for question in ("a", "b"):
        store(tmp_path).keep("sha-1", question, None, GIVEN)
    [file] = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-30])
    assert store(tmp_path).find("sha-1", "a", None) == GIVEN
    assert store(tmp_path).find("sha-1", "b", None) is None
    store(tmp_path).keep("sha-1", "c", None, GIVEN)
    found = store(tmp_path)
    assert [found.find("sha-1", q, None) is not None for q in "abc"] == [True, False, True]


def test_lines_of_another_release_are_passed_over(tmp_path: Path) -> None:
    store(tmp_path).keep("sha-1", "a", None, GIVEN)
    [file] = tmp_path.iterdir()
    file.write_text('{"key": "x", "words": 3}\n[1]\n{}\n' + file.read_text())
    assert store(tmp_path).find("sha-1", "a", None) == GIVEN


def test_processes_may_write_at_the_same_time(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from loco_worker.asking.answers import AnswerStore\n"
        "from loco.serving.host import Answer\n"
        "store = AnswerStore(Path(sys.argv[1]), server_version='0.33', options={})\n"
        "for n in range(200):\n"
        "    store.keep('sha', f'{sys.argv[2]} {n}', None, Answer('x' * 5000, '', 'stop', 1, 1, 1.0))\n"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path), name]) for name in "ab"
    ]
    assert [w.wait(60) for w in writers] == [0, 0]
    found = AnswerStore(tmp_path, server_version="0.33", options={})
    assert all(found.find("sha", f"{who} {n}", None) for who in "ab" for n in range(200))


def test_the_answers_not_used_for_longest_go_first(tmp_path: Path) -> None:
    for n in range(4):
        store(tmp_path).keep(f"sha-{n}", "q", None, GIVEN)
    size = sum(p.stat().st_size for p in tmp_path.iterdir()) // 4
    for age, n in enumerate((2, 0, 3, 1)):
        path = store(tmp_path)._file(f"sha-{n}")
        os.utime(path, (1_000_000 + age, 1_000_000 + age))
    store(tmp_path).find("sha-2", "q", None)  # the oldest, but used now
    store(tmp_path).prune(most_bytes=2 * size)
    found = store(tmp_path)
    assert [n for n in range(4) if found.find(f"sha-{n}", "q", None)] == [1, 2]


def test_the_answers_about_to_be_used_stay_however_many_there_are(tmp_path: Path) -> None:
    for age, n in enumerate((0, 1, 2)):
        store(tmp_path).keep(f"sha-{n}", "q", None, GIVEN)
        os.utime(store(tmp_path)._file(f"sha-{n}"), (1_000_000 + age, 1_000_000 + age))
    size = store(tmp_path)._file("sha-0").stat().st_size
    store(tmp_path).prune("sha-0", "sha-never-asked", most_bytes=size)
    found = store(tmp_path)
    assert [n for n in range(3) if found.find(f"sha-{n}", "q", None)] == [0, 2]
    store(tmp_path).prune("sha-2", most_bytes=0)  # alone above the limit
    found = store(tmp_path)
    assert [n for n in range(3) if found.find(f"sha-{n}", "q", None)] == [2]
