"""What is worth keeping of the study of own answers: small files, and one archive of them.

OUT/results/ARM/seed-N/prepare.json train.json eval-SET.json report-SET.md answers-SET.json.gz
OUT/results/gguf/NAME.jsonl
"""

import gzip
import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ADAPTER = "adapter_model.safetensors"
#: Bytes of a part of an adapter: what comes back from a machine comes in files of 16 MB at most.
PART_BYTES = 15_000_000
#: Fields of results that are long and say nothing here.
_LEFT_OUT = ("overlaps", "log", "validation", "files", "lengths")


class Answers(NamedTuple):
    """One model's answers to one set, by problem."""

    correct: dict[str, bool]
    tokens: dict[str, int]
    #: Answers that ended by themselves.
    ended: dict[str, bool]


def keep_stage(folder: Path, home: Path, name: str) -> None:
    """Keeps the result of a stage, without what is long."""
    result = json.loads((folder / "result.json").read_text())
    home.mkdir(parents=True, exist_ok=True)
    kept = {key: value for key, value in result.items() if key not in _LEFT_OUT}
    (home / f"{name}.json").write_text(json.dumps(kept) + "\n")


def keep_eval(folder: Path, home: Path, name: str, *, texts: bool) -> None:
    """Keeps the result, the report and the answers of stage eval; the candidate's texts if asked for."""
    keep_stage(folder, home, f"eval-{name}")
    shutil.copyfile(folder / "report.md", home / f"report-{name}.md")
    columns: dict[str, dict[str, list[list[Any]]]] = {}
    said: list[str] = []
    with (folder / "eval.jsonl").open() as lines:
        for row in map(json.loads, lines):
            answer = [row["id"], int(row["correct"]), int(row["done_reason"] == "stop")]
            columns.setdefault(row["set"], {}).setdefault(row["role"], []).append(
                [*answer, row["tokens"]]
            )
            if texts and row["role"] == "candidate":
                kept = {key: row[key] for key in ("set", "id", "answer", "extracted", "correct")}
                said.append(json.dumps(kept, ensure_ascii=False) + "\n")
    _zipped(home / f"answers-{name}.json.gz", json.dumps(columns))
    if texts:
        _zipped(home / f"texts-{name}.jsonl.gz", "".join(said))


def kept_answers(home: Path, name: str, chosen: str, role: str) -> Answers | None:
    """The answers of a role of an eval to one of its sets; None: there are none.

    Args:
        home: folder of an arm and seed.
        name: of the eval: its primary set.
        chosen: the set.
        role: `candidate`, `base` or `instructed`.
    """
    path = home / f"answers-{name}.json.gz"
    if not path.is_file():
        return None
    rows = json.loads(gzip.decompress(path.read_bytes())).get(chosen, {}).get(role)
    if not rows:
        return None
    return Answers(
        {row[0]: bool(row[1]) for row in rows},
        {row[0]: row[3] for row in rows},
        {row[0]: bool(row[2]) for row in rows},
    )


def kept_json(path: Path) -> dict[str, Any] | None:
    """A kept result; None: it is not there."""
    if not path.is_file():
        return None
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def pack(out: Path, to: Path, adapters: dict[str, Path]) -> Iterator[str]:
    """Writes one archive of all that is kept, and adapters in bfloat16 in parts; says what it wrote.

    Args:
        out: the study's folder.
        to: where to.
        adapters: name to folder of a trained adapter.
    """
    to.mkdir(parents=True, exist_ok=True)
    for name, folder in adapters.items():
        config = out / "results" / f"{name}.config.json"
        shutil.copyfile(folder / "adapter_config.json", config)
    archive = to / "study.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        for name in ("results", "state.json", "driver.log"):
            if (out / name).exists():
                file.add(out / name, name)
        for log in sorted([*out.glob("*/*/log.txt"), *out.glob("*.log")]):
            if log.stat().st_size and log.name != "driver.log":
                file.add(_end_of(log), f"logs/{log.relative_to(out)}")
    yield f"{archive.name}: {archive.stat().st_size / 1e6:.1f} MB"
    for name, folder in adapters.items():
        small = out / "adapters" / name
        if not (small / ADAPTER).is_file():
            from stage_runs import keep_adapter  # it imports torch

            keep_adapter(folder, small)
        data = (small / ADAPTER).read_bytes()
        for number, start in enumerate(range(0, len(data), PART_BYTES)):
            part = to / f"{name}.part{number}"
            part.write_bytes(data[start : start + PART_BYTES])
            yield f"{part.name}: {part.stat().st_size / 1e6:.1f} MB"


def _end_of(log: Path) -> Path:
    """The log, or a copy of its last 20 kB where it is longer."""
    most = 20_000
    if log.stat().st_size <= most:
        return log
    short = log.with_suffix(".end")
    short.write_bytes(log.read_bytes()[-most:])
    return short


def _zipped(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_bytes(gzip.compress(text.encode()))
    part.replace(path)
