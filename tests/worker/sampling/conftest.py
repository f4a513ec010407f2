"""Stage prepare with source self, against whatever server."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loco.contracts.results import PrepareResult
from loco.contracts.specs import Inputs, JobSpec, PrepareSpec
from loco.stage.program import Emitter
from loco_worker import prepare

#: Fields of prepare itself.
_OF_PREPARE = ("examples", "validation", "seed", "eval_sets", "overlap_ngram")


class Prepared:
    """One run of prepare: its result and its files."""

    def __init__(self, folder: Path, result: PrepareResult) -> None:
        self.folder, self.result = folder, result
        assert result.sampling is not None
        self.sampling = result.sampling

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The rows of a file; none where there is no such file."""
        path = self.folder / name
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        return [json.loads(line) for line in text.splitlines()]

    @property
    def rows(self) -> list[tuple[str, str]]:
        """Question and answer of every training row."""
        rows = [line["conversations"] for line in self.lines("training_data.jsonl")]
        return [(turns[-2]["content"], turns[-1]["content"]) for turns in rows]

    @property
    def content(self) -> dict[str, bytes]:
        """The bytes of every file that a later stage reads."""
        return {name: (self.folder / name).read_bytes() for name in self.result.files}


@pytest.fixture
def spec_of(tiny: JobSpec) -> Callable[..., PrepareSpec]:
    """Makes the spec of a prepare: keywords are of source self, or of prepare where it has them."""

    def make(**more: Any) -> PrepareSpec:
        own = {k: more.pop(k) for k in _OF_PREPARE if k in more}
        source = {"kind": "self", "questions": {"kind": "arithmetic"}, **more}
        fields = {"source": source, "base_model": tiny.train.base_model.model_dump(), **own}
        return PrepareSpec.model_validate({"examples": 6, "validation": 2, **fields})

    return make


@pytest.fixture
def run(
    inputs_of: Callable[..., Inputs], spec_of: Any, tmp_path: Path, heard: Any
) -> Callable[..., Prepared]:
    """Runs prepare into a folder below the test's; its runs share the answers kept."""

    def prepared(
        out: str, *, url: str, emit: Emitter | None = None, answers: str = "answers", **spec: Any
    ) -> Prepared:
        inputs = inputs_of(answers_dir=tmp_path / answers, ollama_host=url)
        folder = tmp_path / out
        folder.mkdir(exist_ok=True)
        return Prepared(folder, prepare.run(spec_of(**spec), inputs, folder, emit or heard.emit))

    return prepared


@pytest.fixture
def sums(stage_adapters: Path) -> Callable[[int], dict[str, str]]:
    """Writes a file of so many short sums and gives the source that reads it."""

    def write(count: int) -> dict[str, str]:
        sums = [(a, b) for total in range(30) for a in range(1, total) for b in [total - a]][:count]
        rows = [{"question": f"What is {a} + {b}?", "answer": f"#### {a + b}"} for a, b in sums]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (stage_adapters / "math" / "sums.jsonl").write_text(text)
        return {"kind": "jsonl", "path": "sums.jsonl"}

    return write
