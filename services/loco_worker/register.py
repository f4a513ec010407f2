"""Stage register: the exported GGUF becomes a candidate in Ollama and is proven to be it.

    python -m loco_worker.register --spec adapters/math/runs/JOB/register/a1/spec.json --out /tmp/x

The candidate `MODEL:JOB_ID` is never changed afterwards, and `MODEL:latest` is not touched: the gate
moves it. Running it again after a crash at any place ends the same. The evidence is `register.json`,
also where a check fails (docs/deployment-proof.md).
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from loco.contracts.errors import OllamaRefused, RegistrationFailed
from loco.contracts.files import sha256_of, write_text
from loco.contracts.ollama_versions import without_adapters
from loco.contracts.results import RegisterResult, Registration
from loco.contracts.serving import (
    ADAPTER_GGUF,
    REFERENCE,
    Check,
    ServedBase,
    ServingReference,
    exported_base,
)
from loco.contracts.specs import Inputs, RegisterSpec, StageRun
from loco.contracts.stages import Stage
from loco.contracts.versions import DataRecord, Version
from loco.serving.bases import require_base
from loco.serving.host import OllamaHost
from loco.serving.shown import quoted
from loco.stage.program import Emitter, main
from loco_worker.proof.findings import Findings, Subject
from loco_worker.proof.proof import REFERENCE_CHECK, prove

REGISTRATION = "register.json"

#: Failed checks whose fixes an error's hint spells out; register.json has them all.
_FIXES_SHOWN = 2


def run(spec: RegisterSpec, inputs: Inputs, out_dir: Path, emit: Emitter) -> RegisterResult:
    """Uploads, creates and proves.

    Raises:
        OllamaUnavailable: no Ollama answers (retried later).
        OllamaRefused: it answers with an error.
        RegistrationFailed: it does not take the model, or the model it holds is not what was
            exported, or does not answer; names the checks that failed.
    """
    base = _served_base(inputs)
    gguf = _gguf(spec, inputs, base)
    reference = _reference(inputs)
    with OllamaHost(inputs.ollama_host) as host:
        evidence = _Evidence(out_dir, host.url, host.version(), _subject(spec, inputs, gguf, base))
        subject, findings = evidence.subject, evidence.findings
        if not _is_exported(gguf, subject, inputs, findings):
            evidence.fail()
        if base and not _takes_adapters(evidence.version, reference, findings):
            evidence.fail()
        on = _put_base(host, base, inputs, emit) if base else None
        uploaded = _upload(host, gguf, subject.blob, emit)
        if not _create(host, subject, gguf, findings, emit):
            evidence.fail()
        # before the proof: the candidate's weights may not be the base's
        compared = _create_base(host, spec, inputs, subject, emit)
        served = prove(host, subject, reference, findings, emit)
        if served.digest is None or served.probed is None or evidence.failed:
            evidence.fail(served.digest)

    entry = _version(spec, inputs, gguf, subject, served.digest)
    if base:
        entry = entry.model_copy(update={"format": "adapter", "base": base, "base_digest": on})
    evidence.write(served.digest, entry)
    for warning in findings.warnings:
        emit.log(warning)
    emit.log(
        f"{subject.model} passed {len(findings.checks) - len(findings.failed)} of "
        f"{len(findings.checks)} checks; it answers {quoted(served.probed.question)}: "
        f"{quoted(served.probed.answer.text)}"
    )
    emit.progress(message=f"{subject.model} is ready", percent=100, last=True)
    return RegisterResult(
        seconds=0,
        files={REGISTRATION: REGISTRATION},
        ollama_host=inputs.ollama_host,
        ollama_version=evidence.version,
        candidate=subject.model,
        digest=served.digest,
        blob=subject.blob,
        uploaded=uploaded,
        checks=tuple(findings.checks),
        warnings=tuple(findings.warnings),
        exported_base=compared,
        version=entry,
        probe_answer=served.probed.answer.text,
    )


@dataclass(frozen=True)
class _Evidence:
    """What was found so far, and how it is written down."""

    out_dir: Path
    host: str
    #: Of the server.
    version: str
    subject: Subject
    findings: Findings = field(default_factory=Findings)

    @property
    def failed(self) -> list[Check]:
        """The checks that end the stage; a missing reference leaves the decision to the gate."""
        return [check for check in self.findings.failed if check.name != REFERENCE_CHECK]

    def write(self, digest: str | None, version: Version | None) -> Path:
        """Writes register.json."""
        path = self.out_dir / REGISTRATION
        registration = Registration(
            candidate=self.subject.model,
            digest=digest,
            blob=self.subject.blob,
            ollama_host=self.host,
            ollama_version=self.version,
            checks=tuple(self.findings.checks),
            warnings=tuple(self.findings.warnings),
            version=version,
        )
        write_text(path, registration.model_dump_json(indent=2) + "\n")
        return path

    def fail(self, digest: str | None = None) -> NoReturn:
        """Ends the stage by the names of what failed."""
        path = self.write(digest, None)
        faults = "; ".join(f"{c.name}: {c.seen} (expected: {c.expected})" for c in self.failed)
        fixes = list(dict.fromkeys(c.fix for c in self.failed if c.fix))[:_FIXES_SHOWN]
        kept = "The candidate stays in Ollama, so you can look at it. " if digest else ""
        what = "in Ollama is not what was exported" if digest else "was not registered"
        raise RegistrationFailed(
            f"{self.subject.model} {what}: {faults}.",
            hint=f"{' '.join(fixes)} `latest` did not move. {kept}All checks are in {path}.",
        )


def _served_base(inputs: Inputs) -> ServedBase | None:
    """What export's adapter is served on; None: export wrote a merged model."""
    told = inputs.results.get(Stage.EXPORT, {}).get("served_base")
    return ServedBase.model_validate(told) if told else None


