"""What a version of Ollama says about its holes."""

import pytest

from loco.contracts.ollama_versions import (
    counts_whole_prompts,
    hole_warning,
    holes,
    parse,
    without_adapters,
)


@pytest.mark.parametrize(
    ("version", "number"),
    [
        ("0.33.0+locollm", "0.33.0"),
        ("v0.17.1-rc0", "0.17.1rc0"),
        ("0.17.1-rc.2", "0.17.1rc2"),
        ("0.5.7-0-ga420a45-dirty", "0.5.7"),
        ("0.9", "0.9"),
    ],
)
def test_versions_are_read_with_their_suffixes(version: str, number: str) -> None:
    assert str(parse(version)) == number


@pytest.mark.parametrize("version", ["", "soon", "unknown", "{}", "7"])
def test_what_is_no_version_is_none(version: str) -> None:
    assert parse(version) is None
    assert holes(version) == ()


@pytest.mark.parametrize(
    ("version", "known"),
    [
        ("0.9.6", {"CVE-2026-7482", "CVE-2026-7020"}),  # as text it would be newer than 0.17.1
        ("0.17.0", {"CVE-2026-7482", "CVE-2026-7020"}),
        ("0.17.1-rc1", {"CVE-2026-7482", "CVE-2026-7020"}),
        ("0.17.1", {"CVE-2026-7020"}),
        ("0.20.2", {"CVE-2026-7020"}),
        ("0.20.3", set()),
        ("0.33.0+locollm", set()),
    ],
)
def test_holes_are_known_by_version(version: str, known: set[str]) -> None:
    assert {hole.cve for hole in holes(version)} == known
    warning = hole_warning(version)
    assert (warning is None) == (not known)
    if warning is not None:
        message, fix = warning
        assert all(cve in message for cve in known)
        assert "0.20.3 or newer" in fix


def test_one_release_left_cached_tokens_out() -> None:
    assert not counts_whole_prompts("0.30.0")
    assert not counts_whole_prompts("v0.30.0+build")
    assert all(
        counts_whole_prompts(v) for v in ("0.29.9", "0.30.1-rc0", "0.30.1", "0.33.0+locollm")
    )


@pytest.mark.parametrize(
    ("version", "architecture", "runs"),
    [
        ("0.5.4", "llama", False),
        ("0.5.5", "llama", True),
        ("0.20.0", "llama", True),
        ("0.20.0", "qwen2", True),
        ("0.5.13", "gemma3", True),
        ("0.6.0", "gemma3", False),
        ("0.11.11", "qwen3", True),
        ("0.12.0", "qwen3", False),
        ("0.24.0", "qwen3", False),
        ("0.30.0-rc1", "qwen3", True),
        ("0.33.0+locollm", "qwen3", True),
        ("unknown", "qwen3", True),
    ],
)
def test_which_releases_run_adapters_on_which_architectures(
    version: str, architecture: str, runs: bool
) -> None:
    why = without_adapters(version, architecture)
    assert (why is None) is runs
    assert why is None or (version in why and "newer do" in why)
