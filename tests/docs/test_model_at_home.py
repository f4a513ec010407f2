"""A model taken home: what README and the how-to download is what their `ollama create` reads."""

import re
import shlex
from pathlib import Path

import pytest

from loco.cli.artifacts import _below, _named
from loco.contracts.artifacts import Artifact
from loco.contracts.stages import Stage

ROOT = Path(__file__).parents[2]
GGUF = "gguf/unsloth.Q4_K_M.gguf"
#: What export leaves where its recipe names no format, and other stages' files.
LEFT = (
    *((Stage.EXPORT, name) for name in (GGUF, "gguf/adapter.gguf", "Modelfile")),
    (Stage.EXPORT, "serving_reference.json"),
    (Stage.PREPARE, "training_data.jsonl"),
    (Stage.EVAL, "report.md"),
)


@pytest.mark.parametrize("page", ["README.md", "docs/howto/remote-box.md"])
def test_the_modelfile_lies_where_it_finds_its_gguf(page: str, tmp_path: Path) -> None:
    text = (ROOT / page).read_text()
    [line] = re.findall(r"^laptop\$ loco artifacts last (.* --download \w+)$", text, re.MULTILINE)
    *names, _, folder = shlex.split(line)
    made = tuple(
        Artifact(name=name, stage=stage, path=name, size=1, sha256="0" * 64, media_type="a/b")
        for stage, name in LEFT
    )
    places = {a.name: _below(tmp_path / folder, a) for a in _named(made, names, "job")}
    assert set(places) == {GGUF, "Modelfile"}
    # the Modelfile says `FROM ./gguf/…`, which Ollama reads from where the Modelfile lies
    assert places[GGUF] == places["Modelfile"].parent / GGUF
    [create] = re.findall(r"^laptop\$ ollama create my-math -f (\S+)$", text, re.MULTILINE)
    assert tmp_path / create == places["Modelfile"]
