import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from loco.contracts.errors import DataError, InvalidRequest, SourceUnreachable
from loco.contracts.sources import (
    ArithmeticSource,
    JsonlSource,
    ReasoningGymSource,
)
from loco.contracts.specs import Inputs
from loco.recipes.data_files import dataset_path
from loco_worker.sources import gym
from loco_worker.sources.rows import Empty, Malformed, row_of, training_answer
from loco_worker.sources.sources import held_out_problems, open_source, table_records


def inputs(folder: Path) -> Inputs:
    return Inputs(
        job_id="20261122-143722-4f9a2c",
        adapter="math",
        adapter_dir=folder,
        models_dir=folder,
        locks_dir=folder,
        ollama_host="http://127.0.0.1:1",
    )


@pytest.mark.parametrize(
    ("answer", "trained"),
    [
        (
            "48/2 = <<48/2=24>>24 clips.\n48+24 = <<48+24=72>>72.\n#### 72",
            "48/2 = 24 clips.\n48+24 = 72.\nThe answer is 72",
        ),
        ("He earns $<<1=1>>1.\n#### 1,234", "He earns $1.\nThe answer is 1234"),
        ("4 + 4 = 8\nThe answer is 8", "4 + 4 = 8\nThe answer is 8"),
        ("42", "The answer is 42"),
        ("#### -3.5", "The answer is -3.5"),
    ],
)
def test_answers_end_in_the_closing_sentence(answer: str, trained: str) -> None:
    assert training_answer(answer) == trained


@pytest.mark.parametrize("answer", ["no number here", "#### unknown", "12 or 13 of them"])
def test_an_answer_without_a_number_to_end_on_is_malformed(answer: str) -> None:
    with pytest.raises(Malformed):
        training_answer(answer)


USER = {"role": "user", "content": "Hi"}
MODEL = {"role": "assistant", "content": "Hello"}


def test_chat_rows_stay_as_they_are() -> None:
    system = {"role": "system", "content": "Be brief."}
    for field in ("conversations", "messages"):
        row = row_of(1, {field: [system, USER, MODEL, USER, MODEL]})
        assert row.conversations == [system, USER, MODEL, USER, MODEL]
        assert row.question == "Hi\nHi"


def test_thoughts_in_a_field_of_their_own_stay() -> None:
    thinking = {**MODEL, "reasoning_content": "A greeting."}
    assert row_of(1, {"messages": [USER, thinking]}).conversations == [USER, thinking]
    assert row_of(1, {"messages": [USER, {**MODEL, "reasoning_content": None}]}).conversations == [
        USER,
        MODEL,
    ]


def test_sharegpt_names_are_understood() -> None:
    row = row_of(
        1, {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]}
    )
    assert row.conversations == [USER, {"role": "assistant", "content": "Yo"}]


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [USER]},
        {"messages": [MODEL, USER]},
        {"messages": [USER, MODEL, USER]},
        {"messages": []},
        {"messages": "Hi"},
        {"messages": [{"role": "tool", "content": "x"}, MODEL]},
        {"messages": [{"role": "user", "content": 3}, MODEL]},
        {"messages": [USER, {**MODEL, "reasoning_content": 3}]},
        {"question": "Why?"},
        {"question": "Why?", "answer": True},
        "text",
        None,
    ],
)
def test_broken_records_are_malformed(record: object) -> None:
    with pytest.raises(Malformed):
        row_of(1, record)


@pytest.mark.parametrize(
    "record",
    [
        {"question": " ", "answer": "#### 3"},
        {"question": "Why?", "answer": ""},
        {"messages": [USER, {"role": "assistant", "content": "\n"}]},
    ],
)
def test_blank_records_are_empty(record: object) -> None:
    with pytest.raises(Empty):
        row_of(1, record)


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    good = json.dumps({"question": "What is 1 + 1?", "answer": "#### 2"})
    (tmp_path / "rows.jsonl").write_text(f'{good}\n\n{{"question": "x", \n{good}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl, line 3") as caught:
        open_source(JsonlSource(kind="jsonl", path="rows.jsonl"), inputs(tmp_path), 0)
    assert caught.value.hint


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"question": "a"}\n\xff\xfe\n')
    with pytest.raises(DataError, match=r"rows\.jsonl, line 2.*UTF-8"):
        open_source(JsonlSource(kind="jsonl", path="rows.jsonl"), inputs(tmp_path), 0)


