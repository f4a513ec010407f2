"""What the server says it stores: /api/tags and /api/show against what was sent and exported."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from loco.contracts.serving import ServingReference, exported_base
from loco.serving.host import OllamaHost, full_name
from loco.serving.shown import parameter_faults, quoted
from loco_worker.proof.findings import Findings, Subject

Shown = Mapping[str, Any]

#: A model without a chat template: it continues the prompt instead of answering it.
BARE_TEMPLATE = "{{ .Prompt }}"
#: What Go templates have and Jinja has not: the server took one of its own for the embedded one.
_GO = re.compile(r"\{\{-?\s*(?:\.|\$|range\b|if\b|with\b|end\b)")
_FROM = re.compile(r"^FROM .*?sha256[-:]([0-9a-f]{64})", re.MULTILINE)
_ADAPTER = re.compile(r"^ADAPTER .*?sha256[-:]([0-9a-f]{64})", re.MULTILINE)
#: Bytes of settings, licence and head by which a model may differ from base and adapter together.
_ADAPTER_ROOM = 10**6
#: A server that rewrites a GGUF (Ollama since 0.30) changes its metadata, hardly its size.
_SIZE_TOLERANCE = 0.02
_SMALL = 4 * 10**6

_AGAIN = "Delete the candidate (`ollama rm`) and retry the job. It starts with stage register."
_UPDATE = "Update Ollama. `loco doctor` shows its version."


def listed(models: Mapping[str, str], subject: Subject, findings: Findings) -> bool:
    """Whether the server lists the model."""
    there = subject.model in models
    findings.add(
        "listed",
        there,
        expected=f"{subject.model} among the server's models",
        seen=f"digest {models[subject.model]}" if there else f"{len(models)} others, not this one",
        fix="Retry the job: stage register creates it again.",
    )
    return there


def digest_new(
    host: OllamaHost,
    models: Mapping[str, str],
    shown: Shown,
    subject: Subject,
    findings: Findings,
) -> None:
    """Another GGUF gives another model, of the size that was uploaded.

    The digest of the stored weights is no proof by itself: a server that rewrites a GGUF stores it
    under another one than it was uploaded under. But neither the base nor what serves may share it.
    """
    if subject.served_base is not None:
        _adapter_new(host, models, shown, subject, findings)
        return
    weights = _weights(shown)
    kept = f"sha256:{weights}" == subject.blob
    others = {} if kept else _others(models, subject)
    shared = [
        who
        for model, who in others.items()
        if models[model] == models[subject.model]
        or (weights and weights == _weights(host.show(model)))
    ]
    size = host.sizes().get(subject.model, 0)
    room = max(_SIZE_TOLERANCE * subject.size, _SMALL)
    fits = not size or abs(size - subject.size) <= room
    seen = [f"{size} bytes", "weights as uploaded" if kept else f"weights sha256:{weights or '?'}"]
    findings.add(
        "digest_new",
        fits and not shared,
        expected=f"weights made of {subject.blob}, about {subject.size} bytes"
        + (f", not those of {', '.join(others)}" if others else ""),
        seen="; ".join([*seen, *shared]),
        fix=f"The server used weights that it had before. {_AGAIN}",
    )


def _adapter_new(
    host: OllamaHost,
    models: Mapping[str, str],
    shown: Shown,
    subject: Subject,
    findings: Findings,
) -> None:
    """The weights are those of the base, and an adapter of the uploaded size is on them."""
    base = subject.served_base
    assert base is not None
    there, wanted = _weights(shown), _weights(host.show(base.model))
    adapter = _ADAPTER.search(str(shown.get("modelfile", "")))
    sizes = host.sizes()
    size = sizes.get(subject.model, 0) - sizes.get(base.model, 0)
    faults = []
    if there != wanted:
        faults.append(
            f"it has weights sha256:{there or '?'}, not the base's sha256:{wanted or '?'}"
        )
    # servers rewrite the weights of a model, never an adapter
    if adapter is None or f"sha256:{adapter[1]}" != subject.blob:
        faults.append(f"it has adapter {adapter[1] if adapter else 'none'}")
    promoted = subject.promoted
    same = [base.model]
    if promoted is not None and promoted.blob != subject.blob:
        same.append(promoted.candidate)
    faults += [
        f"it is the same model as {name}"
        for name in same
        if models.get(name) == models[subject.model]
    ]
    if sizes.get(base.model) and abs(size - subject.size) > _ADAPTER_ROOM:
        faults.append(f"it is {size} bytes larger than its base")
    findings.add(
        "digest_new",
        not faults,
        expected=f"an adapter made of {subject.blob}, about {subject.size} bytes, on the weights "
        f"of {base.model}",
        seen="; ".join(faults)
        or f"weights sha256:{there}, adapter sha256:{adapter[1] if adapter else '?'}, {size} bytes",
        fix=f"The server built another model. {_AGAIN}",
    )


def _others(models: Mapping[str, str], subject: Subject) -> dict[str, str]:
    """Models there whose weights are not the candidate's, and what it is that has them."""
    promoted = subject.promoted
    told = {name: f"it is the base's: the weights of {name}" for name in _bases(subject)}
    # a job from another's export registers the same GGUF again
    if promoted is not None and promoted.blob != subject.blob:
        told[promoted.candidate] = (
            f"the weights of version {promoted.version}, {promoted.candidate}"
        )
    return {name: who for name, who in told.items() if name in models}


