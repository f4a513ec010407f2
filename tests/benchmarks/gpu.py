"""Training and export measured on an NVIDIA GPU, and the script run by hand beside them.

    make gpu-bench                                  everything, about 20 minutes on an H200
    make gpu-bench OPTIONS="--only whole,hand --gsm8k train.jsonl --tokenizer DIR"

Everything runs through the stage programs as a worker starts them, on a model of Qwen3-4B's shape
with random weights and 200 rows of GSM8K. Figures are kept as JSON lines in a folder while they are
taken and printed as Markdown tables at the end; several calls may fill one folder. Needs the training
venv with `make setup-gpu`, 35 GB of disk, and Qwen3's tokenizer and GSM8K from the hub or from files.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_journal
import gpu_limits
import gpu_speed
import gpu_use
from gpu_bench import Bench, OutOfTime
from gpu_ground import ROOT, SHAPES, Ground
from gpu_journal import Journal

_PROBE = """
import json, torch
from importlib import metadata
def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
there = torch.cuda.is_available()
names = ("torch", "transformers", "peft", "trl", "bitsandbytes", "liger-kernel", "unsloth", "triton", "llama_cpp_python")
major, minor = torch.cuda.get_device_capability(0) if there else (0, 0)
print(json.dumps({
    "GPU": torch.cuda.get_device_name(0) if there else None,
    "compute capability": f"{major}.{minor}",
    "CUDA": torch.version.cuda,
    "versions": ", ".join(f"{name} {version(name)}" for name in names),
}))
"""
_NO_GPU_CODE = 2


def main() -> int:
    """Measures what was asked for and prints the tables."""
    arguments = _parse()
    if arguments.tables:
        _show(arguments.tables, arguments.page)
        return 0
    machine = _machine()
    if machine["GPU"] is None and not arguments.allow_cpu:
        print(
            "gpu-bench: torch sees no NVIDIA GPU here, and there is nothing to measure without "
            "one. Run it on a GPU machine after `make setup-gpu`; `loco doctor` says what is "
            "missing.",
            file=sys.stderr,
        )
        return _NO_GPU_CODE
    with tempfile.TemporaryDirectory(prefix="loco-gpu-bench-") as temporary:
        _measure(arguments, machine, arguments.work or Path(temporary))
    _show(arguments.out, arguments.page)
    return 0


def _show(folder: Path, page: Path | None) -> None:
    """Prints a folder's tables, and writes them into a page where one is named."""
    tables = gpu_journal.tables(gpu_journal.read(folder))
    print("\n" + gpu_journal.titled(tables))
    if page is not None:
        gpu_journal.fill(page, tables)


def _measure(arguments: argparse.Namespace, machine: dict[str, Any], work: Path) -> None:
    work.mkdir(parents=True, exist_ok=True)
    ground = Ground(
        work=work.resolve(),
        tokenizer=arguments.tokenizer,
        gsm8k=arguments.gsm8k,
        shape=arguments.shape,
        examples=arguments.examples,
    )
    journal = Journal(arguments.out)
    bench = Bench(ground, journal, budget=arguments.budget, total=arguments.total)
    ground.make()
    for name, value in (machine | _driver()).items():
        journal.put("machine", name, value=value)
    for name, value in bench.ceilings.items():
        journal.put("machine", name.replace("_", " "), value=f"{value:.4g}")
    parts: dict[str, Callable[[], None]] = {
        "whole": lambda: gpu_speed.whole(bench, arguments.repeats),
        "hand": lambda: gpu_speed.hand(bench, arguments.hand_runs),
        "losses": lambda: gpu_speed.losses(bench, arguments.loss_steps),
        "mfu": lambda: gpu_use.mfu(bench),
        "memory": lambda: gpu_limits.memory(bench),
        "caps": lambda: gpu_limits.caps(bench),
        "ladder": lambda: gpu_limits.ladder(bench),
    }
    for name, part in parts.items():
        if name not in arguments.only:
            continue
        bench.begin()
        try:
            part()
        except OutOfTime as left_out:
            print(f"{name}: out of time; from {left_out} on nothing was measured.", flush=True)
        bench.within.close()  # the next part may need its memory
    gpu_speed.compared(bench, gpu_journal.read(arguments.out))


def _machine() -> dict[str, Any]:
    """GPU and versions, asked in a process of its own: this one must not hold GPU memory."""
    said = subprocess.run(
        [sys.executable, "-c", _PROBE], check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, Any] = json.loads(said.stdout)
    return found


def _driver() -> dict[str, str]:
    path = Path("/proc/driver/nvidia/version")
    return {"driver": path.read_text().splitlines()[0]} if path.exists() else {}


def _parse() -> argparse.Namespace:
    parts = ("whole", "hand", "losses", "mfu", "memory", "caps", "ladder")
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--only",
        type=lambda text: text.split(","),
        default=parts,
        help=f"parts, separated by commas, of: {', '.join(parts)}",
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / ".loco" / "gpu-bench", help="folder of the figures"
    )
    parser.add_argument(
        "--work", type=Path, help="folder to work in and keep; else a temporary one"
    )
    parser.add_argument("--budget", type=float, default=1800, help="seconds a part may take")
    parser.add_argument("--total", type=float, default=7200, help="seconds all parts may take")
    parser.add_argument(
        "--tokenizer", default="Qwen/Qwen3-4B", help="folder or hub id of Qwen3's tokenizer"
    )
    parser.add_argument("--gsm8k", type=Path, help="GSM8K's train.jsonl; else from the hub")
    parser.add_argument("--examples", type=int, default=200, help="rows of the recipe")
    parser.add_argument("--repeats", type=int, default=3, help="warm runs of stage train")
    parser.add_argument("--hand-runs", type=int, default=1, help="runs of the script by hand")
    parser.add_argument("--loss-steps", type=int, default=75, help="steps of the loss curves")
    parser.add_argument("--tables", type=Path, metavar="DIR", help="only print a folder's tables")
    parser.add_argument(
        "--page", type=Path, help="page to write the tables into, between its marks"
    )
    # for trying the benchmark itself where there is no GPU
    parser.add_argument("--allow-cpu", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-4b", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    unknown = set(arguments.only) - set(parts)
    if unknown:
        parser.error(f"--only: no part {', '.join(sorted(unknown))}; there are {', '.join(parts)}")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
