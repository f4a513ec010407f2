"""Servers that answer otherwise: what is a failed check, and what a warning."""

from pathlib import Path
from typing import Any

import pytest
from proofs import Body, Register, Tampering, failures, said

pytestmark = [pytest.mark.redis, pytest.mark.slow]


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
        # the base, if an earlier test left it there, is looked at too, and not `verbose`
        if path == "/api/show" and request.get("verbose"):
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
    assert "1 with another shape, e.g. " in said(tmp_path, "tensors")
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
    assert check.seen.startswith("2 the same, "), check
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
