"""A base model that brings a program, a pickle, or links to other files.

Before: export ran the program of a tokenizer where llama.cpp's converter trusts it (`trust_remote_code=True`,
in nine architectures);
a folder's links led anywhere, and what they led to was copied into what is published; a hub's file of a name
with `../` was written outside of the models folder.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from loco.contracts.errors import UnknownBaseModel
from loco.contracts.specs import BaseModelSpec
from loco_trainer.bases import find

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hostile(toy_dir: Path, tmp_path: Path) -> Path:
    """A model whose tokenizer is a program; it leaves `ran` beside the folder."""
    folder = tmp_path / "hostile"
    shutil.copytree(toy_dir, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"auto_map": {"AutoTokenizer": [None, "tokenizer_own.Own"]}, "tokenizer_class": "Own"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "tokenizer_own.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
        "from transformers import PreTrainedTokenizerFast\nclass Own(PreTrainedTokenizerFast): pass\n"
    )
    return folder


def as_base(toy: BaseModelSpec, folder: Path) -> BaseModelSpec:
    return toy.model_copy(update={"kind": "folder", "merge": str(folder), "train": str(folder)})


_CONVERTER = """
import sys
from pathlib import Path
from transformers import AutoTokenizer, dynamic_module_utils
from loco_trainer.gguf import child

folder, marker = sys.argv[1], Path(sys.argv[2])
whole = dynamic_module_utils.get_class_in_module
try:
    child.main("no such job")
except FileNotFoundError:
    pass
try:
    AutoTokenizer.from_pretrained(folder, trust_remote_code=True)  # as the converter does
except Exception as error:
    print(error)
print("ran" if marker.exists() else "did not run")
dynamic_module_utils.get_class_in_module = whole
AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
print("ran" if marker.exists() else "the attack does nothing, so neither does this test")
"""


def test_the_converters_process_loads_no_program_of_a_tokenizer(
    hostile: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _CONVERTER, str(hostile), str(tmp_path / "ran")],
        env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    said, refused, ran = done.stdout.splitlines()
    assert "does not run programs from models" in said
    assert (refused, ran) == ("did not run", "ran"), done.stderr


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "processor_config.json"])
def test_a_config_that_asks_for_code_is_refused_by_name(
    file: str, toy: BaseModelSpec, toy_dir: Path, tmp_path: Path, recorder: Any
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(toy_dir, folder)
    path = folder / file
    config = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(config | {"auto_map": {"AutoConfig": "own.Own"}}))
    with pytest.raises(UnknownBaseModel, match=rf"{file}.*auto_map") as caught:
        find.resolve(as_base(toy, folder), "merge", tmp_path, recorder)
    assert caught.value.hint


def test_weights_that_are_pickles_are_refused(
    toy: BaseModelSpec, toy_dir: Path, tmp_path: Path, recorder: Any
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(toy_dir, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UnknownBaseModel, match=r"pytorch_model\.bin was not read") as caught:
        find.resolve(as_base(toy, folder), "merge", tmp_path, recorder)
    assert "safetensors" in str(caught.value.hint)


def test_a_link_out_of_the_folder_is_refused_and_a_hubs_own_is_not(
    toy: BaseModelSpec, toy_dir: Path, tmp_path: Path, recorder: Any
) -> None:
    snapshot = tmp_path / "models--team--toy" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    blobs = tmp_path / "models--team--toy" / "blobs"
    blobs.mkdir()
    for file in toy_dir.iterdir():
        shutil.copyfile(file, blobs / file.name)
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", file.name))
    assert find.resolve(as_base(toy, snapshot), "merge", tmp_path, recorder) == snapshot
    for target in ("/etc/passwd", "../../../../../secret"):
        (snapshot / "vocab.json").unlink(missing_ok=True)
        (snapshot / "vocab.json").symlink_to(target)
        with pytest.raises(UnknownBaseModel, match=r"vocab\.json is a link"):
            find.resolve(as_base(toy, snapshot), "merge", tmp_path, recorder)


class _Hub(BaseHTTPRequestHandler):
    """A hub whose model has files that lie outside of it, and programs."""

    files: tuple[str, ...] = ("config.json", "tokenizer.json", "model.safetensors")
    files += ("../../../../../evil.json", "sub/../../../../../../evil2.json", "own.py", "a.bin")

    def do_HEAD(self) -> None:
        self._answer(b"{}", file=True, send=False)

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path == "/api/models/team/toy/revision/main":
            siblings = [{"rfilename": name} for name in self.files]
            self._answer(
                json.dumps({"id": "team/toy", "sha": COMMIT, "siblings": siblings}).encode()
            )
        elif path.startswith("/api/models/team/toy/tree/"):
            entries = [
                {"type": "file", "path": name, "size": 2, "oid": "0" * 40} for name in self.files
            ]
            self._answer(json.dumps(entries).encode())
        else:
            self._answer(b"{}", file=True)

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def _answer(self, content: bytes, *, file: bool = False, send: bool = True) -> None:
        self.send_response(200)
        if file:
            self.send_header("ETag", '"1"')
            self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if send:
            self.wfile.write(content)


def test_a_hubs_files_stay_in_the_folder_and_are_data(
    toy: BaseModelSpec, serve: Callable[[type[BaseHTTPRequestHandler]], str], tmp_path: Path
) -> None:
    base = toy.model_copy(update={"kind": "hub", "merge": "team/toy", "train": "team/toy"})
    code = (
        "import pathlib, sys\nfrom loco.stage.program import Emitter\n"
        "from loco.contracts.specs import BaseModelSpec\nfrom loco_trainer.bases import find\n"
        "spec = BaseModelSpec.model_validate_json(sys.argv[1])\n"
        "print(find.resolve(spec, 'merge', pathlib.Path(sys.argv[2]), Emitter(sys.stderr)))\n"
    )
    models = tmp_path / "a" / "b" / "models"
    done = subprocess.run(
        [sys.executable, "-c", code, base.model_dump_json(), str(models)],
        env={**os.environ, "HF_ENDPOINT": serve(_Hub), "HF_HOME": str(tmp_path / "a/b/hf")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    names = {file.name for file in Path(done.stdout.strip()).iterdir()}
    assert names == {"config.json", "tokenizer.json", "model.safetensors"}
    assert not list(tmp_path.rglob("evil*"))
