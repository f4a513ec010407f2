"""What files of rows mean: JSONL, CSV and Parquet, and what is said of rows that mean nothing."""

import json
from pathlib import Path
from typing import Any

import pytest

from loco.contracts.datasets import Format, Layout
from loco.contracts.errors import DataError
from loco.datasets import formats
from loco.datasets.formats import Problem, read, survey
from loco.datasets.rows import Row

ASKED = {"role": "user", "content": "How far is a mile?"}
SAID = {"role": "assistant", "content": "1.6 km"}


def saved(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def jsonl(folder: Path, *rows: Any) -> Path:
    return saved(folder, "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def only(path: Path, **options: Any) -> Row:
    [row] = read(path, **options)
    assert isinstance(row, Row), row
    return row


@pytest.mark.parametrize(
    ("record", "layout"),
    [
        ({"messages": [ASKED, SAID]}, Layout.CHAT),
        (
            {
                "conversations": [
                    {"from": "human", "value": ASKED["content"]},
                    {"from": "gpt", "value": SAID["content"]},
                ]
            },
            Layout.CHAT,
        ),
        ({"question": ASKED["content"], "answer": SAID["content"]}, Layout.QUESTION_ANSWER),
        ({"prompt": ASKED["content"], "completion": SAID["content"]}, Layout.QUESTION_ANSWER),
        ({"instruction": ASKED["content"], "output": SAID["content"]}, Layout.QUESTION_ANSWER),
        ({"Question ": ASKED["content"], "ANSWER": SAID["content"]}, Layout.QUESTION_ANSWER),
        ({"instruction": ASKED["content"], "input": "", "output": "1.6 km"}, Layout.ALPACA),
    ],
)
def test_every_layout_becomes_the_same_chat(
    record: dict[str, Any], layout: Layout, tmp_path: Path
) -> None:
    row = only(jsonl(tmp_path, record))
    assert (row.layout, row.turns) == (layout, [ASKED, SAID])


def test_alpacas_input_follows_the_instruction(tmp_path: Path) -> None:
    row = only(jsonl(tmp_path, {"instruction": "Convert.", "input": "1 mile", "output": "1.6 km"}))
    assert row.question == "Convert.\n\n1 mile"


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": ASKED["content"], "chosen": "1.6 km", "rejected": "2 km"},
        {"prompt": [ASKED], "chosen": [SAID], "rejected": [{**SAID, "content": "2 km"}]},
        {"chosen": [ASKED, SAID], "rejected": [ASKED, {**SAID, "content": "2 km"}]},
    ],
)
def test_pairs_are_a_prompt_and_two_answers(record: dict[str, Any], tmp_path: Path) -> None:
    row = only(jsonl(tmp_path, record))
    assert row.layout is Layout.PAIRS
    assert row.turns == [ASKED, SAID]
    assert row.rejected == {"role": "assistant", "content": "2 km"}


def test_a_mapping_names_the_columns(tmp_path: Path) -> None:
    path = saved(tmp_path, "rows.csv", "Frage;Antwort\nHow far is a mile?;1.6 km\n")
    row = only(path, mapping={"question": "Frage", "answer": "Antwort"})
    assert row.turns == [ASKED, SAID]


def test_a_mapping_wins_over_a_column_of_that_name(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"answer": "wrong", "better": "right", "question": "Which?"})
    assert only(path, mapping={"answer": "better"}).answer == "right"


def test_unknown_columns_are_named_with_a_mapping_to_copy(tmp_path: Path) -> None:
    path = saved(tmp_path, "rows.csv", "Frage,Antwort\na,b\n")
    with pytest.raises(DataError, match="Frage, Antwort") as caught:
        list(read(path))
    assert "--map question=Frage --map answer=Antwort" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("mapping", "hint"),
    [({"questoin": "a"}, "question"), ({"question": "qestion"}, "question=question")],
)
def test_a_misspelt_mapping_says_what_was_meant(
    mapping: dict[str, str], hint: str, tmp_path: Path
) -> None:
    path = jsonl(tmp_path, {"question": "a", "answer": "b"})
    with pytest.raises(DataError, match="mapping") as caught:
        list(read(path, mapping=mapping))
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize("sign", [",", ";", "\t", "|"])
def test_csv_knows_its_separator_and_guesses_no_types(sign: str, tmp_path: Path) -> None:
    rows = [
        ["id", "question", "answer"],
        ["1", "Which agent, or; two|?", "007"],
        ["2", "x", "1.10"],
    ]
    content = "\n".join(sign.join(f'"{cell}"' for cell in row) for row in rows)
    found = list(read(saved(tmp_path, "rows.csv", content)))
    assert [row.answer for row in found if isinstance(row, Row)] == ["007", "1.10"]


def test_csv_of_excel_has_a_mark_quoted_newlines_and_empty_lines(tmp_path: Path) -> None:
    content = '\ufeffquestion,answer\r\n"Two\r\nlines, ""quoted""",yes\r\n,\r\n\r\nAnother,no\r\n'
    rows = list(read(saved(tmp_path, "rows.csv", content)))
    assert [(row.line, row.question) for row in rows if isinstance(row, Row)] == [
        (2, 'Two\r\nlines, "quoted"'),
        (6, "Another"),
    ]


