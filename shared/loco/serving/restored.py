"""Whether a model that was made again is what was registered, as far as it is cheap to see.

Register proves a candidate in full (docs/deployment-proof.md); a model that is made again from the
same GGUF can still be rendered otherwise by another release of Ollama. What is compared here takes
no generation: parameters, system prompt and the rendered prompts that export left.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from loco.contracts.errors import NotFound, RegistrationFailed
from loco.contracts.ollama_versions import hole_warning
from loco.contracts.serving import REFERENCE, ServingReference
from loco.contracts.stages import Stage
from loco.contracts.versions import Version
from loco.ledger.ledger import Ledger
from loco.serving.host import OllamaHost

#: A beginning-of-text token, which a server's tokenizer may add and then leaves out of the text.
_BOS = re.compile(r"<[^<>\s]{1,40}>")
#: Faults and characters of a text that a message shows.
_SHOWN_FAULTS = 3
_SHOWN = 60


def check_restored(
    host: OllamaHost, adapter: str, version: Version, reference: ServingReference | None
) -> tuple[str, ...]:
    """Compares what Ollama holds with what was registered.

    Args:
        host: where it is.
        adapter: whose version.
        version: what was registered.
        reference: what its export left; None: nothing that can be read.

    Returns:
        Warnings: what could not be compared, and known holes of the server.

    Raises:
        RegistrationFailed: parameters, system prompt or a rendered prompt are others.
        OllamaUnavailable, OllamaRefused: the server does not answer, or not this.
    """
    warnings = []
    if known := hole_warning(host.version()):
        warnings.append(" ".join(known))
    shown = host.show(version.candidate)
    faults = [*_parameter_faults(shown, version)]
    if reference is None:
        warnings.append(
            f"Not proven: no readable {REFERENCE} of job {version.job}, so its rendered prompts "
            "were not compared with those of the training."
        )
    elif (differing := _prompt_faults(host, shown, version, reference)) is None:
        warnings.append(
            "Not proven: the server cannot show the prompts it renders (`_debug_render_only`)."
        )
    else:
        faults += differing
    if faults:
        raise RegistrationFailed(
            f"{version.candidate} in Ollama at {host.url} is not what was registered: "
            f"{'; '.join(faults[:_SHOWN_FAULTS])}.",
            hint=f"Nothing was pointed at it. `loco setup {adapter} --version {version.version} --all` "
            "makes it anew; if that does not mend it, this release of Ollama serves it otherwise: "
            "take the one it was registered with, or build it again.",
        )
    return tuple(warnings)


def reference_of(ledger: Ledger, adapters_dir: Path, version: Version) -> ServingReference | None:
    """What the export of a version's job left to compare with; None: nothing, or nothing intact."""
    try:
        exported = ledger.outputs(ledger.job(version.job)).get(Stage.EXPORT)
    except NotFound:
        return None
    artifacts = exported.artifacts if exported else ()
    found = next((a for a in artifacts if a.name == REFERENCE), None)
    if found is None:
        return None
    path = (adapters_dir / found.path).resolve()
    if not path.is_relative_to(adapters_dir.resolve()) or not path.is_file():
        return None
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != found.sha256:
        return None
    try:
        return ServingReference.model_validate_json(content, extra="ignore")
    except ValidationError:
        return None


def _parameter_faults(shown: Mapping[str, Any], version: Version) -> Iterator[str]:
    there: dict[str, list[str]] = {}
    for line in str(shown.get("parameters", "")).splitlines():
        name, _, value = line.strip().partition(" ")
        there.setdefault(name, []).append(value.strip())
    for name, sent in version.parameters.items():
        values = there.get(name, [])
        wanted = sent if isinstance(sent, list) else [sent]
        if sorted(map(_plain, values)) != sorted(_plain(str(value)) for value in wanted):
            yield f"parameter {name} is {', '.join(values) or 'missing'} instead of {sent}"
    system, wanted_system = str(shown.get("system", "")).strip(), (version.system or "").strip()
    if system != wanted_system:
        yield f"its system prompt is {system[:_SHOWN]!r} instead of {wanted_system[:_SHOWN]!r}"


def _plain(value: str) -> str:
    """A value however it is written: `0` and `0.0`, with quotes and without."""
    try:
        read = json.loads(value)
    except ValueError:
        return value.strip('"')
    if isinstance(read, int | float) and not isinstance(read, bool):
        return str(float(read))
    return str(read)


def _prompt_faults(
    host: OllamaHost, shown: Mapping[str, Any], version: Version, reference: ServingReference
) -> list[str] | None:
    """The prompts that come out otherwise than in training; None: the server cannot show them."""
    adds_bos = (shown.get("model_info") or {}).get("tokenizer.ggml.add_bos_token") is not False
    faults = []
    for prompt in reference.prompts:
        seen = host.rendered(version.candidate, prompt.messages, think=False)
        if seen is None:
            return None
        if seen != prompt.rendered and not (adds_bos and _lacks_bos(seen, prompt.rendered)):
            at = _shared_start(prompt.rendered, seen)
            faults.append(
                f"prompt {prompt.name} is rendered otherwise than in training, from character {at} on "
                f"{seen[at : at + _SHOWN]!r} instead of {prompt.rendered[at : at + _SHOWN]!r}"
            )
    return faults


def _lacks_bos(seen: str, expected: str) -> bool:
    head = expected.removesuffix(seen)
    return head != expected and _BOS.fullmatch(head) is not None


def _shared_start(a: str, b: str) -> int:
    shorter = min(len(a), len(b))
    return next((i for i in range(shorter) if a[i] != b[i]), shorter)
