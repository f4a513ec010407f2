"""What is installed is what was looked at: every requirement is one exact version of a registry."""

import re
from pathlib import Path

import pytest

REQUIREMENTS = Path(__file__).parents[1] / "services" / "requirements"
FILES = sorted(REQUIREMENTS.glob("*.txt"))
_PIN = re.compile(
    r"([A-Za-z0-9][A-Za-z0-9._-]*)(\[[a-z0-9,_-]+\])?==([0-9][A-Za-z0-9.!+]*)( *;.*)?"
)
#: First versions without a known hole that concerns what is done with them here, and which hole it was.
FLOORS = {
    "h11": ("0.16.0", "CVE-2025-43859, request smuggling by chunked bodies"),
    "jinja2": ("3.1.6", "CVE-2025-27516, a way out of the sandbox"),
    "starlette": ("0.49.1", "CVE-2025-62727, a Range header that takes the square of its length"),
    "requests": ("2.32.4", "CVE-2024-47081, credentials of .netrc for another host"),
    "torch": ("2.6.0", "CVE-2025-32434, code run by torch.load with weights_only"),
}


def pins(file: Path) -> dict[str, str]:
    """Package to version."""
    found = {}
    for line in file.read_text().splitlines():
        text = line.partition("#")[0].strip()
        if not text:
            continue
        pin = _PIN.fullmatch(text)
        assert pin, f"{file.name}: {text!r} is no NAME==VERSION"
        name = re.sub(r"[-_.]+", "-", pin[1]).lower()
        assert name not in found, f"{file.name}: {name} stands there twice"
        found[name] = pin[3]
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)
def test_every_requirement_is_one_exact_version(file: Path) -> None:
    assert pins(file)


def test_a_package_has_one_version_in_all_files() -> None:
    versions: dict[str, dict[str, str]] = {}
    for file in FILES:
        for name, version in pins(file).items():
            versions.setdefault(name, {})[file.name] = version
    assert {n: v for n, v in versions.items() if len(set(v.values())) > 1} == {}


def test_no_pin_is_below_a_known_hole() -> None:
    for file in FILES:
        for name, version in pins(file).items():
            floor, hole = FLOORS.get(name, ("0", ""))
            assert numbers(version) >= numbers(floor), f"{file.name}: {name} {version}: {hole}"


def numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"[0-9]+", version.partition("+")[0])]
