"""How long rows are that nobody has tokenized yet: from the characters of a file, or as a generator makes them."""

import json
import re
from pathlib import Path

from loco.contracts.plans import Lengths
from loco.contracts.sources import ReasoningGymSource, Source
from loco.planning.deadline import check_time

#: Characters a token, and tokens a row that the chat template adds: GSM8K's 7,473 training rows
#: with Qwen's tokenizer, which splits numbers into digits.
_CHARACTERS = 3.2
_TEMPLATE_TOKENS = 16
#: Rows and bytes of a file that its lengths are estimated from, and bytes of a line that is parsed.
_ROWS_READ = 2000
_BYTES_READ = 16 * 2**20
_LONGEST_LINE = 4 * 2**20
#: GSM8K's marks, which prepare takes out.
_CALCULATOR = re.compile(r"<<[^<>]*>>")


def lengths_of_file(path: Path) -> Lengths | None:
    """Lengths of a file of chats, or of questions and answers; None: it holds no such rows.

    Its first rows are read. How many there are follows from the size of the file, where that is not all.

    Raises:
        Busy: it takes longer than who asks has said (`deadline`).
    """
    sizes: list[tuple[float, float]] = []
    with path.open("rb") as file:
        while len(sizes) < _ROWS_READ and file.tell() < _BYTES_READ:
            check_time()
            line = file.readline(_LONGEST_LINE)
            if not line:
                break
            if found := _characters(line):
                sizes.append(found)
        read, whole = file.tell(), path.stat().st_size
    if not sizes:
        return None
    rows = [(asked + answered) / _CHARACTERS + _TEMPLATE_TOKENS for asked, answered in sizes]
    answers = [answered / _CHARACTERS + 1 for _, answered in sizes]
    lengths = _summary(rows, answers)
    part = max(1.0, whole / read)
    return lengths.model_copy(
        update={
            "rows": round(lengths.rows * part),
            "tokens": round(lengths.tokens * part),
            "answer_tokens": round(lengths.answer_tokens * part),
        }
    )


def generator_of(source: Source) -> str:
    """The entry of `GENERATED` for a source; of no generator, or a mixture, there is none."""
    if isinstance(source, ReasoningGymSource):
        return ",".join(source.tasks)
    return str(source.kind)


def _characters(line: bytes) -> tuple[float, float] | None:
    """Characters of a row before its last answer, and of that; None: no row, or one training leaves out."""
    try:
        record = json.loads(line)
        turns = record.get("conversations", record.get("messages"))
        if turns is None:
            texts = [record["question"], record["answer"]]
        else:
            texts = [turn.get("content", turn.get("value")) for turn in turns]
        lengths = [len(_CALCULATOR.sub("", text)) for text in texts]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None  # prepare or training name the line
    return (sum(lengths[:-1]), lengths[-1]) if lengths else None


def _summary(rows: list[float], answers: list[float]) -> Lengths:
    ordered = sorted(rows)
    return Lengths(
        rows=len(ordered),
        tokens=max(1, round(sum(ordered))),
        answer_tokens=max(1, round(sum(answers))),
        p50=max(1, round(ordered[len(ordered) // 2])),
        p95=max(1, round(ordered[-(-95 * len(ordered) // 100) - 1])),
        longest=max(1, round(ordered[-1])),
    )


def _made(characters: float, answered: float, p50: int, p95: int, longest: int) -> Lengths:
    """Lengths of a thousand rows of so many characters each: mean, answer's mean, quantiles."""

    def tokens(count: float) -> int:
        return round(count / _CHARACTERS + _TEMPLATE_TOKENS)

    return Lengths(
        rows=1000,
        tokens=round(1000 * (characters / _CHARACTERS + _TEMPLATE_TOKENS)),
        answer_tokens=round(1000 * (answered / _CHARACTERS + 1)),
        p50=tokens(p50),
        p95=tokens(p95),
        longest=tokens(longest),
    )


#: Of generators whose rows do not depend on anything but a seed: measured on 2,000 of them (a test does).
GENERATED: dict[str, Lengths] = {
    "arithmetic": _made(70, 32, p50=73, p95=100, longest=120),
    "gsm_symbolic": _made(491, 254, p50=463, p95=827, longest=965),
}