def _bases(subject: Subject) -> tuple[str, ...]:
    """The base as it is served, and through our own export where the job has it."""
    return full_name(subject.base), exported_base(subject.model)


def template(shown: Shown, reference: ServingReference | None, findings: Findings) -> None:
    """There is a chat template, and it is the one of the GGUF where the server shows that."""
    text = str(shown.get("template", ""))
    fix = "Run stages export,register again: export embeds the chat template of training."
    if not text.strip() or text.strip() == BARE_TEMPLATE:
        findings.add(
            "template",
            False,
            expected="a chat template",
            seen=f"no chat template ({quoted(text)}): it would continue the text instead of "
            "answering",
            fix=fix,
        )
        return
    if reference is None or _GO.search(text):
        findings.add("template", True, expected="a chat template", seen=quoted(text), fix=fix)
        if reference is not None:
            findings.warnings.append(
                "The server renders prompts with its own template instead of the exported one. "
                "Only the rendered prompts show whether they are the same."
            )
        return
    digest = hashlib.sha256(text.encode()).hexdigest()
    findings.add(
        "template",
        digest == reference.chat_template_sha256,
        expected=f"the exported chat template, SHA-256 {reference.chat_template_sha256}",
        seen=f"SHA-256 {digest}: {quoted(text)}",
        fix=fix,
    )


def parameters(shown: Shown, subject: Subject, findings: Findings) -> None:
    """Stop strings, context, limits and system prompt are those that were sent."""
    faults = list(parameter_faults(shown, subject.parameters, subject.system))
    wanted = (subject.system or "").strip()
    sent_words = ", ".join(f"{name} {value}" for name, value in subject.parameters.items())
    findings.add(
        "parameters",
        not faults,
        expected=f"{sent_words}; system prompt {quoted(wanted) if wanted else 'none'}",
        seen="; ".join(faults) or "all as sent",
        fix=_AGAIN,
    )


def capabilities(shown: Shown, reference: ServingReference | None, findings: Findings) -> None:
    """It completes, and is taken for a thinking model only where its template says so."""
    named = shown.get("capabilities")
    if not named:
        findings.warnings.append(f"The server does not list the capabilities of a model. {_UPDATE}")
        return
    may_think = reference is None or reference.thinks
    findings.add(
        "capabilities",
        "completion" in named and (may_think or "thinking" not in named),
        expected="completion" + ("" if may_think else ", not thinking"),
        seen=", ".join(named),
        fix="The chat template is not the exported one. " + _AGAIN,
    )


