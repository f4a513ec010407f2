"""Dockerfiles and pinned requirements: read by BuildKit's parser, checked against this repository.

Why this parser: docs/adr/0006-compose-validation.md.
"""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import dockerfile
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "services" / "requirements"
SERVICES = ("loco_api", "loco_worker", "loco_trainer")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def instructions(service: str) -> list[dockerfile.Command]:
    """The instructions of a service's Dockerfile."""
    return list(dockerfile.parse_file(str(ROOT / "services" / service / "Dockerfile")))


def stages(service: str) -> list[list[dockerfile.Command]]:
    """The instructions of each stage."""
    found: list[list[dockerfile.Command]] = []
    for line in instructions(service):
        if line.cmd == "FROM":
            found.append([])
        if found:
            found[-1].append(line)
    return found


def values(stage: list[dockerfile.Command], instruction: str) -> list[tuple[str, ...]]:
    """The words of each such instruction of a stage."""
    return [line.value for line in stage if line.cmd == instruction]


def sources(service: str) -> list[str]:
    """What a build copies from the repository."""
    return [
        source
        for line in instructions(service)
        if line.cmd == "COPY" and not any(flag.startswith("--from") for flag in line.flags)
        for source in line.value[:-1]
    ]


def reaches_the_build(path: str) -> bool:
    """Whether .dockerignore lets a path of the repository through (the last matching line decides)."""
    included = True
    for pattern in (ROOT / ".dockerignore").read_text().splitlines():
        if not pattern or pattern.startswith("#"):
            continue
        name = pattern.removeprefix("!")
        if name == "*" or path == name or path.startswith(f"{name}/"):
            included = pattern.startswith("!")
    return included


def pins(file: str) -> dict[str, str]:
    """The versions a requirements file pins, by normalised name."""
    found = {}
    for line in (REQUIREMENTS / file).read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            (specifier,) = requirement.specifier
            assert specifier.operator == "==", line
            found[canonicalize_name(requirement.name)] = specifier.version
    return found


@pytest.mark.parametrize("service", SERVICES)
def test_what_a_build_copies_exists_and_is_in_its_context(service: str) -> None:
    copied = sources(service)
    assert copied
    for source in copied:
        assert (ROOT / source).exists(), source
        assert reaches_the_build(source), source
    # hatchling packs these into the wheel, and refuses to when one is missing
    packed = [
        *PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"],
        PROJECT["project"]["readme"],
    ]
    for path in packed:
        assert any(path == source or path.startswith(f"{source}/") for source in copied), path


def test_nothing_private_or_large_reaches_a_build() -> None:
    for path in (".env", ".git", ".venv", ".venv-train", ".loco", "adapters", "tests", "docs"):
        assert not reaches_the_build(path), path


@pytest.mark.parametrize("service", SERVICES)
def test_the_image_is_small_and_runs_as_nobody_special(service: str) -> None:
    build, runtime = stages(service)
    assert values(build, "FROM")[0][1:] == ("AS", "build")
    assert values(runtime, "FROM") == [("${PYTHON_IMAGE}",)]
    (copied,) = [line for line in runtime if line.cmd == "COPY"]
    assert copied.flags == ("--from=build",)
    assert copied.value == ("/opt/venv", "/opt/venv")
    names = [line.cmd for line in runtime]
    assert values(runtime, "USER") == [("loco",)]
    assert names.index("USER") < names.index("CMD")
    assert "HEALTHCHECK" in names
    (image,) = {
        word
        for line in instructions(service)
        if line.cmd == "ARG"
        for word in line.value
        if word.startswith("PYTHON_IMAGE=")
    }
    assert re.fullmatch(r"PYTHON_IMAGE=python:3\.11\.\d+-slim-\w+", image)


@pytest.mark.parametrize("service", SERVICES)
def test_requirements_named_in_a_build_are_there(service: str) -> None:
    named = {
        name
        for line in instructions(service)
        if line.cmd == "RUN"
        for name in re.findall(r"services/requirements/[\w-]+\.\w+", line.value[0])
    }
    assert named
    assert named <= set(sources(service))


