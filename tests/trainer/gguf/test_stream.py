"""The one-pass GGUF is, byte for byte, what merging, converting and quantizing in turn writes."""

import contextlib
import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
import torch
from gguf import GGUFReader
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from loco.contracts.errors import DiskFull, ExportFailed
from loco.stage.program import Stopped
from loco_trainer.gguf import parent as gguf_file
from loco_trainer.gguf.parent import Job, Written

Make = Callable[..., Path]

FILE_TYPES = {
    "Q4_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M,
    "Q5_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q5_K_M,
    "Q6_K": llama_cpp.LLAMA_FTYPE_MOSTLY_Q6_K,
    "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
}


class Lane:
    """One base with an adapter, written both ways."""

    def __init__(self, base: Path, root: Path, convert: Make, make_adapter: Make) -> None:
        self.base, self.root, self._convert = base, root, convert
        self.adapter = make_adapter(base, root / "adapter")
        config = json.loads((base / "config.json").read_text())
        self.outtype = "bf16" if config["dtype"] == "bfloat16" else "f16"

    def job(self, target: Path, quantization: str, device: str = "cpu") -> Job:
        return Job(
            folder=str(self.base),
            adapter=str(self.adapter),
            target=str(target),
            name="x",
            outtype=self.outtype if quantization != "F16" else "f16",
            quantization=quantization,
            device=device,
        )

    def old_way(self, quantization: str) -> Path:
        """PEFT's merge, llama.cpp's converter, llama.cpp's quantizer."""
        outtype = self.outtype if quantization != "F16" else "f16"
        sixteen = self.root / f"{outtype}.gguf"
        if not sixteen.exists():
            base = AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32)
            merged = PeftModel.from_pretrained(base, self.adapter).merge_and_unload()
            # the converter writes the folder's name into the file
            folder = self.root / self.base.name
            dtype = torch.bfloat16 if self.outtype == "bf16" else torch.float16
            merged.to(dtype).save_pretrained(folder)
            AutoTokenizer.from_pretrained(self.base).save_pretrained(folder)
            self._convert(folder, sixteen, outtype=outtype)
        if quantization == "F16":
            return sixteen
        target = self.root / f"{quantization}.gguf"
        parameters = llama_cpp.llama_model_quantize_default_params()
        parameters.ftype = FILE_TYPES[quantization]
        code = llama_cpp.llama_model_quantize(
            os.fsencode(sixteen), os.fsencode(target), ctypes.byref(parameters)
        )
        assert code == 0
        return target


@pytest.fixture(scope="module")
def qwen(
    small_qwen_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
    convert: Make,
    make_adapter: Make,
) -> Lane:
    return Lane(small_qwen_dir, tmp_path_factory.mktemp("qwen"), convert, make_adapter)


@pytest.fixture(scope="module")
def smollm(
    smollm2_dir: Path, tmp_path_factory: pytest.TempPathFactory, convert: Make, make_adapter: Make
) -> Lane:
    return Lane(smollm2_dir, tmp_path_factory.mktemp("smollm"), convert, make_adapter)


def types(path: Path) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(path).tensors}


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["F16", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0"])
def test_a_qwen3_is_the_old_ways_file(
    quantization: str, qwen: Lane, tmp_path: Path, recorder: Any
) -> None:
    ours = tmp_path / "ours.gguf"
    written = gguf_file.write(qwen.job(ours, quantization), recorder)
    theirs = qwen.old_way(quantization)
    assert types(ours) == types(theirs)
    assert ours.read_bytes() == theirs.read_bytes()
    assert isinstance(written, Written)
    assert written.merged == 3 * 7
    assert written.tensors == len(types(ours))
    percents = [e.progress.percent for e in recorder.of_type("progress")]
    assert percents == sorted(percents)
    assert not list(tmp_path.glob("*.plan"))


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["Q4_K_M", "Q5_K_M"])
def test_the_gpus_code_writes_the_same_file(
    quantization: str, qwen: Lane, tmp_path: Path, recorder: Any
) -> None:
    ours = tmp_path / "ours.gguf"
    gguf_file.write(qwen.job(ours, quantization, device="torch-cpu"), recorder)
    assert ours.read_bytes() == qwen.old_way(quantization).read_bytes()


