"""Whether a model that was made again is what was registered, as far as it is cheap to see.

Register proves a candidate in full (docs/deployment-proof.md); a model that is made again from the
same GGUF can still be rendered otherwise by another release of Ollama. What is compared here takes
no generation: parameters, system prompt and the rendered prompts that export left.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from loco.contracts.errors import NotFound, RegistrationFailed, UnsafePath
from loco.contracts.ollama_versions import hole_warning
from loco.contracts.paths import inside
from loco.contracts.serving import REFERENCE, ServingReference
from loco.contracts.stages import Stage
from loco.contracts.versions import Version
from loco.ledger.ledger import Ledger
from loco.serving.host import OllamaHost
from loco.serving.shown import difference, own_beginning, parameter_faults, same_prompt

#: Faults that a message shows.
_SHOWN_FAULTS = 3


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
    faults = list(parameter_faults(shown, version.parameters, version.system))
    if reference is None:
        warnings.append(
            f"Not proven: no readable {REFERENCE} of job {version.job}, so its rendered prompts "
            "were not compared with those of training."
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
            hint=f"`latest` did not move. `loco setup {adapter} --version {version.version} "
            "--all` creates it again. If that does not fix it, this release of Ollama "
            "serves it differently: use the release it was registered with, or build it "
            "again.",
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
    try:
        content = inside(adapters_dir, found.path).read_bytes()
    except (UnsafePath, OSError):
        return None
    if hashlib.sha256(content).hexdigest() != found.sha256:
        return None
    try:
        return ServingReference.model_validate_json(content, extra="ignore")
    except ValidationError:
        return None


def _prompt_faults(
    host: OllamaHost, shown: Mapping[str, Any], version: Version, reference: ServingReference
) -> list[str] | None:
    """The prompts that come out otherwise than in training; None: the server cannot show them."""
    beginning = own_beginning(shown)
    faults = []
    for prompt in reference.prompts:
        seen = host.rendered(version.candidate, prompt.messages, think=False)
        if seen is None:
            return None
        if not same_prompt(seen, prompt.rendered, beginning):
            faults.append(
                f"prompt {prompt.name} is rendered differently from training, "
                f"{difference(prompt.rendered, seen)}"
            )
    return faults
