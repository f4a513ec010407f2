"""Any bytes as a data file: rows or our error, which names the line; never another exception."""

import json
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loco.contracts.errors import DataError
from loco.datasets.overlap import OverlapIndex, calculation, normalise
from loco.grading.eval_items import EvalItem, eval_items, load_eval_items, parse_line, read_lines
from loco_worker.sources.questions import question_of
from loco_worker.sources.rows import Empty, Malformed, Row, row_of

TEXT = st.text(st.characters(), max_size=60) | st.text(string.printable, max_size=60)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
ROLES = st.sampled_from(["system", "user", "assistant", "human", "gpt", "tool", ""]) | JSON
TURN = st.fixed_dictionaries(
    {}, optional={"role": ROLES, "from": ROLES, "content": JSON, "value": TEXT}
)
ANSWER = TEXT | st.builds("{}\n#### {}".format, TEXT, TEXT | st.integers())
RECORD = JSON | st.fixed_dictionaries(
    {},
    optional={
        "id": JSON,
        "question": TEXT | JSON,
        "answer": ANSWER | JSON,
        "kind": TEXT,
        "system": JSON,
        "grader": JSON
        | st.sampled_from(["numeric", "words", "choice", "json", "regex", "code", ""]),
        "conversations": st.lists(TURN, max_size=5) | JSON,
        "messages": st.lists(TURN, max_size=5) | JSON,
    },
)
#: Lines that a JSON reader stumbles on in its own ways.
HOSTILE = [
    b"9" * 5000,
    b'{"question": "a", "answer": ' + b"9" * 5000 + b"}",
    b'{"id": -' + b"9" * 400 + b', "question": "a", "answer": 1e999}',
    b'{"question": "\\ud800", "answer": "\\udfff 1"}',
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b"NaN",
    b'{"question": "a", "answer": NaN}',
    b'\xef\xbb\xbf{"question": "a", "answer": "1"}',
    b"\xff\xfe{",
    b'{"question": "a", "answer": "1"}\r',
    b"\x00",
    b'{"question": "a", "answer": "#### ' + "\u0661\u00b2\u00bd".encode() + b'"}',
    b'{"question": "\xef\xb7\xba", "answer": "1/0"}',
]


@given(record=RECORD)
@example(record={"question": "\ud800", "answer": "#### 1"})
@example(record={"question": "q", "answer": "#### " + "9" * 5000})
@pytest.mark.parametrize("reader", [row_of, question_of])
def test_any_record_is_a_row_or_malformed(reader, record):
    try:
        row = reader(3, record)
    except (Malformed, Empty):
        return
    assert isinstance(row, Row)
    json.dumps(row.conversations).encode()
    assert row.number == 3
    assert all(isinstance(turn["content"], str) for turn in row.conversations)


@given(line=st.binary(max_size=200) | JSON.map(lambda v: json.dumps(v).encode()))
def test_any_line_is_json_or_our_error(line, tmp_path_factory):
    read(line, tmp_path_factory)


@pytest.mark.parametrize("line", HOSTILE[:2], ids=["number", "answer"])
def test_numbers_too_long_for_python(line, tmp_path_factory):
    read(line, tmp_path_factory)


@pytest.mark.parametrize("line", HOSTILE[2:], ids=range(2, len(HOSTILE)))
def test_hostile_lines(line, tmp_path_factory):
    read(line, tmp_path_factory)


def read(line, tmp_path_factory):
    """Reads a file of one line as prepare does, and as an eval set."""
    file = tmp_path_factory.getbasetemp() / "line.jsonl"
    file.write_bytes(line)
    try:
        for number, text in enumerate(read_lines(file), start=1):
            if text.strip():
                try:
                    row_of(number, parse_line(file, number, text))
                except (Malformed, Empty):
                    continue
    except DataError as error:
        assert "line" in error.message
    try:
        assert all(isinstance(item, EvalItem) for item in load_eval_items(file))
    except DataError as error:
        assert "line" in error.message or "no problems" in error.message


@given(record=RECORD)
@example(record={"question": "q", "answer": "\ud800"})
def test_any_record_is_an_eval_item_or_our_error(record):
    try:
        (item,) = eval_items([(1, record)], "set.jsonl")
    except DataError as error:
        assert error.message.startswith("set.jsonl, line 1")
        return
    (again,) = eval_items([(1, item.model_dump(exclude_unset=True))], "set.jsonl")
    assert again == item


@given(
    questions=st.lists(TEXT | st.text("0123456789+-*/()=x .,", max_size=40), max_size=5), ask=TEXT
)
def test_every_question_overlaps_itself(questions, ask):
    index = OverlapIndex(8)
    for number, question in enumerate(questions):
        index.add(f"set/{number}", question)
    for question in questions:
        assert index.match(question) is not None
        normalise(question)
        calculation(question)
    index.match(ask)
