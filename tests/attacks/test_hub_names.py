"""A hub data set that is a file of the server, or a program.

Before: `dataset: json` read the files below the server's working directory into the training data, and
`dataset: pandas` unpickled them, which ran their code. A card on the hub could name `/etc/…` or another
folder as its data, and had it trained on.
"""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from small_hub import hub_of

from loco.contracts.errors import InvalidRequest
from loco.contracts.hub_ids import check_hub_id
from loco.contracts.requests import JobRequest
from loco.recipes.catalog import load_catalog
from loco.recipes.resolve import resolve

REPOSITORY = Path(__file__).parents[2]
SECRET = {"question": "What is the secret?", "answer": "#### 7"}
GOOD = {"question": "How many?", "answer": "#### 3"}

_OPEN = """
import json, sys
from loco.contracts.errors import LocoError
from loco.contracts.sources import HuggingFaceSource
from loco_worker.sources.hub import hub_table
for name in sys.argv[1:]:
    try:
        table = hub_table(HuggingFaceSource(kind="huggingface", dataset=name, config=None))
        said = {"rows": list(table.rows)}
    except LocoError as error:
        said = {"code": error.code, "message": error.message, "hint": error.hint}
    except Exception as error:
        said = {"code": "internal", "message": f"{type(error).__name__}: {error}"}
    print(json.dumps({"name": name, **said}))
"""


class _Bomb:
    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self._marker}",)


def _card(*paths: str) -> bytes:
    files = "\n".join(f"  - {path}" for path in paths)
    return f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}\n---\n".encode()


@pytest.mark.redis
@pytest.mark.slow
def test_no_name_and_no_card_reaches_a_file_of_the_server(
    serve: Callable[[type[BaseHTTPRequestHandler]], str], tmp_path: Path
) -> None:
    here, marker = tmp_path / "here", tmp_path / "ran"
    for folder in (here, here / "team" / "local"):
        folder.mkdir(parents=True)
        (folder / "train.jsonl").write_text(json.dumps(SECRET))
        (folder / "train.pkl").write_bytes(pickle.dumps(_Bomb(marker)))
    good = json.dumps(GOOD).encode()
    hub = serve(
        hub_of(
            {
                "team/good": {"README.md": b"", "data/train.jsonl": good},
                "team/absolute": {"README.md": _card(f"{here}/*.jsonl"), "train.jsonl": good},
                "team/dots": {"README.md": _card(f"../../..{here}/train.jsonl"), "x.jsonl": good},
                "team/other": {
                    "README.md": _card("hf://datasets/team/good/data/train.jsonl"),
                    "x.jsonl": good,
                },
                "team/pickle": {"README.md": b"", "train.pkl": pickle.dumps(_Bomb(marker))},
                "team/tar": {"README.md": b"", "train.tar": b"\0" * 10240},
                "team/program": {"README.md": b"", "program.py": b"raise SystemExit(3)"},
            }
        )
    )
    names = ["json", "csv", "pandas", "parquet", "gsm8k", "team/local", str(here), "team/absolute"]
    names += ["team/dots", "team/other", "team/pickle", "team/tar", "team/program", "team/good"]
    ended = subprocess.run(
        [sys.executable, "-c", _OPEN, *names],
        env={**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "hf")},
        cwd=here,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    said: dict[str, dict[str, Any]] = {}
    for line in ended.stdout.splitlines():
        entry = json.loads(line)
        said[entry.pop("name")] = entry
    assert said.pop("team/good") == {"rows": [GOOD]}
    assert len(said) == len(names) - 1
    for name, answer in said.items():
        assert answer["code"] in ("invalid_request", "source_unreachable"), (name, answer)
        assert answer["hint"], name
    assert "secret" not in ended.stdout
    assert not marker.exists()
    assert "openai/gsm8k" in said["gsm8k"]["hint"]
    for name in ("team/absolute", "team/other"):
        assert "not one of its own" in said[name]["message"]
    assert "does not run programs from a hub" in said["team/program"]["message"]


@pytest.mark.parametrize(
    "name",
    ["json", "pandas", "gsm8k", "../x/y", "a/../b", "/etc/passwd", "a/b/c", "a/b\n", "a/b.."],
)
def test_a_name_that_is_no_hubs_is_refused_at_submit(name: str) -> None:
    source = {"kind": "huggingface", "dataset": name}
    asked = JobRequest(adapter="math", prepare={"source": {"questions": source}})
    with pytest.raises(InvalidRequest) as caught:
        resolve(REPOSITORY / "adapters", asked)
    assert caught.value.param == "prepare.source.questions.dataset"
    asked = JobRequest(adapter="math", eval={"sets": {"held_out": {"source": source}}})
    with pytest.raises(InvalidRequest) as caught:
        resolve(REPOSITORY / "adapters", asked)
    assert caught.value.param == "eval.sets.held_out.source.dataset"


@pytest.mark.parametrize(
    "name", ["openai/gsm8k", "unsloth/Qwen3-4B-unsloth-bnb-4bit", "a/b", "0-x/y_.z"]
)
def test_names_of_a_hub_are_taken(name: str) -> None:
    assert check_hub_id(name, param="dataset") == name


def test_a_hub_base_of_the_catalog_is_no_folder(tmp_path: Path) -> None:
    entry = "kind: hub, merge: team/base, ollama: base, parameters_billion: 1"
    (tmp_path / "base_models.yaml").write_text(f"mine: {{train: ./models/mine, {entry}}}\n")
    with pytest.raises(InvalidRequest, match=r"base_models\.yaml: mine") as caught:
        load_catalog(tmp_path)
    assert "kind: folder" in str(caught.value.hint)