def _takes_adapters(version: str, reference: ServingReference | None, findings: Findings) -> bool:
    """Whether the server can put an adapter on a model of this architecture, as far as is known."""
    architecture = reference.architecture if reference else ""
    why = without_adapters(version, architecture)
    findings.add(
        "adapters",
        why is None,
        expected=f"a server that runs adapters on models of architecture {architecture or '?'}",
        seen=why or f"Ollama {version}",
        fix="Update Ollama, or set export.format to merged.",
    )
    return why is None


def _put_base(host: OllamaHost, base: ServedBase, inputs: Inputs, emit: Emitter) -> str:
    """Digest of the base in Ollama, created first where it is missing."""

    def sent(done: int) -> None:
        emit.check_stop()
        emit.progress(
            message=f"uploading the base, {done / 1e6:.0f} of {base.size / 1e6:.0f} MB",
            percent=round(30 * done / max(base.size, 1), 1),
        )

    def status(line: str) -> None:
        emit.progress(message=f"creating {base.model}: {line}", percent=30)

    digest = require_base(host, base, inputs.models_dir, sent=sent, status=status)
    emit.check_stop()
    emit.log(f"{base.model} is in {host.url}. All its adapters share its weights.")
    return digest


def _gguf(spec: RegisterSpec, inputs: Inputs, base: ServedBase | None) -> Path:
    name = f"export/{ADAPTER_GGUF if base else f'gguf/unsloth.{spec.quantization}.gguf'}"
    path = inputs.files.get(name)
    if path is None or not path.is_file():
        have = ", ".join(n for n in sorted(inputs.files) if n.startswith("export/")) or "nothing"
        raise RegistrationFailed(
            f"Stage export made no {name.partition('/')[2]}. It made: {have}.",
            hint="Set export.quantization and register.quantization to the same value.",
        )
    return path


def _reference(inputs: Inputs) -> ServingReference | None:
    """What export saw of the model; None: an earlier release exported it."""
    path = inputs.files.get(f"export/{REFERENCE}")
    if path is None or not path.is_file():
        return None
    try:
        return ServingReference.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise RegistrationFailed(
            f"export/{REFERENCE} cannot be read: {error.errors()[0]['msg']} "
            f"({'.'.join(map(str, error.errors()[0]['loc'])) or 'the whole file'}).",
            hint="Run stages export,register again: another release wrote it, or it is damaged.",
        ) from error


def _subject(spec: RegisterSpec, inputs: Inputs, gguf: Path, base: ServedBase | None) -> Subject:
    parameters: dict[str, Any] = {
        "temperature": spec.temperature,
        "num_ctx": spec.num_ctx,
        "num_predict": spec.num_predict,
    }
    if spec.base_model.stop:
        parameters["stop"] = list(spec.base_model.stop)
    return Subject(
        model=f"{spec.model_name}:{inputs.job_id}",
        blob=f"sha256:{sha256_of(gguf)}",
        size=gguf.stat().st_size,
        system=_system(spec, inputs),
        parameters=parameters,
        probe=spec.probe,
        base=spec.base_model.ollama,
        served_base=base,
        promoted=inputs.promoted,
    )


def _system(spec: RegisterSpec, inputs: Inputs) -> str | None:
    """The system prompt of training, as export found it: the recipe's or the template's own.

    Ollama may leave out what a template would write by itself, so it is always sent.
    """
    system: str | None = inputs.results.get(Stage.EXPORT, {}).get("system", spec.base_model.system)
    return system


def _is_exported(gguf: Path, subject: Subject, inputs: Inputs, findings: Findings) -> bool:
    """Whether the file is still the one that export wrote and checked."""
    exported = inputs.results.get(Stage.EXPORT, {})
    if "sha256" not in exported:
        return True  # a stage run by hand
    same = subject.blob == f"sha256:{exported['sha256']}"
    findings.add(
        "exported",
        same,
        expected=f"{gguf.name} as export wrote it: {exported.get('size')} bytes, "
        f"SHA-256 {exported['sha256']}",
        seen=f"{subject.size} bytes, SHA-256 {subject.blob.removeprefix('sha256:')}",
        fix="The file was cut off or changed after export. Run stages export,register again.",
    )
    return same


