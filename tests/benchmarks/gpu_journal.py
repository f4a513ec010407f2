"""Figures of a GPU measurement: one JSON line each while they are taken, and tables at the end.

A later measurement of the same part and name replaces the earlier one in the tables, and several
calls may write into the same folder.
"""

import json
import re
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

Record = dict[str, Any]
Row = tuple[str, ...]


class Journal:
    """JSON lines in a folder, one file a call."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / f"gpu-{datetime.now():%Y%m%d-%H%M%S}.jsonl"

    def put(self, part: str, name: str, **figures: Any) -> None:
        """Keeps a measurement and says it."""
        when = datetime.now().isoformat(timespec="seconds")
        with self._file.open("a") as file:
            file.write(json.dumps({"part": part, "name": name, "when": when} | figures) + "\n")
        shown = {k: v for k, v in figures.items() if not isinstance(v, list | dict)}
        words = ", ".join(f"{k} {v}" for k, v in shown.items() if v is not None)
        print(f"[{when[11:]}] {part} / {name}: {words}", flush=True)


def read(folder: Path) -> list[Record]:
    """The newest record of every part and name, in the order they were first taken."""
    kept: dict[tuple[str, str], Record] = {}
    for path in sorted(folder.rglob("gpu-*.jsonl")):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            kept[record["part"], record["name"]] = record
    return list(kept.values())


def tables(records: list[Record]) -> dict[str, str]:
    """Part to its table in Markdown, for the parts that were measured."""
    found = {}
    for part, (_, header, row) in _TABLES.items():
        lines = [_line(row, r) for r in records if r["part"] == part]
        if lines:
            found[part] = _markdown(header, lines)
    return found


def titled(found: dict[str, str]) -> str:
    """Tables below their headings."""
    return "\n\n".join(f"### {_TABLES[part][0]}\n\n{table}" for part, table in found.items())


def fill(page: Path, found: dict[str, str]) -> None:
    """Writes tables into a page, each between its marks `<!-- gpu-bench PART -->` and `<!-- end -->`.

    Raises:
        ValueError: the page has no marks for a table.
    """
    text = page.read_text()
    for part, table in found.items():
        marks = re.compile(rf"(<!-- gpu-bench {part} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not marks.search(text):
            raise ValueError(f"{page} has no `<!-- gpu-bench {part} -->` … `<!-- end -->`.")
        text = marks.sub(lambda mark, table=table: f"{mark[1]}{table}\n{mark[2]}", text)
    page.write_text(text)


def _line(row: Callable[[Record], Row], record: Record) -> Row:
    if "error" in record:
        return (record["name"], f"failed: {record['error']}")
    return (record["name"], *row(record))


def _markdown(header: Row, rows: Iterable[Row]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for row in rows:
        filled = (*row, *[""] * (len(header) - len(row)))
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in filled) + " |")
    return "\n".join(lines)


def _of(value: Any, unit: str = "", places: int = 1) -> str:
    """A number with its unit; a dash where there is none."""
    return "-" if value is None else f"{value:.{places}f}{unit}"


def _plan(record: Record) -> str:
    """A plan in a few words."""
    plan = record["plan"]
    words = [plan["engine"], plan["precision"], f"{plan['micro_batch']} x {plan['accumulation']}"]
    words += ["recompute"] if plan["gradient_checkpointing"] else []
    words += ["end to end"] if plan["padding_free"] else ["padded"]
    words += ["graphs"] if plan["cuda_graphs"] else []
    return ", ".join(words)


def _machine(r: Record) -> Row:
    return (str(r["value"]),)


def _speed(r: Record) -> Row:
    return (
        _of(r.get("start_seconds"), " s"),
        _of(r.get("steps_seconds"), " s"),
        _of(r.get("step_seconds"), " s", 3),
        _of(r.get("export_seconds"), " s"),
        _of(r.get("whole_seconds"), " s"),
        _of(r.get("peak_gb"), " GB"),
    )


def _compared(r: Record) -> Row:
    return (
        _of(r["measured"], f" {r['unit']}", 2),
        _of(r.get("floor"), f" {r['unit']}", 2),
        _of(r.get("by_hand"), f" {r['unit']}", 2),
        _of(r.get("ratio"), " x"),
    )


def _export(r: Record) -> Row:
    names = ("read", "quantize", "write", "check")
    return (
        str(r["device"]),
        *(_of(r[f"{name}_seconds"], " s") for name in names),
        _of(r["seconds"], " s"),
        _of(r["peak_ram_gb"], " GB"),
    )


def _losses(r: Record) -> Row:
    return (str(r["steps"]), _of(100 * r["largest_difference"], " %", 2), str(r["at_step"]))


def _memory(r: Record) -> Row:
    return (
        _plan(r),
        str(r["tokens"]),
        _of(r["predicted_gb"], "", 2),
        _of(r["measured_gb"], "", 2),
        _of(100 * r["error_part"], " %"),
        _of(r["step_seconds"], " s", 3),
    )


def _caps(r: Record) -> Row:
    return (
        _plan(r),
        _of(r["predicted_gb"], "", 2),
        _of(r["measured_gb"], "", 2),
        _of(r["step_seconds"], " s", 3),
        _of(r.get("ratio"), " x", 2),
    )


def _ladder(r: Record) -> Row:
    tried = " → ".join(
        f"{a['plan']['micro_batch']} x {a['plan']['accumulation']}"
        f"{' recompute' if a['plan']['gradient_checkpointing'] else ''} ({a['outcome']})"
        for a in r["attempts"]
    )
    return (tried, _of(r["measured_gb"], "", 2))


def _use(r: Record) -> Row:
    return (
        _plan(r),
        _of(r["tokens_per_second"], "", 0),
        _of(r["step_seconds"], " s", 4),
        _of(r["floor_seconds"], " s", 4),
        _of(100 * r["utilisation"], " %"),
        _of(100 * r["utilisation_at_first"], " %"),
    )


def _start(r: Record) -> Row:
    return (" · ".join(f"{when:.1f} {message[:60]}" for when, message in r["timeline"]),)


#: Part to title, header and what makes a row of a record.
_TABLES: dict[str, tuple[str, Row, Callable[[Record], Row]]] = {
    "machine": ("Machine", ("what", "value"), _machine),
    "speed": (
        "Runs",
        ("run", "start to first step", "all steps", "median step", "export", "whole", "peak"),
        _speed,
    ),
    "compared": (
        "Against the script run by hand (medians)",
        ("what", "measured", "floor", "by hand", "faster"),
        _compared,
    ),
    "export": (
        "Export",
        ("run", "on", "read and merge", "quantize", "write", "check", "whole", "peak RAM"),
        _export,
    ),
    "start": ("Seconds after the start of the stage", ("run", "timeline"), _start),
    "losses": (
        "Losses against those of the recipe's 4-bit 2 x 4",
        ("run", "steps", "largest difference", "at step"),
        _losses,
    ),
    "memory": (
        "Peak memory, predicted and reserved (GB = 10^9 bytes)",
        ("rows", "plan", "tokens a row", "predicted", "measured", "error", "median step"),
        _memory,
    ),
    "caps": (
        "Cards of less memory (allocator capped)",
        ("run", "plan", "predicted GB", "measured GB", "median step", "against the recipe's"),
        _caps,
    ),
    "ladder": (
        "Out of memory: what was tried",
        ("run", "attempts", "measured GB"),
        _ladder,
    ),
    "mfu": (
        "Model FLOP utilisation",
        (
            "rows",
            "plan",
            "tokens/s",
            "median step",
            "floor",
            "utilisation, of the rate held",
            "of the rate at first",
        ),
        _use,
    ),
}
