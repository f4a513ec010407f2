"""The proof of a served candidate: it holds for what was exported, and names what was tampered with."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loco.contracts.errors import RegistrationFailed
from loco.contracts.files import sha256_of
from loco.contracts.results import RegisterResult, Registration
from loco.contracts.serving import REFERENCE
from loco.contracts.stages import Stage
from loco.recipes import registry
from loco.serving.host import OllamaHost
from loco_modelhost.store.gguf_file import GgufFile

pytestmark = [pytest.mark.redis, pytest.mark.slow]

EXPORTED = "export/gguf/unsloth.Q4_K_M.gguf"
CHECKS = [
    *["created", "listed", "template", "parameters", "capabilities", "context_length"],
    *["digest_new", "reference", "tensors", "vocabulary", "rendered_prompt", "probe"],
    *["prompt_tokens", "ends_with_stop", "greedy_answers", "no_thinking"],
]

Body = dict[str, Any]
Register = Callable[..., RegisterResult]
Tampering = Callable[..., str]
BlobOf = Callable[[Path], str]


def evidence(folder: Path) -> Registration:
    return Registration.model_validate_json((folder / "out" / "register.json").read_bytes())


def failures(register_it: Register, tmp_path: Path, **inputs: Any) -> set[str]:
    """Names of the checks the stage fails by, which its error and register.json name."""
    with pytest.raises(RegistrationFailed) as caught:
        register_it(**inputs)
    found = evidence(tmp_path)
    failed = [c for c in found.checks if not c.passed]
    assert found.version is None
    for check in failed:
        assert f"{check.name}: {check.seen} (expected: {check.expected})" in caught.value.message
        assert check.fix
    assert str(tmp_path / "out" / "register.json") in str(caught.value.hint)
    return {c.name for c in failed}


def said(folder: Path, name: str) -> str:
    """What a check saw."""
    return next(c.seen for c in evidence(folder).checks if c.name == name)


def from_other(blob: str) -> Callable[[Body], Body]:
    """Creates from another GGUF than it was told to."""
    return lambda body: {**body, "files": dict.fromkeys(body["files"], blob)}


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


# ── sabotage ─────────────────────────────────────────────────────────────────────────────────────


def test_a_wrong_template_is_named(
    register_it: Register,
    tampering: Tampering,
    blob_of: BlobOf,
    exported: Any,
    tmp_path: Path,
) -> None:
    head = GgufFile.read(exported.trained)
    wrong = head.chat_template.replace("'<|im_end|>' + '\n'", "'<|im_end|>' + ' \n'")
    assert wrong != head.chat_template
    with (tmp_path / "x.gguf").open("wb") as file:
        head.copy_with("tokenizer.chat_template", wrong, file)
    url = tampering(create=from_other(blob_of(tmp_path / "x.gguf")))
    failed = failures(register_it, tmp_path, ollama_host=url)
    assert {"template", "rendered_prompt"} <= failed


def test_no_template_at_all_is_named(
    register_it: Register, tampering: Tampering, blob_of: BlobOf, exported: Any, tmp_path: Path
) -> None:
    content = exported.trained.read_bytes()
    assert b"tokenizer.chat_template" in content
    bare = tmp_path / "x.gguf"
    bare.write_bytes(content.replace(b"tokenizer.chat_template", b"tokenizer.chat_templatX", 1))
    url = tampering(create=from_other(blob_of(bare)))
    with pytest.raises(RegistrationFailed, match="template: no chat template"):
        register_it(ollama_host=url)


def test_a_missing_stop_string_is_named(
    register_it: Register, tampering: Tampering, tmp_path: Path
) -> None:
    def create(body: Body) -> Body:
        del body["parameters"]["stop"]
        return body

    assert failures(register_it, tmp_path, ollama_host=tampering(create=create)) == {"parameters"}
    assert "stop is missing instead of ['<|im_end|>']" in said(tmp_path, "parameters")


def test_other_parameters_and_a_lost_system_prompt_are_named(
    register_it: Register, tampering: Tampering, tmp_path: Path
) -> None:
    def create(body: Body) -> Body:
        del body["system"]  # the template writes the same one by itself: nothing else notices
        body["parameters"].update(num_ctx=512, num_predict=99, temperature=0.8)
        return body

    assert failures(register_it, tmp_path, ollama_host=tampering(create=create)) == {"parameters"}
    seen = said(tmp_path, "parameters")
    for words in (
        "num_ctx is 512 instead of 1024",
        "num_predict is 99 instead of 128",
        "temperature is 0.8 instead of 0",
        "the system prompt differs from character 0",
    ):
        assert words in seen


def test_a_swapped_tokenizer_is_named(
    register_it: Register, tampering: Tampering, blob_of: BlobOf, exported: Any, tmp_path: Path
) -> None:
    """Two tokens change places: same sizes, same shapes, other words."""
    path = tmp_path / "x.gguf"
    path.write_bytes(swap_tokens(exported.trained.read_bytes(), "Ġthe", "Ġand"))
    assert sorted(path.read_bytes()[: 10**7]) == sorted(exported.trained.read_bytes()[: 10**7])
    url = tampering(create=from_other(blob_of(path)))
    assert "vocabulary" in failures(register_it, tmp_path, ollama_host=url)


def test_a_gguf_cut_after_export_is_named_before_anything_is_sent(
    register_it: Register, exported: Any, tmp_path: Path, model_host: str
) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(exported.trained.read_bytes()[:-1000])
    told = {"sha256": sha256_of(exported.trained), "size": exported.trained.stat().st_size}
    with OllamaHost(model_host) as host:
        before = host.digests()
        failed = failures(
            register_it,
            tmp_path,
            files={**exported.files, EXPORTED: cut},
            results={Stage.EXPORT: told},
            job_id="20261122-160000-aaaaaa",
        )
        assert failed == {"exported"}
        assert host.digests() == before
        assert not host.has_blob(f"sha256:{sha256_of(cut)}")


def test_a_truncated_gguf_that_the_server_refuses_is_named(
    register_it: Register, exported: Any, tmp_path: Path
) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(exported.trained.read_bytes()[:-1000])
    failed = failures(register_it, tmp_path, files={**exported.files, EXPORTED: cut})
    assert failed == {"created"}
    assert "tensor data ends at byte" in evidence(tmp_path).checks[-1].seen


def test_a_stale_blob_is_named(
    register_it: Register,
    tampering: Tampering,
    blob_of: BlobOf,
    exported: Any,
    stage_adapters: Path,
    tmp_path: Path,
) -> None:
    """The server returns the weights of an older version under the new name."""
    old = blob_of(exported.base)
    files = {**exported.files, EXPORTED: exported.base}
    del files[f"export/{REFERENCE}"]
    first = register_it(files=files, job_id="20261101-000000-aaaaaa")
    assert first.version is not None
    registry.record(stage_adapters, "math", first.version)
    failed = failures(register_it, tmp_path, ollama_host=tampering(create=from_other(old)))
    assert {"digest_new", "greedy_answers"} <= failed
    assert "the weights of version 1, locollm-math" in said(tmp_path, "digest_new")


def test_the_base_instead_of_the_merged_model_is_named(
    register_it: Register, tampering: Tampering, blob_of: BlobOf, exported: Any, tmp_path: Path
) -> None:
    url = tampering(create=from_other(blob_of(exported.base)))
    failed = failures(register_it, tmp_path, ollama_host=url)
    assert "greedy_answers" in failed
    assert failed <= {"greedy_answers", "ends_with_stop", "probe"}


# ── servers that answer otherwise ────────────────────────────────────────────────────────────────


def test_a_candidate_the_server_does_not_list_is_named(
    register_it: Register, tampering: Tampering, tmp_path: Path
) -> None:
    def answer(path: str, request: Body, reply: Body) -> Body:
        return {"models": []} if path == "/api/tags" else reply

    assert failures(register_it, tmp_path, ollama_host=tampering(answer=answer)) == {"listed"}


@pytest.mark.parametrize(
    ("changed", "failed"),
    [
        (
            {"message": {"role": "assistant", "content": "4", "thinking": "2 + 2"}},
            {"no_thinking", "greedy_answers"},
        ),
        (
            {"message": {"role": "assistant", "content": "<think>\n2"}, "prompt_eval_count": 1},
            {"no_thinking", "greedy_answers", "prompt_tokens"},
        ),
        ({"done_reason": "length"}, {"ends_with_stop", "probe"}),
        (
            {"message": {"role": "assistant", "content": ""}},
            {"probe", "greedy_answers"},
        ),
    ],
)
def test_answers_of_another_kind_are_named(
    register_it: Register, tampering: Tampering, tmp_path: Path, changed: Body, failed: set[str]
) -> None:
    def answer(path: str, request: Body, reply: Body) -> Body:
        asked = path == "/api/chat" and not request.get("_debug_render_only")
        return {**reply, **changed} if asked else reply

    assert failures(register_it, tmp_path, ollama_host=tampering(answer=answer)) == failed


def test_a_model_of_another_shape_is_named(
    register_it: Register, tampering: Tampering, tmp_path: Path
) -> None:
    def answer(path: str, request: Body, reply: Body) -> Body:
        if path == "/api/show":
            reply["model_info"]["llama.context_length"] = 512
            reply["model_info"]["general.parameter_count"] += 1
            reply["model_info"]["tokenizer.ggml.tokens"].pop()
            reply["tensors"].pop()
            reply["tensors"][0]["shape"][0] += 1
        return reply

    assert failures(register_it, tmp_path, ollama_host=tampering(answer=answer)) == {
        *["context_length", "tensors", "vocabulary"]
    }
    assert said(tmp_path, "context_length") == "llama, 512 tokens"
    assert said(tmp_path, "tensors").startswith("1 missing, e.g. ")
    assert "1 of another shape, e.g. " in said(tmp_path, "tensors")
    assert said(tmp_path, "vocabulary") == "49151 tokens; 49151 tokens for 49152 embedding rows"


def test_a_model_that_is_taken_for_a_thinking_one_is_named(
    register_it: Register, tampering: Tampering, tmp_path: Path
) -> None:
    def answer(path: str, request: Body, reply: Body) -> Body:
        if path == "/api/show":
            reply["capabilities"].append("thinking")
        return reply

    # and `think: true` is then asked with, which this server refuses
    failed = failures(register_it, tmp_path, ollama_host=tampering(answer=answer))
    assert failed == {"capabilities", "rendered_prompt", "greedy_answers"}
    assert "does not support thinking" in said(tmp_path, "rendered_prompt")


def test_near_ties_tensor_types_and_an_old_version_are_let_pass_with_warnings(
    register_it: Register, tampering: Tampering, exported: Any
) -> None:
    """Of two tokens about as likely other kernels choose the other one, late or early."""
    answers = [p for p in exported.read().prompts if p.answer is not None]
    words = {p.messages[-1]["content"]: p.answer for p in answers}
    late, early = answers[2], answers[3]
    words[late.messages[-1]["content"]] = late.answer[: len(late.answer) * 2 // 3] + "!"
    words[early.messages[-1]["content"]] = "Oh"

    def answer(path: str, request: Body, reply: Body) -> Body:
        if path == "/api/version":
            return {"version": "0.17.0"}
        if path == "/api/show":
            reply["tensors"][0]["type"] = "F16"
            reply["tensors"].reverse()
        if path == "/api/chat" and reply.get("eval_count", 0) > 1:
            question = request["messages"][-1]["content"]
            reply["message"]["content"] = words[question]
        return reply

    result = register_it(ollama_host=tampering(answer=answer))
    check = next(c for c in result.checks if c.name == "greedy_answers")
    assert check.seen.startswith("2 the same, 1 begin the same"), check
    assert "'Oh' instead of" in check.seen
    holes, types = result.warnings
    assert "CVE-2026-7482" in holes
    assert "Update Ollama to 0.20.3" in holes
    assert "1 tensors in another type" in types


def test_a_server_that_cannot_show_what_it_renders_is_a_warning_and_no_check(
    register_it: Register, tampering: Tampering
) -> None:
    def answer(path: str, request: Body, reply: Body) -> Body:
        return {k: v for k, v in reply.items() if k != "_debug_info"}

    result = register_it(ollama_host=tampering(answer=answer))
    assert "rendered_prompt" not in {c.name for c in result.checks}
    assert any("cannot show the prompts" in w for w in result.warnings)


def test_the_one_version_that_counts_uncached_tokens_only_is_let_pass_with_a_warning(
    register_it: Register, tampering: Tampering
) -> None:
    def answer(path: str, request: Body, reply: Body) -> Body:
        if path == "/api/version":
            return {"version": "0.30.0"}
        return {**reply, "prompt_eval_count": 3} if "prompt_eval_count" in reply else reply

    result = register_it(ollama_host=tampering(answer=answer))
    [warning] = result.warnings
    assert "leaves cached tokens out" in warning


# ── around the proof ─────────────────────────────────────────────────────────────────────────────


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


def test_a_second_version_of_other_weights_is_new(
    register_it: Register, exported: Any, stage_adapters: Path
) -> None:
    """No false alarm where an older version is compared, of other and of the same weights."""
    first = register_it(files={EXPORTED: exported.base}, job_id="20261101-000000-bbbbbb")
    same = register_it(job_id="20261101-000000-cccccc")
    for version in (first.version, same.version):
        assert version is not None
        registry.record(stage_adapters, "math", version)
    result = register_it()
    check = next(c for c in result.checks if c.name == "digest_new")
    assert check.passed
    assert "none of 1 earlier versions" in check.expected


def swap_tokens(content: bytes, one: str, other: str) -> bytes:
    """The GGUF with two tokens of equal length exchanged."""
    a, b = one.encode(), other.encode()
    assert len(a) == len(b)
    start = content.index(b"tokenizer.ggml.tokens")
    items = [struct.pack("<Q", len(token)) + token for token in (a, b)]
    first, second = (content.index(item, start) for item in items)
    changed = bytearray(content)
    changed[first : first + len(items[0])] = items[1]
    changed[second : second + len(items[1])] = items[0]
    return bytes(changed)