def test_excels_unicode_text_is_read(tmp_path: Path) -> None:
    content = "question\tanswer\nGröße?\tgroß\n".encode("utf-16")
    assert only(saved(tmp_path, "rows.txt", content)).answer == "groß"


def test_rows_that_cannot_be_used_are_named_by_line_and_fix(tmp_path: Path) -> None:
    path = saved(
        tmp_path,
        "rows.jsonl",
        '{"question": "a", "answer": "b"}\n\n{"question": "a"}\n{"question": \n'
        '{"question": "a", "answer": ""}\n{"question": "a", "answer": true}\n[1]\n',
    )
    problems = [entry for entry in read(path) if isinstance(entry, Problem)]
    assert [problem.line for problem in problems] == [3, 4, 5, 6, 7]
    assert all(problem.what and problem.fix for problem in problems)
    found = survey(path, problems=2)
    assert (found.rows, found.bad, len(found.problems)) == (1, 5, 2)


def test_a_cell_too_many_says_what_to_quote(tmp_path: Path) -> None:
    path = saved(tmp_path, "rows.csv", "question,answer\nWhy, really?,Because\nHow?,So\n")
    problem, row = read(path)
    assert isinstance(problem, Problem)
    assert isinstance(row, Row)
    assert "line 2: 3 cells under 2 columns" in str(problem)
    assert "double quotes" in problem.fix


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.csv", 'question,answer\n"a,b\nc,d\n', "line 2 is not closed"),
        ("rows.csv", "question,answer\n", "no rows"),
        ("rows.csv", "", "no rows"),
        ("rows.csv", "question,question,answer\na,b,c\n", "two columns 'question'"),
        ("rows.jsonl", "question,answer\na,b\n", "line 1, column 1: not JSON"),
        ("rows.jsonl", '[{"question": "a", "answer": "b"}]', "JSON array"),
        ("rows.jsonl", b'{"question": "a", "answer": "\xe4"}\n', "not UTF-8"),
        ("rows.csv", "question,answer\nGröße,b\n".encode("latin-1"), "not UTF-8"),
        ("rows.xlsx", b"PK\x03\x04rest", "Excel"),
        ("rows.parquet", b"question,answer", "not a Parquet"),
        ("rows.csv", "question,answer\n,x\n", "None of the 1 rows"),
    ],
)
def test_a_file_that_is_broken_as_a_whole_says_how(
    name: str, content: str | bytes, said: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=said) as caught:
        survey(saved(tmp_path, name, content))
    assert caught.value.hint


def test_what_has_no_end_is_not_read_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "LONGEST_ROW", 1000)
    long = '{"question": "' + "a" * 5000
    with pytest.raises(DataError, match="longer than 1,000"):
        survey(saved(tmp_path, "rows.jsonl", long))
    with pytest.raises(DataError, match="not closed"):
        survey(saved(tmp_path, "rows.csv", 'question,answer\n"' + "a,b\n" * 5000))
    monkeypatch.setattr(formats, "MOST_ROWS", 3)
    with pytest.raises(DataError, match="more than 3 rows"):
        survey(jsonl(tmp_path, *[{"question": "a", "answer": "b"}] * 4))


def test_chats_in_a_cell_of_csv_are_json(tmp_path: Path) -> None:
    cell = json.dumps([ASKED, SAID]).replace('"', '""')
    assert only(saved(tmp_path, "rows.csv", f'id,messages\n1,"{cell}"\n')).turns == [ASKED, SAID]


def test_pairs_do_not_mix_with_others(tmp_path: Path) -> None:
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    _, problem = read(jsonl(tmp_path, pair, {"question": "a", "answer": "b"}))
    assert isinstance(problem, Problem)
    assert "not a pair" in problem.what


def test_what_an_eval_set_says_of_a_problem_stays(tmp_path: Path) -> None:
    grader = {"kind": "contains", "all": ["1.6"]}
    record = {"id": "m1", "question": "a", "answer": "b", "kind": "units", "grader": grader}
    assert only(jsonl(tmp_path, record)).problem == {"id": "m1", "kind": "units", "grader": grader}


def test_code_keeps_its_indentation(tmp_path: Path) -> None:
    record = {"question": "Code?", "answer": "    a = 1\n    b = 2\n"}
    assert only(jsonl(tmp_path, record)).answer == "    a = 1\n    b = 2"


def test_parquet_is_read_row_by_row(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet  # noqa: PLC0415

    chats = [[ASKED, SAID], None]
    parquet.write_table(pyarrow.table({"messages": chats}), tmp_path / "rows.parquet")
    found = survey(tmp_path / "rows.parquet")
    assert (found.format, found.layout, found.rows, found.bad) == (
        Format.PARQUET,
        Layout.CHAT,
        1,
        1,
    )
    assert str(found.problems[0]).startswith("row 2: ")


def test_parquet_without_pyarrow_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(DataError, match="pyarrow") as caught:
        survey(saved(tmp_path, "rows.parquet", b"PAR1rest"))
    assert "CSV" in str(caught.value.hint)
