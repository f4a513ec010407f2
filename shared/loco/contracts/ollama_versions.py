"""Versions of Ollama: the holes known in them, and how to read what a server says of itself."""

import re
from typing import NamedTuple

from packaging.version import Version

#: Architectures whose adapters Ollama refused while it ran them on an engine of its own ("loras are not yet
#: implemented"), with the first release that did; since 0.30 llama.cpp's server runs them all.
#: Read from fs/ggml/ggml.go (OllamaEngineRequired) and runner/ollamarunner/runner.go of its releases.
_WITHOUT_ADAPTERS = {
    "gemma3": Version("0.6.0"),
    "mistral3": Version("0.6.6"),
    "llama4": Version("0.7.0"),
    "gemma3n": Version("0.10.0"),
    "gptoss": Version("0.11.0"),
    "gpt-oss": Version("0.11.0"),
    "qwen3": Version("0.12.0"),
    "qwen3moe": Version("0.12.4"),
    "deepseek2": Version("0.13.0"),
    "olmo3": Version("0.15.0"),
    "lfm2": Version("0.15.0"),
    "qwen35": Version("0.18.0"),
    "qwen3next": Version("0.18.0"),
    "gemma4": Version("0.20.0"),
}
_ADAPTERS_AGAIN = Version("0.30.0rc0")
#: `adapters` of /api/create; before, a Modelfile was sent.
_ADAPTERS_FIRST = Version("0.5.5")

#: `0.33.0`, `v0.17.1-rc0`, `0.33.0+locollm`, and of builds from source `0.5.7-0-ga420a45-dirty`.
_NUMBER = re.compile(r"v?(\d+(?:\.\d+)+)(?:-?(rc)[.-]?(\d+))?")


class Hole(NamedTuple):
    """A known security hole."""

    cve: str
    #: What it lets somebody do who reaches the server.
    lets: str
    #: First version not known to have it.
    before: Version


#: The newest fix first. CVE-2026-7020 is reported of versions up to 0.20.2.
HOLES = (
    Hole("CVE-2026-7020", "a crafted digest leaves the models folder", Version("0.20.3")),
    Hole("CVE-2026-7482", "a crafted GGUF reads the server's memory", Version("0.17.1")),
)

#: The one release that counts only those prompt tokens it had not cached (ollama 16428).
_COUNTS_UNCACHED_ONLY = (Version("0.30.0"), Version("0.30.1rc0"))


def parse(version: str) -> Version | None:
    """What a server says of itself, as a number to compare by; None: it is none.

    A pre-release comes before its release. What follows the number (`+locollm`) does not count.
    """
    found = _NUMBER.match(version.strip())
    if found is None:
        return None
    number, pre, count = found.groups()
    return Version(f"{number}{pre}{count}" if pre else number)


def holes(version: str) -> tuple[Hole, ...]:
    """The known holes of a version; none are known of one that cannot be read."""
    number = parse(version)
    return tuple(hole for hole in HOLES if number is not None and number < hole.before)


def hole_warning(version: str) -> tuple[str, str] | None:
    """What is known of a version's holes, and what mends them; None: nothing."""
    found = holes(version)
    if not found:
        return None
    known = ", ".join(f"{hole.cve} ({hole.lets})" for hole in found)
    fix = (
        f"Update Ollama to {found[0].before} or newer, and until then keep other machines "
        "away from it."
    )
    return f"Ollama {version} has known security holes: {known}.", fix


def without_adapters(version: str, architecture: str) -> str | None:
    """Why a server does not run adapters on models of an architecture; None: nothing is known against it.

    Args:
        version: what the server says of itself.
        architecture: `general.architecture` of the GGUF.
    """
    number = parse(version)
    if number is None:
        return None
    if number < _ADAPTERS_FIRST:
        return f"Ollama {version} does not take adapters over its API. 0.5.5 and newer do."
    since = _WITHOUT_ADAPTERS.get(architecture)
    if since is not None and since <= number < _ADAPTERS_AGAIN:
        return (
            f"Ollama {version} does not run adapters on models of architecture {architecture}. "
            "0.30.0 and newer do."
        )
    return None


def counts_whole_prompts(version: str) -> bool:
    """Whether `prompt_eval_count` holds the cached tokens too."""
    number, (first, fixed) = parse(version), _COUNTS_UNCACHED_ONLY
    return number is None or not first <= number < fixed