def test_a_byte_order_mark_and_unicode_line_separators_do_no_harm(tmp_path: Path) -> None:
    line = json.dumps({"question": "A\u2028B?", "answer": "#### 2"}, ensure_ascii=False)
    (tmp_path / "rows.jsonl").write_bytes(b"\xef\xbb\xbf" + f"{line}\r\n".encode())
    records = open_source(JsonlSource(kind="jsonl", path="rows.jsonl"), inputs(tmp_path), 0)
    assert [record().question for record in records.records] == ["A\u2028B?"]


@pytest.mark.parametrize(
    "path", ["../secret.jsonl", "/etc/passwd", "", "a/../../secret.jsonl", "link.jsonl", "a\0b"]
)
def test_files_outside_the_folders_are_refused(tmp_path: Path, path: str) -> None:
    folder = tmp_path / "math"
    folder.mkdir()
    (tmp_path / "secret.jsonl").write_text("{}")
    (folder / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    with pytest.raises(DataError):
        dataset_path(path, folder)


def test_data_folders_are_searched_after_the_adapter(tmp_path: Path) -> None:
    adapter, more = tmp_path / "math", tmp_path / "data"
    (more / "gsm8k").mkdir(parents=True)
    adapter.mkdir()
    file = more / "gsm8k" / "train.jsonl"
    file.write_text("{}")
    assert dataset_path("gsm8k/train.jsonl", adapter, [more]) == file.resolve()
    assert dataset_path(str(file), adapter, [more]) == file.resolve()
    with pytest.raises(DataError, match="Looked in"):
        dataset_path("gsm8k/test.jsonl", adapter, [more])


def test_an_unreachable_hub_names_the_offline_choices(tmp_path: Path) -> None:
    # a process of its own: the hub's library reads these variables when it is imported
    program = (
        "import sys; from pathlib import Path\n"
        "from loco.contracts.sources import HuggingFaceSource\n"
        "from loco.contracts.errors import SourceUnreachable\n"
        "from loco_worker.sources.hub import hub_table\n"
        "try: hub_table(HuggingFaceSource(kind='huggingface'))\n"
        "except SourceUnreachable as e: print(e.message); print(e.hint)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "openai/gsm8k" in ended.stdout
    for choice in ("jsonl", "reasoning-gym", "arithmetic"):
        assert choice in ended.stdout


def test_tables_of_either_form_become_rows() -> None:
    table = [{"question": "What is 1 + 1?", "answer": "1 + 1 = <<1+1=2>>2\n#### 2", "level": 1}]
    records = table_records(table, ["question", "answer", "level"], "here")
    [record] = records.records
    assert record().conversations[1]["content"] == "1 + 1 = 2\nThe answer is 2"
    [chat] = table_records([{"messages": [USER, MODEL]}], ["messages"], "here").records
    assert chat().conversations == [USER, MODEL]


def test_a_table_without_usable_columns_names_those_it_has() -> None:
    with pytest.raises(DataError, match="problem, solution"):
        table_records([], ["problem", "solution"], "here")


def test_an_unknown_task_names_close_ones() -> None:
    with pytest.raises(InvalidRequest, match="gsm_symbolic"):
        next(gym.problems({"gsm_symbolc": 1}, 0))


def test_reasoning_gym_is_seeded_and_mixes_by_weight() -> None:
    tasks = {"gsm_symbolic": 1.0, "basic_arithmetic": 3.0}
    first = list(islice(gym.problems(tasks, 7), 400))
    assert first == list(islice(gym.problems(tasks, 7), 400))
    assert first[:20] != list(islice(gym.problems(tasks, 8), 20))
    share = sum(p.task == "basic_arithmetic" for p in first) / 400
    assert 0.65 < share < 0.85


def test_worked_answers_are_used_where_a_task_brings_them(tmp_path: Path) -> None:
    source = ReasoningGymSource(kind="reasoning-gym", tasks={"gsm_symbolic": 1})
    row = next(open_source(source, inputs(tmp_path), 0).records)()
    assert "\nThe answer is " in row.conversations[1]["content"]
    assert "####" not in row.conversations[1]["content"]
    assert "Do not include units" not in row.question
    source = ReasoningGymSource(kind="reasoning-gym", tasks={"chain_sum": 1})
    row = next(open_source(source, inputs(tmp_path), 0).records)()
    assert row.conversations[1]["content"].startswith("The answer is ")


def test_held_out_problems_differ_from_training_problems_of_the_same_seed(tmp_path: Path) -> None:
    source = ArithmeticSource(kind="arithmetic")
    held = {item.question for item, _ in islice(held_out_problems(source, 5), 50)}
    records = open_source(source, inputs(tmp_path), 5).records
    trained = {record().question for record in islice(records, 50)}
    assert len(held & trained) < 10


def test_source_errors_are_for_the_user() -> None:
    assert SourceUnreachable("x").user_fault
