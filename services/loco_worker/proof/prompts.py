"""What conversations become before the model sees them, in every client, against the training."""

from collections.abc import Mapping
from typing import Any

from loco.contracts.ollama_versions import counts_whole_prompts
from loco.contracts.serving import ReferencePrompt, ServingReference
from loco.serving.host import OllamaHost
from loco.serving.shown import difference, own_beginning, same_prompt
from loco_worker.proof.answers import Asked
from loco_worker.proof.findings import Findings, Subject

#: What a client may send for `think`: nothing, as most do, or false or true.
Think = bool | None
_WORDS = {None: "unset", False: "false", True: "true"}

_FIX = (
    "Run stages export,register again. If it stays, the server renders the embedded chat "
    "template differently from transformers: report it with register.json."
)


def thinks_asked(shown: Mapping[str, Any]) -> tuple[Think, ...]:
    """The values of `think` that the model takes: true is refused where it can't think."""
    able = "thinking" in (shown.get("capabilities") or ())
    return (False, None, True) if able else (False, None)


def words(thinks: tuple[Think, ...]) -> str:
    """Values of `think` for a message."""
    return ", ".join(_WORDS[think] for think in thinks)


def rendered_prompt(
    host: OllamaHost,
    shown: Mapping[str, Any],
    subject: Subject,
    reference: ServingReference,
    findings: Findings,
) -> None:
    """Every conversation renders byte for byte as in training, whatever `think` says."""
    thinks = thinks_asked(shown)
    beginning = own_beginning(shown)
    faults = []
    for prompt in reference.prompts:
        for think in thinks:
            text = host.rendered(subject.model, prompt.messages, think=think)
            if text is None:
                findings.warnings.append(
                    "The server cannot show the prompts it renders (`_debug_render_only`), so "
                    "only their token counts were compared. Update Ollama to compare the text "
                    "too."
                )
                return
            if not same_prompt(text, prompt.rendered, beginning):
                faults.append(
                    f"{prompt.name} (think {_WORDS[think]}) differs "
                    f"{difference(prompt.rendered, text)}"
                )
    total = len(reference.prompts) * len(thinks)
    seen = f"{total - len(faults)} equal"
    findings.add(
        "rendered_prompt",
        not faults,
        expected=f"{total} prompts as training renders them: {_named(reference.prompts)}; "
        f"think {words(thinks)}",
        seen=f"{seen}; {'; '.join(faults[:3])}" if faults else seen,
        fix=_FIX,
    )


def prompt_tokens(version: str, asked: list[Asked], findings: Findings) -> None:
    """Every prompt has as many tokens as the training's tokenizer makes of it."""
    whole = counts_whole_prompts(version)
    if not whole:
        findings.warnings.append(
            f"Ollama {version} leaves cached tokens out of `prompt_eval_count`, so fewer tokens "
            "than in training were accepted. Update it."
        )
    faults = [
        f"{a.prompt.name}: {a.answer.prompt_tokens} instead of {a.prompt.tokens}"
        for a in asked
        if a.answer.prompt_tokens != a.prompt.tokens
        and (whole or a.answer.prompt_tokens > a.prompt.tokens)
    ]
    findings.add(
        "prompt_tokens",
        not faults,
        expected=f"the training's token counts: {', '.join(str(a.prompt.tokens) for a in asked)}",
        seen="; ".join(faults[:5]) or "the same",
        fix="One token more or less is usually a doubled or missing BOS token. Many: another "
        "tokenizer, or a missing system prompt. " + _FIX,
    )


def _named(prompts: tuple[ReferencePrompt, ...]) -> str:
    return ", ".join(prompt.name for prompt in prompts)
