"""Each grader's verdicts, the faults of items, and hostile answers."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from loco.contracts.errors import DataError
from loco.grading.eval_items import EvalItem, eval_items, load_eval_items, written
from loco.grading.graders import LONGEST_ANSWER, grade

GUARD = Path(__file__).parents[2] / "adapters" / "math" / "guard_general.jsonl"
CITIES = {"A": "Paris", "B": "Rome", "C": "New York", "D": "York"}


def item(grader: Any = None, answer: str = "", **more: Any) -> EvalItem:
    fields = {"id": "1", "question": "?", "answer": answer, "grader": grader, **more}
    return EvalItem.model_validate(fields)


def test_an_item_without_a_grader_is_judged_as_a_number_else_as_words() -> None:
    assert grade(item(answer="42"), "It is 42.") == (True, "42", None)
    assert grade(item(answer="42"), "It is 41.") == (False, "41", "not 42")
    assert grade(item(answer="42"), "none") == (False, None, "gives no number")
    assert grade(item(answer="Paris"), "The answer is paris.") == (True, "paris", None)
    assert grade(item(answer="Paris"), "The answer is Rome.") == (False, "rome", "not Paris")


@pytest.mark.parametrize(
    ("tolerance", "text", "correct"),
    [(0, "9.8", False), (0.05, "9.8", True), (0.05, "9.7", False), (0, "9.81", True)],
)
def test_a_tolerance_is_a_difference(tolerance: float, text: str, correct: bool) -> None:
    grader = {"kind": "numeric", "tolerance": tolerance}
    assert grade(item(grader, "9.81"), text).correct is correct


def test_words_may_have_other_forms() -> None:
    grader = {"kind": "words", "also": ["the Netherlands", "NL"]}
    assert grade(item(grader, "Holland"), "The Netherlands").correct
    assert grade(item(grader, "Holland"), "nl.").correct
    assert not grade(item(grader, "Holland"), "Belgium").correct


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(B)", "B"),
        ("B) Rome", "B"),
        ("B. Rome, because Paris is in France.", "B"),
        ("**B**", "B"),
        ("**B: Rome**", "B"),
        (r"\boxed{B}", "B"),
        (r"\boxed{\text{B}}", "B"),
        ("The answer is B.", "B"),
        ("The correct answer is (B) Rome.", "B"),
        ("The answer is Rome.", "B"),
        ("The answer is not A, it is B.", "B"),
        ("It isn't Paris, it is Rome.", "B"),
        ("Rome", "B"),
        ("rome!", "B"),
        ("The capital of Italy is Rome.", "B"),
        ("A city in Italy is Rome.", "B"),
        ("Paris is in France, so I choose B.\n\nB", "B"),
        ("I think of option A first. A or B?\nAnswer: B", "B"),
        ("New York", "C"),
        ("York", "D"),
        ("<think>A? C?</think>B", "B"),
        ("The answer is A or B.", None),
        ("A) Paris\nB) Rome\nC) New York", None),
        ("Paris or Rome", None),
        ("Berlin", None),
        ("I do not know.", None),
        ("A", "A"),
        ("Option A is right.", "A"),
    ],
)
def test_the_option_is_found_however_it_is_named(text: str, label: str | None) -> None:
    assert grade(item({"kind": "choice", "options": CITIES}, "B"), text).extracted == label


def test_an_option_may_be_given_and_named_by_its_text() -> None:
    named = item({"kind": "choice", "options": CITIES}, "rome")
    assert grade(named, "The answer is B.") == (True, "B", None)
    yes_no = item({"kind": "choice", "options": ["yes", "no"]}, "yes")
    assert grade(yes_no, "Yes, because there is no rain.").correct
    assert grade(yes_no, "No, yes would be wrong.") == (False, "no", "not yes")


@pytest.mark.parametrize(
    ("options", "text", "correct"),
    [
        ({"all": ["blue", "whale"]}, "The **blue** Whale.", True),
        ({"all": ["blue", "whale"]}, "A blue fish.", False),
        ({"all": ["no"]}, "I know.", False),
        ({"all": ["no"], "whole_words": False}, "I know.", True),
        ({"any": ["H2O", "H₂O"]}, "Water is H₂O", True),
        ({"any": ["four", "4"]}, "four legs", True),
        ({"any": ["four", "4"]}, "14 legs", False),
        ({"all": ["NASA"], "ignore_case": False}, "nasa", False),
        ({"all": ["NASA"], "ignore_case": False}, "NASA!", True),
        ({"all": ["Paris"], "none": ["London"]}, "Paris, not London", False),
        ({"all": ["don't know"]}, "I don’t  know", True),  # noqa: RUF001
        ({"all": ["C++"]}, "I like C++.", True),
        ({"all": ["Paris"]}, "<think>Paris</think>Rome", False),
    ],
)
def test_phrases(options: dict[str, Any], text: str, correct: bool) -> None:
    assert grade(item({"kind": "contains", **options}), text).correct is correct


@pytest.mark.parametrize(
    ("options", "text", "correct"),
    [
        ({"pattern": r"\d{4}-\d{2}-\d{2}"}, " 2024-02-29\n", True),
        ({"pattern": r"\d{4}-\d{2}-\d{2}"}, "It is 2024-02-29", False),
        ({"pattern": r"\d{4}-\d{2}-\d{2}", "where": "search"}, "It is 2024-02-29", True),
        ({"pattern": r"\d{4}-\d{2}-\d{2}", "where": "last_line"}, "It is:\n2024-02-29", True),
        ({"pattern": "[A-Z ]+"}, "HELLO you", False),
        ({"pattern": "[A-Z ]+", "ignore_case": True}, "HELLO you", True),
        ({"pattern": r"\p{Lu}\p{L}+"}, "Émile", True),
        ({"pattern": "a\nb"}, "<think>x</think>\na\nb", True),
    ],
)
def test_patterns(options: dict[str, Any], text: str, correct: bool) -> None:
    assert grade(item({"kind": "regex", **options}), text).correct is correct


@pytest.mark.parametrize(
    ("options", "text", "correct"),
    [
        ({"expected": {"a": 1}}, '{"a": 1}', True),
        ({"expected": {"a": 1}}, '{"a": 1.0}', True),
        ({"expected": {"a": 1}}, '{"a": true}', False),
        ({"expected": {"a": 1}}, '{"a": "1"}', False),
        ({"expected": {"a": 1}}, '{"a": 1, "b": 2}', False),
        ({"expected": {"a": 1}, "subset": True}, '{"a": 1, "b": 2}', True),
        ({"expected": {"a": 1}}, 'Here it is:\n```json\n{"a": 1}\n```\nDone {x}.', True),
        ({"expected": {"a": 1}}, 'It is {"a": 1}, as {you} see.', True),
        ({"expected": {"a": 1}, "only": True}, '```json\n{"a": 1}\n```', False),
        ({"expected": ["b", "a"]}, '["a", "b"]', False),
        ({"expected": ["b", "a"], "any_order": True}, '["a", "b"]', True),
        ({"expected": ["a", "a"], "any_order": True}, '["a", "b"]', False),
        ({"expected": {"a": "Ada"}}, '{"a": "ada"}', False),
        ({"expected": {"a": "Ada"}, "ignore_case": True}, '{"a": "ada"}', True),
        ({"expected": None}, "null", True),
        ({"expected": None}, "0", False),
        ({"types": {"name": "string", "age": "integer"}}, '{"name": "x", "age": 3}', True),
        ({"types": {"name": "string", "age": "integer"}}, '{"name": "x", "age": true}', False),
        ({"types": {"name": "string"}}, '["name"]', False),
        ({"types": {"name": "string"}}, "{}", False),
        ({"types": {"a": "number"}, "expected": {"b": 1}, "subset": True}, '{"a":1,"b":1}', True),
        ({"expected": {"a": 1}}, "{'a': 1}", False),
        ({"expected": {"a": 1}}, '{"a": NaN}', False),
    ],
)
def test_json_values(options: dict[str, Any], text: str, correct: bool) -> None:
    assert grade(item({"kind": "json", **options}), text).correct is correct


def test_the_expected_json_may_be_the_answer() -> None:
    assert grade(item("json", '{"a": [1, 2]}'), '{"a": [1, 2]}').correct
    graded = grade(item("json", '{"a": [1, 2]}'), '{"a": [2]}')
    assert graded == (False, '{"a": [2]}', 'is not {"a": [1, 2]}')


def test_code_is_run() -> None:
    double = item({"kind": "code", "entry": "f", "cases": [{"args": [2], "expected": 4}]})
    assert grade(double, "```python\ndef f(x):\n    return 2 * x\n```").correct
    graded = grade(double, "```python\ndef f(x):\n    return 3 * x\n```")
    assert not graded.correct
    assert graded.why


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"grader": "guess", "answer": "1"}, "grader.kind: is one of numeric, words, choice"),
        ({"grader": {"options": ["a"]}, "answer": "1"}, "grader.kind: is one of numeric"),
        ({"grader": {"kind": "choice", "options": []}, "answer": "1"}, "grader.options"),
        ({"grader": {"kind": "choice", "options": {"A": "x"}}, "answer": "A"}, "grader.options"),
        (
            {"grader": {"kind": "choice", "options": ["a", "A"]}, "answer": "A"},
            "grader.options: 'a' appears twice",
        ),
        (
            {"grader": {"kind": "choice", "options": ["a", "b"]}, "answer": "c"},
            "answer: 'c' is not one of the grader's options",
        ),
        ({"grader": {"kind": "choice", "options": ["a", "b"]}}, "answer: missing or empty"),
        ({"grader": {"kind": "contains"}}, "grader: name at least one phrase"),
        ({"grader": {"kind": "contains", "all": [" "]}}, "grader.all.0"),
        ({"grader": {"kind": "contains", "every": ["a"]}}, "grader.every: Extra inputs"),
        ({"grader": {"kind": "regex", "pattern": "("}}, "grader.pattern: missing )"),
        ({"grader": {"kind": "regex", "pattern": "(?=a)"}}, "grader.pattern: invalid perl"),
        (
            {"grader": {"kind": "regex", "pattern": "((a{30}){30}){30}"}},
            "grader.pattern: invalid repetition size",
        ),
        ({"grader": {"kind": "regex", "pattern": r"\p{L}{1,40}"}}, "grader.pattern: compiles to"),
        ({"grader": {"kind": "regex", "pattern": "a" * 1001}}, "grader.pattern"),
        ({"grader": {"kind": "code"}}, "grader: needs `cases` or `asserts`"),
        ({"grader": {"kind": "code", "asserts": ["f("]}}, "grader.asserts: assert 1 is not"),
        ({"grader": {"kind": "numeric"}, "answer": "abc"}, "answer: 'abc' is not a number"),
        (
            {"grader": {"kind": "numeric", "tolerance": -1}, "answer": "1"},
            "grader.tolerance: Input should be greater",
        ),
        ({"grader": "numeric", "answer": "9" * 5000}, "answer: "),
        ({"grader": "json", "answer": "{"}, "answer: '{' is not JSON"),
        ({"grader": "json"}, "answer: missing or empty"),
        ({}, "answer: missing or empty"),
        ({"answer": "1", "system": ""}, "system: "),
    ],
)
def test_a_wrong_grader_names_file_line_field_and_fix(
    line: dict[str, Any], message: str, tmp_path: Path
) -> None:
    file = tmp_path / "guard.jsonl"
    good = {"id": "0", "question": "?", "answer": "1"}
    rows = [good, {"id": "1", "question": "?", **line}]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(DataError) as caught:
        load_eval_items(file)
    assert caught.value.message.startswith(f"guard.jsonl, line 2: {message}")
    assert caught.value.hint


@pytest.mark.parametrize("depth", [21, 100_000])
def test_a_deep_json_value_is_refused_when_the_file_is_read(depth: int, tmp_path: Path) -> None:
    file = tmp_path / "guard.jsonl"
    deep = "[" * depth + "]" * depth
    file.write_text(
        f'{{"id": "1", "question": "?", "grader": {{"kind": "json", "expected": {deep}}}}}'
    )
    with pytest.raises(DataError, match=r"guard\.jsonl, line 1"):
        load_eval_items(file)


GRADERS = {
    "numeric": item("numeric", "42"),
    "words": item("words", "Paris"),
    "choice": item({"kind": "choice", "options": {"A": "aa", "B": "no", "C": "aaa aaa"}}, "B"),
    "contains": item({"kind": "contains", "all": ["a" * 499 + "b"]}),
    "regex": item({"kind": "regex", "pattern": "(x+x+)+y|(a|aa)+z", "where": "search"}),
    "json": item("json", '{"a": 1}'),
}
HOSTILE = [
    "9", "1 ", "1,111", "answer ", "the answer is ", "**a", "*", "\\boxed{", "\\frac{", "\\frac{1}",
    "<think>", "\\text{", "a", "A ", "(A)\n", "A or ", "not ", "[", "{", '{"a":', "```\n", "= ", "=1",
    "1/", "1/0", "\n", "1.", "- ", "$ ", "\ufdfa", "½", "\ud800", "1% ", '"', "x", "aa", "\0",
]  # fmt: skip


@pytest.mark.parametrize("name", GRADERS)
def test_no_answer_takes_long_or_raises(name: str) -> None:
    for part in HOSTILE:
        for text in (part * (20_000 // len(part)), "1/" + part * 1000):
            began = time.process_time()
            graded = grade(GRADERS[name], text)
            assert time.process_time() - began < 2, repr(part)
            assert not graded.correct, repr(part)
            assert len(graded.extracted or "") <= 200


def test_an_answer_too_long_to_read_is_wrong() -> None:
    assert grade(GRADERS["numeric"], "42 " * LONGEST_ANSWER) == (
        False, None, "longer than 50,000 characters",
    )  # fmt: skip
    long_thought = "<think>" + "x" * 3_000_000 + "</think>42"
    assert grade(GRADERS["numeric"], long_thought).correct


def test_a_huge_number_is_no_answer() -> None:
    assert grade(item(answer="42"), "9" * 5000 + " 42").correct
    assert not grade(item(answer="42"), "9" * 5000).correct
    assert grade(item("json", '{"a": 1}'), '{"a": ' + "9" * 5000 + "}").why == "contains no JSON"
    assert not grade(item("json", '{"a": 1}'), '{"a": 1e999}').correct


@pytest.mark.parametrize("mark", ["```", "`", "**", " ** ` "])
@pytest.mark.parametrize("whole_words", [True, False])
def test_a_phrase_of_nothing_but_marks_is_looked_up_as_written(
    mark: str, whole_words: bool
) -> None:
    options = {"kind": "contains", "whole_words": whole_words}
    wanted = item({**options, "all": [mark]})
    assert grade(wanted, f"So: {mark} x").correct
    assert grade(wanted, "So: x").why == f"does not contain {mark!r}"
    unwanted = item({**options, "all": ["x"], "none": [mark]})
    assert grade(unwanted, "So: x").correct
    assert grade(unwanted, f"{mark.strip()}\nx\n").why == f"has {mark!r}"
    assert grade(item({**options, "any": [mark, "y"]}), "y").correct


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            {"grader": {"kind": "choice", "options": ["**", "B"]}, "answer": "B"},
            "grader.options: '",
        ),
        (
            {"grader": {"kind": "choice", "options": {"A": "`x`", "B": "x"}}, "answer": "B"},
            "grader.options: '`x`' and 'x' are the same",
        ),
        (
            {"grader": {"kind": "words", "also": ["…", "b"]}, "answer": "a"},
            "grader.also: '…' has",
        ),
        ({"grader": "words", "answer": "?!"}, "answer: '?!' has no word"),
        ({"answer": "**"}, "answer: '**' has no word"),
    ],
)
def test_what_would_be_found_in_any_answer_is_refused(
    line: dict[str, Any], message: str, tmp_path: Path
) -> None:
    file = tmp_path / "set.jsonl"
    file.write_text(json.dumps({"id": "1", "question": "?", **line}))
    with pytest.raises(DataError) as caught:
        load_eval_items(file)
    assert caught.value.message.startswith(f"set.jsonl, line 1: {message}")


ROWS = [json.loads(line) for line in (GUARD.read_text().splitlines())]
ROWS += [
    {"id": "t", "question": "?", "grader": {"kind": "json", "types": {"name": "string"}}},
    {"id": "n", "question": "?", "grader": {"kind": "json", "expected": None}},
    {"id": "j", "question": "?", "grader": "json", "answer": '{"name": "x"}'},
    {"id": "g", "question": "?", "answer": "so it is\n#### 12"},
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row["id"]))
def test_a_problem_is_the_same_after_it_was_written_and_read(
    row: dict[str, Any], tmp_path: Path
) -> None:
    (first,) = eval_items([(1, row)], "set")
    file = tmp_path / "set.jsonl"
    file.write_text(json.dumps(written(first)) + "\n")
    (again,) = load_eval_items(file)
    assert again == first
    for text in ('{"name": "Ada"}', "null", '{"name": "x"}', "12", "Paris", first.answer or "?"):
        assert grade(again, text) == grade(first, text)
    if row["id"] == "t":
        assert grade(again, '{"name": "Ada"}').correct
