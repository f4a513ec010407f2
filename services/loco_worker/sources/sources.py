"""Where rows come from: a hub data set, a file, or a generator."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from loco.contracts.errors import DataError, InvalidRequest, SourceUnreachable
from loco.contracts.files import sha256_of
from loco.contracts.sources import (
    ArithmeticSource,
    GivenSource,
    HuggingFaceSource,
    JsonlSource,
    ReasoningGymSource,
)
from loco.contracts.specs import Inputs
from loco.grading.eval_items import EvalItem, parse_line, read_lines
from loco.recipes.datasets import data_file
from loco_worker.sources import arithmetic, gym
from loco_worker.sources.questions import question_of, with_item
from loco_worker.sources.rows import Row, bare_row, row_of, worked_row

OFFLINE_CHOICES = (
    "Sources that need no hub: jsonl (a file here), reasoning-gym and arithmetic (generated); "
    'e.g. "prepare": {"source": {"kind": "reasoning-gym"}}.'
)
_DATASET_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class Record(Protocol):
    """Something that becomes a row, or says why it can't."""

    def __call__(self) -> Row:
        """The row; raises `Malformed` or `Empty`."""


#: Makes a row of a number in the source and a value.
Reader = Callable[[int, Any], Row]


@dataclass(frozen=True)
class Records:
    """The records of a source."""

    #: The source in words.
    description: str
    records: Iterator[Record]
    #: Number of records; None: a generator, without end.
    size: int | None


def open_source(
    source: GivenSource, inputs: Inputs, seed: int, *, questions: bool = False
) -> Records:
    """The records of a source.

    Args:
        source: its spec.
        inputs: says where files may lie.
        seed: seed of generators.
        questions: rows get their `item`, and those without a right answer to grade by are malformed.

    Raises:
        SourceUnreachable: the hub cannot be reached; nothing is put in its place.
        DataError: a line of a file isn't JSON (file and line are named), or no such file.
        InvalidRequest: reasoning-gym has no such task.
    """
    if isinstance(source, HuggingFaceSource):
        table = hub_table(source)
        return table_records(
            table.rows, table.columns, table.description, question_of if questions else row_of
        )
    if isinstance(source, JsonlSource):
        return _file(source, inputs, question_of if questions else row_of)
    return Records(_in_words(source), _generated(source, seed, questions), None)


def held_out_problems(
    source: ReasoningGymSource | ArithmeticSource, seed: int
) -> Iterator[tuple[EvalItem, str | None]]:
    """Generated eval problems without end, each with what identifies it to its generator."""
    if isinstance(source, ArithmeticSource):
        for number, made in enumerate(arithmetic.problems(f"held-out {seed}"), start=1):
            yield (
                EvalItem(
                    id=f"h{number:04}",
                    question=made.question,
                    answer=str(made.answer),
                    kind=made.kind,
                ),
                made.key,
            )
        return
    for number, posed in enumerate(gym.problems(source.tasks, f"held-out {seed}"), start=1):
        item = EvalItem(
            id=f"h{number:04}", question=posed.question, answer=posed.answer, kind=posed.task
        )
        yield item, None


def _generated(
    source: ReasoningGymSource | ArithmeticSource, seed: int, questions: bool
) -> Iterator[Record]:
    if isinstance(source, ArithmeticSource):
        for number, made in enumerate(arithmetic.problems(seed), start=1):
            record = _arithmetic_record(number, made)
            yield _posed(record, str(made.answer), made.kind) if questions else record
        return
    for number, posed in enumerate(gym.problems(source.tasks, seed), start=1):
        record = _gym_record(number, posed)
        yield _posed(record, posed.answer, posed.task) if questions else record


def _arithmetic_record(number: int, made: arithmetic.Problem) -> Record:
    answer = f"{made.work}\n#### {made.answer}"
    return lambda: worked_row(number, made.question, answer, made.key)


def _gym_record(number: int, posed: gym.GymProblem) -> Record:
    if posed.worked is not None:
        worked = posed.worked
        return lambda: worked_row(number, posed.question, worked)
    return lambda: bare_row(number, posed.question, posed.answer)


