"""What a row of a user's file means: a chat to train on, whatever its columns are called.

| layout | columns |
|---|---|
| `chat` | `messages` or `conversations`: turns of role/content, or ShareGPT's from/value |
| `question-answer` | question/answer, prompt/completion, instruction/output and the like, texts or numbers |
| `alpaca` | instruction, input (may be blank), output |
| `pairs` | prompt, chosen, rejected: texts or turns, for direct preference optimization; or OpenAI's input, preferred_output, non_preferred_output |

`system` (a column) opens a question's row with a system turn. What `recipes.data_files` looks for are
files by name; here is only what stands in them.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from loco.contracts.datasets import Layout
from loco.contracts.errors import DataError, quoted
from loco.datasets.values import value_of

#: Turns of a chat.
MOST_TURNS = 1000
#: What a mapping may name, and in which columns a question and its answer are found.
FIELDS = (
    *("question", "answer", "prompt", "completion", "response"),
    *("instruction", "input", "output", "messages", "conversations"),
    *("chosen", "rejected", "system", "id", "kind", "grader"),
    *("preferred_output", "non_preferred_output"),
)
#: The columns of a pair as OpenAI's fine-tuning has them, beside `input`, by our names.
_OPENAI_PAIR = {"preferred_output": "chosen", "non_preferred_output": "rejected"}
_ASKED = ("question", "prompt", "instruction", "input")
_ANSWERED = ("answer", "completion", "response", "output")
_CHATS = ("messages", "conversations")
#: What an eval set says of a problem besides question and answer.
_OF_PROBLEMS = ("id", "kind", "grader", "system")
#: ShareGPT's names of the roles.
_ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant"}
#: Columns that an error lists.
_LISTED = 12

Turn = dict[str, str]


class BadRow(ValueError):
    """A row that cannot be used.

    Attributes:
        fix: what to change in the file.
    """

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what)
        self.fix = fix


class BlankRow(BadRow):
    """The row's question or answer is blank."""


@dataclass(frozen=True)
class Row:
    """A row that can be used."""

    #: Where it stands: the line it begins on, or its number in a Parquet file; from 1.
    line: int
    layout: Layout
    #: System, user and assistant in turn, the last one the assistant's; of a pair the chosen answer.
    turns: list[Turn]
    #: The worse answer of a pair.
    rejected: Turn | None = None
    #: Fields of an eval problem the row has besides: id, kind, grader, system.
    problem: Mapping[str, Any] = field(default_factory=dict)

    @property
    def question(self) -> str:
        """All that the user says."""
        return "\n".join(turn["content"] for turn in self.turns if turn["role"] == "user")

    @property
    def answer(self) -> str:
        """The last turn."""
        return self.turns[-1]["content"]

    @property
    def asks_once(self) -> bool:
        """Whether it is one question and its answer."""
        return sum(turn["role"] == "user" for turn in self.turns) == 1


class Columns:
    """Which column holds what: by name, letter case and blanks around it aside, or by a mapping.

    Args:
        mapping: field to column, `{"question": "Frage", "answer": "Antwort"}`.

    Raises:
        DataError: it names no field there is.
    """

    def __init__(self, mapping: Mapping[str, str] | None = None) -> None:
        self._mapping = dict(mapping or {})
        for name in self._mapping:
            if name not in FIELDS:
                near = get_close_matches(name, FIELDS, 1)
                raise DataError(
                    f"mapping: there is no field {name!r:.80}.",
                    param="mapping",
                    hint=f"Did you mean {near[0]}?" if near else f"Fields: {', '.join(FIELDS)}.",
                )

    def fields(self, record: Mapping[Any, Any]) -> dict[str, Any]:
        """What a record holds, by field; columns that mean nothing here are left out."""
        taken = set(self._mapping.values())
        found = {}
        for column, value in record.items():
            name = column.strip().casefold() if isinstance(column, str) else ""
            if name in FIELDS and column not in taken:
                found[name] = value
        found |= {
            name: record[column] for name, column in self._mapping.items() if column in record
        }
        return _by_our_names(found)

    def check(self, columns: Iterable[str]) -> Layout:
        """The layout of a table.

        Args:
            columns: their names.

        Raises:
            DataError: the mapping names a column that is not there, or the table has no rows to train on.
        """
        names = list(columns)
        for name, column in self._mapping.items():
            if column not in names:
                near = get_close_matches(column, names, 1)
                raise DataError(
                    f"mapping: {name} should come from column {column!r:.80}, but there is no "
                    f"such column. Columns: {_listed(names)}.",
                    param="mapping",
                    hint=f"Did you mean {name}={near[0]}?" if near else "Name one of them.",
                )
        layout = layout_of(self.fields(dict.fromkeys(names)))
        if layout is None:
            raise DataError(
                f"The columns are {_listed(names)}. The file needs question and answer (or "
                "instruction and output, prompt and completion), messages, or prompt, chosen "
                "and rejected.",
                param="mapping",
                hint=f"Say which columns have them: `{_example(names)}`.",
            )
        return layout


