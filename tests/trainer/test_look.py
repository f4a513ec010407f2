"""Rows are shown as train sees them: the same tokens, the same ones trained on."""

import subprocess
import sys

from loco.contracts.looks import MOST_SHOWN, TOO_MUCH
from loco_trainer.data import rows
from loco_trainer.look import _looked_at


class Letters:
    """A tokenizer of characters."""

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


class Plain:
    """A template without marks."""

    tokenizer = Letters()


def test_what_is_shown_is_what_is_trained_and_what_is_cut_is_told(monkeypatch) -> None:
    question, answer = [ord(c) for c in "1 km?"], [ord(c) for c in "1000 m."]
    encoded = rows.Row(question + answer, [rows.IGNORED] * 5 + answer)
    monkeypatch.setattr(rows, "encode", lambda messages, template: [encoded])
    row = {
        "line": 7,
        "conversations": [
            {"role": "user", "content": "1 km?"},
            {"role": "assistant", "content": "1000 m."},
        ],
    }
    whole = _looked_at(row, Plain(), 64, shown=True)
    assert [(p.text, p.trained) for p in whole.pieces] == [("1 km?", False), ("1000 m.", True)]
    assert (whole.line, whole.tokens, whole.trained, whole.cut) == (7, 12, 7, False)
    cut = _looked_at(row, Plain(), 9, shown=True)
    assert (cut.trained, cut.cut, cut.dropped) == (4, True, False)
    assert [(p.text, p.trained) for p in cut.pieces] == [("1 km?", False), ("1000", True)]
    lost = _looked_at(row, Plain(), 4, shown=True)
    assert (lost.trained, lost.dropped, lost.pieces) == (0, True, ())
    broken = _looked_at({"line": 8, "conversations": [{"role": "user"}]}, Plain(), 64, shown=True)
    assert broken.problem == "a turn needs role and content"


def test_what_is_shown_of_a_row_has_an_end_however_often_it_is_told(monkeypatch) -> None:
    history = [ord("h")] * 40_000
    told = [rows.Row([*history, n], [rows.IGNORED] * 40_000 + [n]) for n in range(48, 73)]
    monkeypatch.setattr(rows, "encode", lambda messages, template: told)
    row = {"line": 1, "conversations": [{"role": "user", "content": "h"}]}
    seen = _looked_at(row, Plain(), 10**6, shown=True)
    assert sum(len(piece.text) for piece in seen.pieces) == MOST_SHOWN
    assert seen.pieces[-1].text.endswith("h…")
    assert seen.trained == 25


def test_rows_that_take_all_memory_end_the_look_alone() -> None:
    code = (
        "import loco_trainer.look as program; "
        "program.look = lambda asked: (program._bound(), bytearray(3 * 2**30)); "
        "raise SystemExit(program.main())"
    )
    ended = subprocess.run([sys.executable, "-c", code], input=b"{}", timeout=60, check=False)
    assert ended.returncode == TOO_MUCH