@pytest.mark.slow
def test_a_llama_with_rows_that_fit_no_k_quant_is_the_old_ways_file(
    smollm: Lane, tmp_path: Path, recorder: Any
) -> None:
    ours = tmp_path / "ours.gguf"
    gguf_file.write(smollm.job(ours, "Q4_K_M"), recorder)
    theirs = smollm.old_way("Q4_K_M")
    assert types(ours) == types(theirs)
    assert "Q5_0" in types(ours).values()  # the fallback of rows of 576
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.slow
def test_a_gpu_that_fills_up_on_the_way_hands_over_to_the_cpu(qwen: Lane, tmp_path: Path) -> None:
    """The real error class, raised where a full GPU raises it: in the middle of the pass."""
    ours = tmp_path / "ours.gguf"
    job = tmp_path / "job.json"
    job.write_text(json.dumps(vars(qwen.job(ours, "Q4_K_M", device="torch-cpu"))))
    code = (
        "import sys, torch\n"
        "from loco_trainer.gguf import child, kquants\n"
        "real, calls = kquants.quantize, []\n"
        "def full(rows, kind):\n"
        "    calls.append(kind)\n"
        "    if len(calls) == 4: raise torch.OutOfMemoryError('CUDA out of memory.')\n"
        "    return real(rows, kind)\n"
        "kquants.quantize = full\n"
        f"sys.exit(child.main({str(job)!r}))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(sys.prefix) / "converter")}
    said = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    ).stdout
    assert "Continuing on the CPU" in said
    assert '"device": "cpu, started on cpu"' in said
    assert ours.read_bytes() == qwen.old_way("Q4_K_M").read_bytes()


def test_a_base_in_shards_gives_the_same_file(
    qwen: Lane, small_qwen_dir: Path, tmp_path: Path, recorder: Any
) -> None:
    sharded = tmp_path / small_qwen_dir.name
    model = AutoModelForCausalLM.from_pretrained(small_qwen_dir)
    model.save_pretrained(sharded, max_shard_size="4MB")
    AutoTokenizer.from_pretrained(small_qwen_dir).save_pretrained(sharded)
    assert len(list(sharded.glob("*.safetensors"))) > 1
    whole, parts = tmp_path / "whole.gguf", tmp_path / "parts.gguf"
    gguf_file.write(qwen.job(whole, "Q8_0"), recorder)
    job = Job(**(vars(qwen.job(parts, "Q8_0")) | {"folder": str(sharded)}))
    gguf_file.write(job, recorder)
    assert parts.read_bytes() == whole.read_bytes()


def test_an_architecture_the_converter_does_not_know_is_refused(
    qwen: Lane, small_qwen_dir: Path, tmp_path: Path, recorder: Any
) -> None:
    strange = tmp_path / "strange"
    strange.mkdir()
    for file in small_qwen_dir.iterdir():
        (strange / file.name).symlink_to(file)
    config = json.loads((small_qwen_dir / "config.json").read_text())
    (strange / "config.json").unlink()
    (strange / "config.json").write_text(json.dumps(config | {"architectures": ["NoSuchLM"]}))
    job = Job(**(vars(qwen.job(tmp_path / "x.gguf", "Q8_0")) | {"folder": str(strange)}))
    with pytest.raises(ExportFailed, match="does not know the architecture NoSuchLM"):
        gguf_file.write(job, recorder)


def test_an_adapter_without_numbers_is_refused(qwen: Lane, tmp_path: Path, recorder: Any) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "adapter_config.json").write_bytes(
        (qwen.adapter / "adapter_config.json").read_bytes()
    )
    weights = load_file(qwen.adapter / "adapter_model.safetensors")
    next(iter(weights.values())).fill_(float("nan"))
    save_file(weights, broken / "adapter_model.safetensors")
    job = Job(**(vars(qwen.job(tmp_path / "x.gguf", "Q8_0")) | {"adapter": str(broken)}))
    with pytest.raises(ExportFailed, match="not numbers"):
        gguf_file.write(job, recorder)


