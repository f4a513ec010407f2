"""The proof of a served candidate holds for what was exported, and what goes with it."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from proofs import EXPORTED, Body, Register, Tampering, evidence, promoted

from loco.contracts.errors import RegistrationFailed
from loco.contracts.serving import REFERENCE
from loco.serving.host import OllamaHost

pytestmark = [pytest.mark.redis, pytest.mark.slow]

CHECKS = [
    *["created", "listed", "template", "parameters", "capabilities", "context_length"],
    *["digest_new", "reference", "tensors", "vocabulary", "rendered_prompt", "probe"],
    *["prompt_tokens", "ends_with_stop", "greedy_answers", "no_thinking"],
]


def test_the_exported_model_is_proven(register_it: Register, tmp_path: Path, heard: Any) -> None:
    result = register_it()
    assert [c.name for c in result.checks] == CHECKS
    assert all(c.passed for c in result.checks), [c for c in result.checks if not c.passed]
    assert result.warnings == ()
    found = evidence(tmp_path)
    assert (found.checks, found.digest, found.version) == (
        result.checks,
        result.digest,
        result.version,
    )
    assert result.files == {"register.json": "register.json"}
    assert "16 of 16 checks" in heard.logs


def test_a_job_exported_without_reference_registers_unproven(
    register_it: Register, exported: Any, tmp_path: Path
) -> None:
    result = register_it(files={EXPORTED: exported.trained})
    failed = [c for c in result.checks if not c.passed]
    assert [c.name for c in failed] == ["reference"]
    assert "export,register" in str(failed[0].fix)
    assert any(w.startswith("Not proven") for w in result.warnings)
    assert "rendered_prompt" not in {c.name for c in result.checks}
    assert evidence(tmp_path).version == result.version is not None


def test_a_damaged_reference_says_what_is_wrong(
    register_it: Register, exported: Any, tmp_path: Path
) -> None:
    document = json.loads(exported.reference.read_text())
    del document["thinks"]
    path = tmp_path / REFERENCE
    path.write_text(json.dumps(document))
    with pytest.raises(RegistrationFailed, match=r"Field required \(thinks\)"):
        register_it(files={**exported.files, f"export/{REFERENCE}": path})


def test_the_exported_base_is_served_beside_the_candidate(
    register_it: Register, exported: Any, model_host: str
) -> None:
    files = {**exported.files, "export/gguf/base.Q4_K_M.gguf": exported.base}
    result = register_it(files=files)
    assert result.exported_base == f"{result.candidate}-base"
    with OllamaHost(model_host) as host:
        models = host.digests()
        base, candidate = host.show(result.exported_base), host.show(result.candidate)
    assert models[result.exported_base] != models[result.candidate]
    assert base["system"] == candidate["system"]
    assert base["parameters"] == candidate["parameters"]


def test_what_serves_is_no_false_alarm(register_it: Register, exported: Any) -> None:
    """Neither where it has other weights, nor where the same export is registered again."""
    other = register_it(files={EXPORTED: exported.base}, job_id="20261101-000000-bbbbbb")
    same = register_it(job_id="20261101-000000-cccccc")
    for before, compared in ((other, True), (same, False)):
        result = register_it(promoted=promoted(before))
        check = next(c for c in result.checks if c.name == "digest_new")
        assert check.passed
        assert (before.candidate in check.expected) is compared


def test_registry_yaml_is_not_read(register_it: Register, stage_adapters: Path) -> None:
    """It is a copy for people."""
    (stage_adapters / "registry.yaml").write_text("adapters: [")
    assert register_it().version is not None


def test_answers_are_asked_with_the_limits_they_were_made_with(
    register_it: Register, exported: Any, tampering: Tampering, tmp_path: Path
) -> None:
    seen = exported.read()
    limits = {p.name: 40 + n for n, p in enumerate(seen.prompts) if p.answer is not None}
    prompts = [p.model_copy(update={"num_predict": limits.get(p.name)}) for p in seen.prompts]
    path = tmp_path / REFERENCE
    path.write_text(seen.model_copy(update={"prompts": tuple(prompts)}).model_dump_json())
    asked: list[int] = []

    def answer(path: str, request: Body, reply: Body) -> Body:
        if path == "/api/chat" and not request.get("_debug_render_only"):
            asked.append(request["options"].get("num_predict", 0))
        return reply

    files = {**exported.files, f"export/{REFERENCE}": path}
    with suppress(RegistrationFailed):  # the answers were made with a shorter limit
        register_it(ollama_host=tampering(answer=answer), files=files)
    assert asked[1:] == [limits.get(p.name, 1) for p in prompts]