def _posed(record: Record, answer: str, kind: str) -> Record:
    """A generated record whose row has its `item`."""
    return lambda: with_item(record(), answer, kind)


def _file(source: JsonlSource, inputs: Inputs, reader: Reader) -> Records:
    path = data_file(source.path, inputs)
    # read whole and parsed first: a broken line at the end must fail before anything is written
    values = [
        (number, parse_line(path, number, line))
        for number, line in enumerate(read_lines(path), start=1)
        if line.strip()
    ]
    records = (_value_record(number, value, reader) for number, value in values)
    return Records(f"{path.name} (sha256 {sha256_of(path)[:12]})", records, len(values))


def _value_record(number: int, value: Any, reader: Reader) -> Record:
    return lambda: reader(number, value)


@dataclass(frozen=True)
class HubTable:
    """A data set of the hub."""

    rows: Iterable[Any]
    columns: list[str]
    #: Name and fingerprint.
    description: str


def hub_table(source: HuggingFaceSource, param: str = "prepare.source") -> HubTable:
    """A data set of the hub.

    Args:
        source: its spec.
        param: the field of the request that names it, for errors.

    Raises:
        SourceUnreachable: the hub cannot be reached, or has no such data set.
        InvalidRequest: no id of a data set, or one without that configuration or split.
    """
    name = source.dataset
    if not _DATASET_ID.fullmatch(name) or Path(name).exists():
        raise InvalidRequest(
            f"{name!r} is not the id of a hub data set.",
            param=f"{param}.dataset",
            hint='Ids look like "openai/gsm8k"; for a file use source kind jsonl.',
        )
    # imported here: the package takes seconds to load and offline jobs don't need it
    import datasets  # noqa: PLC0415
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415

    try:
        table = datasets.load_dataset(
            name, source.config, split=source.split, revision=source.revision
        )
    except datasets.exceptions.DatasetNotFoundError as error:
        raise SourceUnreachable(
            f"The hub has no data set {name!r} that may be read from here: {error}",
            param=f"{param}.dataset",
            hint=f"Check the id; private ones need HF_TOKEN. {OFFLINE_CHOICES}",
        ) from error
    except (OSError, HfHubHTTPError) as error:
        # ConnectionError, timeouts and the hub's offline mode are all OSErrors
        raise SourceUnreachable(
            f"Could not read data set {name!r} from the hub: {error}",
            param=param,
            hint=f"Check the network, HF_ENDPOINT and HF_HUB_OFFLINE. {OFFLINE_CHOICES}",
        ) from error
    except ValueError as error:
        # an unknown configuration or split: the message lists those there are
        raise InvalidRequest(
            f"Data set {name!r}: {error}",
            param=param,
            hint="Set source.config and source.split to what the data set has.",
        ) from error
    description = f"{name} {source.config or ''} {source.split}".replace("  ", " ")
    return HubTable(table, table.column_names, f"{description} (fingerprint {table._fingerprint})")


def table_records(
    table: Iterable[Any], columns: list[str], description: str, reader: Reader = row_of
) -> Records:
    """The records of a table of question/answer or chat columns.

    Args:
        table: its rows.
        columns: their names.
        description: the table in words.
        reader: makes a row of one of them.

    Raises:
        DataError: it has neither; names the columns it has.
    """
    chat = {"conversations", "messages"} & set(columns)
    if not chat and not {"question", "answer"} <= set(columns):
        raise DataError(
            f"{description} has the columns {', '.join(columns)}; needed are question and answer, "
            "or conversations or messages.",
            param="prepare.source",
            hint="Take another data set or configuration, or convert it to a jsonl file.",
        )
    values = list(table)
    records = (_value_record(number, value, reader) for number, value in enumerate(values, start=1))
    return Records(description, records, len(values))


def _in_words(source: ReasoningGymSource | ArithmeticSource) -> str:
    if isinstance(source, ArithmeticSource):
        return "arithmetic generator"
    mixture = ", ".join(f"{name} {weight:g}" for name, weight in sorted(source.tasks.items()))
    return f"reasoning-gym {version('reasoning-gym')}: {mixture}"