def _upload(
    host: OllamaHost, gguf: Path, blob: str, emit: Emitter, *, percent: float | None = None
) -> bool:
    """Sends the GGUF unless the server has it; says whether it was sent."""
    if host.has_blob(blob):
        emit.log(f"{host.url} already has {blob[:19]}: nothing to upload")
        return False
    size = gguf.stat().st_size

    def sent(done: int) -> None:
        emit.check_stop()
        emit.progress(
            message=f"uploading {done / 1e6:.0f} of {size / 1e6:.0f} MB",
            percent=round(50 * done / size, 1) if percent is None else percent,
        )

    host.upload(gguf, blob, sent)
    return True


def _create(
    host: OllamaHost, subject: Subject, gguf: Path, findings: Findings, emit: Emitter
) -> bool:
    """Creates the candidate; False: the server does not take it."""
    model, base = subject.model, subject.served_base
    emit.progress(message=f"creating {model}", percent=50, last=True)
    seen = "created"
    blob = {gguf.name: subject.blob}
    try:
        host.create(
            model,
            files=None if base else blob,
            base=base.model if base else None,
            adapters=blob if base else None,
            system=subject.system,
            parameters=subject.parameters,
            status=lambda line: emit.progress(message=f"creating {model}: {line}", percent=60),
        )
    except OllamaRefused as error:
        seen = error.message
    findings.add(
        "created",
        seen == "created",
        expected=f"{model} created from {gguf.name}, {subject.size} bytes",
        seen=seen,
        fix="If Ollama says that the GGUF is damaged, run stages export,register again. "
        "Otherwise look at Ollama's own log. `loco doctor` checks Ollama.",
    )
    emit.check_stop()
    return seen == "created"


def _create_base(
    host: OllamaHost, spec: RegisterSpec, inputs: Inputs, subject: Subject, emit: Emitter
) -> str | None:
    """The base through the same export, as export.base asks for it: `MODEL:JOB_ID-base`."""
    gguf = inputs.files.get(f"export/gguf/base.{spec.quantization}.gguf")
    model = exported_base(subject.model)
    if subject.served_base is not None:
        if not inputs.results.get(Stage.EXPORT, {}).get("base_asked"):
            return None  # one name a version, as of a merged model
        # the same weights without the adapter, with the settings of the candidate
        emit.progress(message=f"creating {model}", percent=70, last=True)
        host.create(
            model,
            base=subject.served_base.model,
            system=subject.system,
            parameters=subject.parameters,
            status=lambda line: emit.progress(message=f"creating {model}: {line}", percent=72),
        )
        return model
    if gguf is None:
        return None
    blob = f"sha256:{sha256_of(gguf)}"
    emit.progress(message=f"creating {model}", percent=70, last=True)
    _upload(host, gguf, blob, emit, percent=70)
    host.create(
        model,
        files={gguf.name: blob},
        system=subject.system,
        parameters=subject.parameters,
        status=lambda line: emit.progress(message=f"creating {model}: {line}", percent=72),
    )
    emit.check_stop()
    return model


def _version(
    spec: RegisterSpec, inputs: Inputs, gguf: Path, subject: Subject, digest: str
) -> Version:
    """The registry's entry; what earlier stages did not say stays out."""
    prepared = inputs.results.get(Stage.PREPARE, {})
    trained = inputs.results.get(Stage.TRAIN, {})
    data = inputs.files.get("prepare/training_data.jsonl")
    adapters_dir = inputs.adapter_dir.parent
    inside = gguf.is_relative_to(adapters_dir)
    told = ("engine", "device", "total_steps", "first_loss", "last_loss", "train_seconds")
    return Version(
        job=inputs.job_id,
        model=spec.model_name,
        candidate=subject.model,
        base_model=spec.base_model.name,
        base_ollama=spec.base_model.ollama,
        quantization=spec.quantization,
        digest=digest,
        blob=subject.blob,
        gguf=str(gguf.relative_to(adapters_dir) if inside else gguf),
        size_bytes=subject.size,
        system=subject.system,
        parameters=subject.parameters,
        data=DataRecord(
            source=prepared.get("source"),
            rows=prepared.get("kept"),
            sha256=sha256_of(data) if data else None,
        ),
        hyperparameters=_hyperparameters(inputs),
        training={name: trained[name] for name in told if name in trained},
    )


def _hyperparameters(inputs: Inputs) -> dict[str, Any]:
    """The train spec, from the spec.json beside the adapter's files; empty when it is gone."""
    trained = next((p for n, p in sorted(inputs.files.items()) if n.startswith("train/")), None)
    for folder in (trained.parents if trained else ())[:4]:
        if (folder / "spec.json").is_file():
            spec = StageRun.model_validate_json((folder / "spec.json").read_bytes()).spec
            return {name: value for name, value in spec.items() if name != "base_model"}
    return {}


if __name__ == "__main__":
    sys.exit(main(Stage.REGISTER, run))