def context_length(
    shown: Shown, subject: Subject, reference: ServingReference | None, findings: Findings
) -> None:
    """The model knows the context it did, and num_ctx lies within."""
    info = shown.get("model_info") or {}
    architecture = str(info.get("general.architecture", ""))
    knows = info.get(f"{architecture}.context_length")
    if not isinstance(knows, int):
        findings.warnings.append(
            f"The server does not say how long the context of a model is. {_UPDATE}"
        )
        return
    asked = int(subject.parameters.get("num_ctx", 0))
    same = reference is None or (reference.architecture, reference.context_length) == (
        architecture,
        knows,
    )
    expected = f"at least {asked} tokens for num_ctx"
    if reference is not None:
        expected = f"{reference.architecture}, {reference.context_length} tokens, {expected}"
    findings.add(
        "context_length",
        same and knows >= asked,
        expected=expected,
        seen=f"{architecture}, {knows} tokens",
        fix=f"Set register.num_ctx to {knows} or less."
        if same
        else f"Another model serves. {_AGAIN}",
    )


def tensors(shown: Shown, reference: ServingReference, findings: Findings) -> None:
    """Names, shapes and number of weights are the exported ones; another type is worth a warning.

    Their order is the server's: Ollama sorts them.
    """
    if not shown.get("tensors"):
        findings.warnings.append(f"The server does not list the tensors of a model. {_UPDATE}")
        return
    there = {str(t["name"]): (str(t["type"]), tuple(t["shape"])) for t in shown["tensors"]}
    wanted = reference.tensors
    missing, added = sorted(wanted.keys() - there.keys()), sorted(there.keys() - wanted.keys())
    both = sorted(wanted.keys() & there.keys())
    reshaped = [name for name in both if wanted[name][1] != there[name][1]]
    count = (shown.get("model_info") or {}).get("general.parameter_count")
    faults = [
        f"{len(names)} {what}, e.g. {names[0]}"
        for what, names in (
            ("missing", missing),
            ("too many", added),
            ("with another shape", reshaped),
        )
        if names
    ]
    if count is not None and count != reference.parameter_count:
        faults.append(f"{count} weights")
    findings.add(
        "tensors",
        not faults,
        expected=f"{len(wanted)} tensors, {reference.parameter_count} weights",
        seen="; ".join(faults) or f"{len(there)} tensors with the same names and shapes",
        fix=f"Another model serves. {_AGAIN}",
    )
    retyped = [name for name in both if wanted[name][0].upper() != there[name][0].upper()]
    if retyped:
        name = retyped[0]
        findings.warnings.append(
            f"The server stores {len(retyped)} tensors in another type than export wrote, e.g. "
            f"{name} in {there[name][0]} instead of {wanted[name][0]}. It quantized them again."
        )


def vocabulary(shown: Shown, reference: ServingReference, findings: Findings) -> None:
    """The tokens are the exported ones, in order, one a row of the embedding."""
    tokens = (shown.get("model_info") or {}).get("tokenizer.ggml.tokens")
    shapes = {str(t["name"]): tuple(t["shape"]) for t in shown.get("tensors") or ()}
    rows = max(shapes.get("token_embd.weight", ()), default=None)  # there are more than columns
    if not tokens:
        findings.warnings.append(f"The server does not show the vocabulary of a model. {_UPDATE}")
        return
    digest = hashlib.sha256(json.dumps(tokens).encode()).hexdigest()
    faults = []
    if len(tokens) != reference.vocabulary:
        faults.append(f"{len(tokens)} tokens")
    elif digest != reference.vocabulary_sha256:
        faults.append(f"{len(tokens)} tokens, some of them different: SHA-256 {digest}")
    if rows is not None and len(tokens) != rows:
        faults.append(f"{len(tokens)} tokens for {rows} embedding rows")
    findings.add(
        "vocabulary",
        not faults,
        expected=f"{reference.vocabulary} tokens, SHA-256 {reference.vocabulary_sha256}",
        seen="; ".join(faults) or "the same",
        fix=f"The served tokenizer is not the exported one. {_AGAIN}",
    )


def _weights(shown: Shown) -> str:
    """Hex digest of the weights' blob, from the Modelfile; empty where it is not told."""
    found = _FROM.search(str(shown.get("modelfile", "")))
    return found[1] if found else ""