def test_only_the_trainer_has_torch() -> None:
    for service in ("loco_api", "loco_worker"):
        text = (ROOT / "services" / service / "Dockerfile").read_text()
        assert "train.txt" not in text
        assert "gpu.txt" not in text
    heavy = {"torch", "transformers", "trl", "peft", "unsloth", "llama-cpp-python"}
    assert not heavy & set(pins("runtime.txt"))
    assert heavy - {"unsloth"} <= set(pins("train.txt"))


def test_the_converter_lies_where_the_trainer_looks_for_it() -> None:
    text = " ".join(line.value[0] for line in stages("loco_trainer")[0] if line.cmd == "RUN")
    assert "--target /opt/venv/converter" in text
    assert "--target .venv-train/converter" in (ROOT / "Makefile").read_text()


def test_llama_cpp_is_built_as_by_make_but_for_any_machine() -> None:
    text = (ROOT / "services" / "loco_trainer" / "Dockerfile").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for flag in ("-DLLAVA_BUILD=OFF", "-DCMAKE_PROJECT_INCLUDE="):
        assert flag in text
        assert flag in makefile
    assert "-DGGML_NATIVE=OFF" in text  # an image is not run where it is built


def test_health_checks_ask_modules_that_exist() -> None:
    for service in ("loco_worker", "loco_trainer"):
        (check,) = values(stages(service)[1], "HEALTHCHECK")
        assert check == ("CMD", "python", "-P", "-m", "loco.running.alive")
    assert (ROOT / "shared" / "loco" / "running" / "alive.py").is_file()


def test_runtime_pins_cover_everything_the_api_needs() -> None:
    """The API's image installs `.[api]` under the constraints of runtime.txt."""
    project = PROJECT["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["api"]]
    pinned = pins("runtime.txt")
    todo = [Requirement(text) for text in wanted]
    seen: set[tuple[str, tuple[str, ...]]] = set()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        key = (name, tuple(sorted(requirement.extras)))
        if key in seen:
            continue
        seen.add(key)
        assert name in pinned, name
        assert pinned[name] in requirement.specifier, requirement
        for text in metadata.requires(name) or ():
            need = Requirement(text)
            contexts = [{"extra": extra} for extra in (requirement.extras or {""})]
            if need.marker is None or any(need.marker.evaluate(c) for c in contexts):
                todo.append(need)
    assert len(seen) < len(pinned)


@pytest.mark.parametrize("file", sorted(REQUIREMENTS.glob("*.txt")), ids=lambda path: path.name)
def test_requirements_are_full_pins_without_a_registry(file: Path) -> None:
    assert pins(file.name)
    for line in file.read_text().splitlines():
        if not line.startswith("#"):
            assert "://" not in line
            assert not line.startswith("-"), line
            assert "+" not in line, "a local version such as +cpu exists in one place only"


def test_gpu_pins_are_disjoint_from_train_pins_and_agree_with_the_project() -> None:
    gpu, train = pins("gpu.txt"), pins("train.txt")
    assert set(gpu) & set(train) == set()  # installed together: one place for each version
    extras = PROJECT["project"]["optional-dependencies"]
    for extra, pinned in (("gpu", gpu), ("train", train)):
        for text in extras[extra]:
            requirement = Requirement(text)
            assert pinned[canonicalize_name(requirement.name)] in requirement.specifier
    # what torch 2.13.0's own metadata asks for, and torchvision 0.28.0's of torch
    assert (train["torch"], gpu["triton"], gpu["torchvision"]) == ("2.13.0", "3.7.1", "0.28.0")


def test_the_same_package_has_the_same_version_in_both_venvs() -> None:
    runtime, train = pins("runtime.txt") | pins("dev.txt"), pins("train.txt") | pins("gpu.txt")
    differing = {
        name: (runtime[name], train[name])
        for name in set(runtime) & set(train)
        if runtime[name] != train[name]
    }
    assert differing == {}