def error_of_a_child(job: Job, folder: Path, put: str) -> dict[str, Any]:
    """What the writing process says when `os.pwrite` is this function."""
    code = (
        "import itertools, os, sys\n"
        "from loco_trainer.gguf import child\n"
        f"real, calls = os.pwrite, itertools.count(1)\n{put}"
        "os.pwrite = put\n"
        "sys.exit(child.main(sys.argv[1]))\n"
    )
    path = folder / "job.json"
    path.write_text(json.dumps(vars(job)))
    environment = {**os.environ, "PYTHONPATH": str(Path(sys.prefix) / "converter")}
    ended = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    error: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])["error"]
    return error


def test_a_full_disk_is_a_full_disk(qwen: Lane, tmp_path: Path) -> None:
    """/dev/full takes any length and has no room."""
    put = (
        "def put(fd, data, place):\n"
        "    with open('/dev/full', 'wb', buffering=0) as full: full.write(bytes(data)[:4096])\n"
    )
    error = error_of_a_child(qwen.job(tmp_path / "x.gguf", "Q8_0"), tmp_path, put)
    assert error["disk"]
    assert "No space left on device" in error["message"]
    assert DiskFull.user_fault


def test_a_machine_without_ram_is_not_taken_for_a_full_gpu(qwen: Lane, tmp_path: Path) -> None:
    """Going on with the CPU would leave a hole where the tensor before was to be written."""
    put = (
        "def put(fd, data, place):\n"
        '    if next(calls) == 5: raise RuntimeError("can\'t allocate memory")\n'
        "    return real(fd, data, place)\n"
    )
    job = qwen.job(tmp_path / "x.gguf", "Q8_0", device="torch-cpu")
    error = error_of_a_child(job, tmp_path, put)
    assert "no RAM left" in error["message"]


def test_what_went_wrong_is_said_even_where_the_log_cannot_be_written(
    qwen: Lane, tmp_path: Path, recorder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = qwen.job(tmp_path / "x.gguf", "Q8_0")
    job = Job(**(vars(job) | {"quantization": "Q9_9"}))
    full = Path("/dev/full").open("w")  # noqa: SIM115 (closed below)
    monkeypatch.setattr(sys, "stderr", full)
    try:
        with pytest.raises(ExportFailed, match=r"ended with code|cannot quantize"):
            gguf_file.write(job, recorder)
    finally:
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            full.close()


def test_a_stop_kills_the_child(qwen: Lane, tmp_path: Path, recorder: Any) -> None:
    recorder.request_stop()
    with pytest.raises(Stopped):
        gguf_file.write(qwen.job(tmp_path / "x.gguf", "Q4_K_M"), recorder)
    assert not (tmp_path / "x.gguf").exists()


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.slow
def test_a_gpu_writes_all_but_the_same_file(qwen: Lane, tmp_path: Path, recorder: Any) -> None:
    ours = tmp_path / "ours.gguf"
    written = gguf_file.write(qwen.job(ours, "Q4_K_M", device="auto"), recorder)
    assert written.device == torch.cuda.get_device_name(0)
    theirs = qwen.old_way("Q4_K_M")
    assert types(ours) == types(theirs)
    left, right = (np.fromfile(file, dtype=np.uint8) for file in (ours, theirs))
    # a GPU adds up B @ A in another order, so now and then a merged weight is one rounding off
    assert (left == right).mean() > 0.99


@pytest.mark.gpu
@needs_gpu
@pytest.mark.slow
def test_a_full_gpu_is_left_alone(qwen: Lane, tmp_path: Path, recorder: Any) -> None:
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    ballast = torch.empty(free - 300 * 2**20, dtype=torch.uint8, device="cuda")
    try:
        ours = tmp_path / "ours.gguf"
        written = gguf_file.write(qwen.job(ours, "Q4_K_M", device="auto"), recorder)
    finally:
        del ballast
        torch.cuda.empty_cache()
    assert written.device == "cpu"
    assert any("Quantizing on the CPU" in e.message for e in recorder.of_type("log"))
    assert ours.read_bytes() == qwen.old_way("Q4_K_M").read_bytes()