def layout_of(fields: Mapping[str, Any]) -> Layout | None:
    """The layout that the fields of a record make; None: they make none."""
    if {"chosen", "rejected"} <= fields.keys() or fields.keys() >= _OPENAI_PAIR.keys():
        return Layout.PAIRS
    if any(name in fields for name in _CHATS):
        return Layout.CHAT
    if {"instruction", "input", "output"} <= fields.keys():
        return Layout.ALPACA
    if _first(fields, _ASKED) and _first(fields, _ANSWERED):
        return Layout.QUESTION_ANSWER
    return None


def _by_our_names(fields: dict[str, Any]) -> dict[str, Any]:
    """A pair of OpenAI's, whose `input` holds the messages before the answer, as one of ours."""
    if not fields.keys() >= _OPENAI_PAIR.keys():
        return fields
    named = {_OPENAI_PAIR.get(name, name): value for name, value in fields.items()}
    asked = named.pop("input", None)
    if asked is not None:
        named["prompt"] = asked.get("messages") if isinstance(asked, Mapping) else asked
    return named


def row_of(line: int, record: object, columns: Columns | None = None) -> Row:
    """The row a record means.

    Args:
        line: where it stands, from 1.
        record: a mapping of columns to values, as JSON, CSV or Parquet have them.
        columns: which column holds what; none: by their names.

    Raises:
        BadRow, BlankRow: see there.
    """
    if not isinstance(record, Mapping):
        raise BadRow("not a JSON object", 'Write {"question": "…", "answer": "…"}.')
    fields = (columns or Columns()).fields(record)
    layout = layout_of(fields)
    if layout is None:
        names = [str(name) for name in record]
        raise BadRow(
            f"no question or no answer (it has {_listed(names)})",
            "Give it a question and an answer, or messages.",
        )
    problem = {name: fields[name] for name in _OF_PROBLEMS if fields.get(name) not in (None, "")}
    if layout is Layout.CHAT:
        row = Row(line, layout, _chat(fields[_first(fields, _CHATS)]), problem=problem)
    elif layout is Layout.PAIRS:
        row = _pair(line, fields)
    else:
        row = _answered(line, layout, fields, problem)
    _check_characters(row)
    return row


def _answered(line: int, layout: Layout, fields: Mapping[str, Any], problem: dict[str, Any]) -> Row:
    """Of a question and its answer, each a text."""
    if layout is Layout.ALPACA:
        asked, answered = "instruction", "output"
        question = text(fields, asked)
        if isinstance(fields["input"], str) and fields["input"].strip():
            question = f"{question.strip()}\n\n{fields['input'].strip()}"
    else:
        asked, answered = _first(fields, _ASKED), _first(fields, _ANSWERED)
        question = text(fields, asked)
    answer = text(fields, answered)
    for name, said in ((asked, question), (answered, answer)):
        if not said.strip():
            raise BlankRow(f"blank {name}", f"Fill in the {name}, or remove the row.")
    turns = [
        *_system(fields),
        _turn("user", question.strip()),
        _turn("assistant", _trimmed(answer)),
    ]
    return Row(line, layout, turns, problem=problem)


def text(fields: Mapping[str, Any], name: str) -> str:
    """The text of a field; a number is one, as it is written.

    Raises:
        BadRow: it is something else, or missing.
    """
    value = fields.get(name)
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    said = "is missing" if value is None else f"is {quoted(value)}, not a text"
    raise BadRow(f"{name} {said}", f"Write {name} as a text.")


def _trimmed(answer: str) -> str:
    """An answer without the blanks around it; code keeps the indentation of its first line."""
    kept = answer.strip("\r\n").rstrip()
    return kept if "\n" in kept else kept.strip()


def _pair(line: int, fields: Mapping[str, Any]) -> Row:
    """A prompt with a better and a worse answer, each a text or turns (TRL's two forms)."""
    asked = _first(fields, _ASKED)
    before = _prompt(fields[asked]) if asked else []
    chosen, rejected = (_last(fields[name], name, before) for name in ("chosen", "rejected"))
    if not before and not asked:  # both answers hold the whole chat
        before = _chat(_turns(fields["chosen"]))[:-1]
        if before != _chat(_turns(fields["rejected"]))[:-1]:
            raise BadRow(
                "chosen and rejected answer different prompts",
                "Start both with the same turns, or put those turns into prompt.",
            )
    if chosen["content"] == rejected["content"]:
        raise BadRow("chosen and rejected are the same", "Remove the row, or change one of them.")
    if before and before[0]["role"] != "system":
        before = [*_system(fields), *before]
    return Row(line, Layout.PAIRS, _chat([*before, chosen]), rejected)


