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
    "aiohttp": ("3.14.3", "CVE-2026-69243, request smuggling; CVE-2026-69244, a parser kept busy"),
    "h11": ("0.16.0", "CVE-2025-43859, request smuggling by chunked bodies"),
    "jinja2": ("3.1.6", "CVE-2025-27516, a way out of the sandbox"),
    "llama-cpp-python": ("0.2.72", "CVE-2024-34359, a chat template that runs code"),
    "pillow": ("12.3.0", "CVE-2026-59199, CVE-2026-59205, writes beyond a buffer"),
    "requests": ("2.32.4", "CVE-2024-47081, credentials of .netrc for another host"),
    "starlette": ("1.3.1", "CVE-2026-48710, a Host header that passes for a path; CVE-2026-54283"),
    "torch": ("2.10.0", "CVE-2026-24747, memory broken by torch.load with weights_only"),
    "transformers": (
        "5.5.0",
        "CVE-2026-5241, CVE-2026-4372, CVE-2026-1839, code of a base's folder",
    ),
    "urllib3": ("2.6.3", "CVE-2026-21441, a small answer that fills memory"),
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
    assert set(FLOORS) <= {name for file in FILES for name in pins(file)}
    for file in FILES:
        for name, version in pins(file).items():
            floor, hole = FLOORS.get(name, ("0", ""))
            assert numbers(version) >= numbers(floor), f"{file.name}: {name} {version}: {hole}"


def numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"[0-9]+", version.partition("+")[0])]