def _prompt(value: Any) -> list[Turn]:
    if isinstance(value, str) and not value.lstrip().startswith("["):
        return [_turn("user", value.strip())]
    turns = _turns(value)
    return _chat([*turns, {"role": "assistant", "content": "-"}])[:-1]


def _last(value: Any, name: str, before: list[Turn]) -> Turn:
    """The answer that a column of a pair holds: a text, or turns of which the last one is it."""
    if isinstance(value, str) and (before or not value.lstrip().startswith("[")):
        if not value.strip():
            raise BlankRow(f"blank {name}", f"Fill in {name}, or remove the row.")
        return _turn("assistant", _trimmed(value))
    turns = _turns(value)
    last = turns[-1] if turns else {}
    role, content = _said(last)
    if _ROLES.get(role) != "assistant" or not isinstance(content, str) or not content.strip():
        raise BadRow(
            f"{name} does not end with an answer",
            f"Make the last turn of {name} one of role assistant.",
        )
    return _turn("assistant", content)


def _turns(value: Any) -> list[dict[str, Any]]:
    """A list of turns; in a CSV file it is written as JSON."""
    if isinstance(value, str):
        try:
            value = value_of(value)
        except json.JSONDecodeError as error:
            raise BadRow(f"turns are not JSON: {error.msg}", _TURNS) from error
        except ValueError as error:
            raise BadRow(f"turns: {error}", _TURNS) from error
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise BadRow("turns are not a list of objects", _TURNS)
    if len(value) > MOST_TURNS:
        raise BadRow(
            f"{len(value):,} turns", f"At most {MOST_TURNS:,} are allowed. Split the chat."
        )
    return value


def _chat(value: Any) -> list[Turn]:
    """Chat turns, kept as they are; an optional system turn, then user and assistant in turn."""
    kept: list[Turn] = []
    for turn in _turns(value):
        role, content = _said(turn)
        if role == "system" and not kept:
            pass
        elif role in _ROLES:
            role = _ROLES[role]
        else:
            raise BadRow(f"role {turn.get('role', turn.get('from'))!r:.80}", _TURNS)
        if not isinstance(content, str):
            raise BadRow("content is not text", "Write the content of every turn as a text.")
        kept.append(_turn(role, content))
        if role == "assistant" and (thoughts := turn.get("reasoning_content")) is not None:
            if not isinstance(thoughts, str):
                raise BadRow(
                    "reasoning_content is not text", "Write it as a text, or leave it out."
                )
            kept[-1]["reasoning_content"] = thoughts
    talk = kept[1:] if kept and kept[0]["role"] == "system" else kept
    expected = ["user", "assistant"] * (len(talk) // 2)
    if not talk or [turn["role"] for turn in talk] != expected:
        raise BadRow(
            "user and assistant do not take turns",
            "Start with user (after a system turn, if any) and end with assistant.",
        )
    if not all(turn["content"].strip() for turn in talk):
        raise BlankRow("blank turn", "Fill it in, or remove the row.")
    return kept


def _said(turn: Mapping[str, Any]) -> tuple[str, Any]:
    role = turn.get("role", turn.get("from"))
    return role if isinstance(role, str) else "", turn.get("content", turn.get("value"))


def _system(fields: Mapping[str, Any]) -> list[Turn]:
    said = fields.get("system")
    return [_turn("system", said.strip())] if isinstance(said, str) and said.strip() else []


def _turn(role: str, content: str) -> Turn:
    return {"role": role, "content": content}


def _check_characters(row: Row) -> None:
    turns = [*row.turns, *([row.rejected] if row.rejected else [])]
    try:
        for turn in turns:
            "".join(turn.values()).encode()
    except UnicodeEncodeError as error:
        raise BadRow(
            "half a surrogate pair is not a character", "Remove the broken character (\\ud800 …)."
        ) from error


def _first(fields: Mapping[str, Any], names: Iterable[str]) -> str:
    return next((name for name in names if name in fields), "")


def _listed(names: list[str]) -> str:
    shown = ", ".join(f"{name!s:.80}" for name in names[:_LISTED])
    return (shown or "none") + (", …" if len(names) > _LISTED else "")


def _example(names: list[str]) -> str:
    first, second = [*names, "COLUMN", "COLUMN"][:2] if len(names) != 1 else (names[0], "COLUMN")
    return f"--map question={first} --map answer={second}"


_TURNS = 'Write [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}].'
