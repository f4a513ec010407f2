"""Stage register: the exported GGUF becomes a candidate in Ollama and is proven to be it.

    python -m loco_worker.register --spec adapters/math/runs/JOB/register/a1/spec.json --out /tmp/x

The candidate `MODEL:JOB_ID` is never changed afterwards, and `MODEL:latest` is not touched: the gate
moves it. Running it again after a crash at any place ends the same.
"""

import sys
from pathlib import Path
from typing import Any

from loco.contracts.errors import RegistrationFailed
from loco.contracts.files import sha256_of, write_text
from loco.contracts.results import RegisterResult
from loco.contracts.specs import Inputs, RegisterSpec, StageRun
from loco.contracts.stages import Stage
from loco.contracts.versions import DataRecord, Version
from loco.recipes import registry
from loco.stage.program import Emitter, main
from loco_worker.ollama.host import OllamaHost

REGISTRATION = "registration.json"

#: A model without a chat template: it continues the prompt instead of answering it.
BARE_TEMPLATE = "{{ .Prompt }}"
#: What a template of a thinking model puts before an answer when thinking is off.
NO_THINKING = "<think>\n\n</think>\n\n"


def run(spec: RegisterSpec, inputs: Inputs, out_dir: Path, emit: Emitter) -> RegisterResult:
    """Uploads, creates and checks.

    Raises:
        OllamaUnavailable: no Ollama answers (retried later).
        OllamaRefused: it answers with an error.
        RegistrationFailed: the model it holds is not what was exported, or does not answer.
    """
    gguf = _gguf(spec, inputs)
    blob = f"sha256:{sha256_of(gguf)}"
    candidate = f"{spec.model_name}:{inputs.job_id}"
    latest = f"{spec.model_name}:latest"
    parameters: dict[str, Any] = {
        "temperature": spec.temperature,
        "num_ctx": spec.num_ctx,
        "num_predict": spec.num_predict,
    }
    if spec.base_model.stop:
        parameters["stop"] = list(spec.base_model.stop)
    adapters_dir = inputs.adapter_dir.parent
    system = _system(spec, inputs)

    with OllamaHost(inputs.ollama_host) as host:
        version = host.version()
        before = host.digests()
        uploaded = _upload(host, gguf, blob, emit)
        emit.progress(message=f"creating {candidate}", percent=50, last=True)
        host.create(
            candidate,
            files={gguf.name: blob},
            system=system,
            parameters=parameters,
            status=lambda line: emit.progress(message=f"creating {candidate}: {line}", percent=60),
        )
        emit.check_stop()
        digest = host.digests().get(candidate)
        if digest is None:
            raise _failed(candidate, "it is not in the server's list of models")
        previous = registry.current(adapters_dir, inputs.adapter)
        _check_changed(
            candidate=candidate,
            digest=digest,
            blob=blob,
            before=before,
            latest=latest,
            previous=previous,
        )
        emit.progress(message=f"checking {candidate}", percent=75, last=True)
        _check_template(host, candidate, spec, system)
        answer = _probe(host, candidate, spec)
        emit.log(f"{candidate} answers {spec.probe!r}: {answer!r}")

    entry = _version(
        spec,
        inputs,
        gguf=gguf,
        system=system,
        parameters=parameters,
        candidate=candidate,
        digest=digest,
        blob=blob,
    )
    result = RegisterResult(
        seconds=0,
        files={REGISTRATION: REGISTRATION},
        ollama_host=inputs.ollama_host,
        ollama_version=version,
        candidate=candidate,
        digest=digest,
        blob=blob,
        uploaded=uploaded,
        version=entry,
        probe_answer=answer,
    )
    write_text(out_dir / REGISTRATION, entry.model_dump_json(indent=2) + "\n")
    emit.progress(message=f"{candidate} is ready", percent=100, last=True)
    return result


def _gguf(spec: RegisterSpec, inputs: Inputs) -> Path:
    name = f"export/gguf/unsloth.{spec.quantization}.gguf"
    path = inputs.files.get(name)
    if path is None or not path.is_file():
        have = ", ".join(n for n in sorted(inputs.files) if n.startswith("export/")) or "nothing"
        raise RegistrationFailed(
            f"Stage export left no {name.partition('/')[2]}; it left: {have}.",
            hint="Set export.quantization and register.quantization to the same value.",
        )
    return path


def _system(spec: RegisterSpec, inputs: Inputs) -> str | None:
    """The system prompt of training, as export found it: the recipe's or the template's own.

    Ollama may leave out what a template would write by itself, so it is always sent.
    """
    system: str | None = inputs.results.get(Stage.EXPORT, {}).get("system", spec.base_model.system)
    return system


def _upload(host: OllamaHost, gguf: Path, blob: str, emit: Emitter) -> bool:
    """Sends the GGUF unless the server has it; says whether it was sent."""
    if host.has_blob(blob):
        emit.log(f"{host.url} already has {blob[:19]}: nothing to upload")
        return False
    size = gguf.stat().st_size

    def sent(done: int) -> None:
        emit.check_stop()
        emit.progress(
            message=f"uploading {done / 1e6:.0f} of {size / 1e6:.0f} MB",
            percent=round(50 * done / size, 1),
        )

    host.upload(gguf, blob, sent)
    return True


def _check_changed(
    *,
    candidate: str,
    digest: str,
    blob: str,
    before: dict[str, str],
    latest: str,
    previous: Version | None,
) -> None:
    """A new GGUF must give a new model: else the server took something from an old one."""
    old = before.get(latest)
    if old is None or before.get(candidate) == old:
        return  # the first one, or this job had promoted it before it was interrupted
    if digest == old and previous is not None and previous.digest == old and previous.blob != blob:
        raise _failed(
            candidate,
            f"its digest {digest} is that of {latest} ({previous.candidate}), "
            "although the GGUF is another one",
        )


def _check_template(
    host: OllamaHost, candidate: str, spec: RegisterSpec, system: str | None
) -> None:
    shown = host.show(candidate)
    if str(shown.get("template", "")).strip() == BARE_TEMPLATE:
        raise _failed(candidate, "it has no chat template, so it would not answer but continue")
    if system and str(shown.get("system", "")).strip() != system.strip():
        raise _failed(
            candidate, f"its system prompt is {shown.get('system')!r} instead of {system!r}"
        )
    for stop in spec.base_model.stop:
        if stop not in str(shown.get("parameters", "")):
            raise _failed(candidate, f"the stop string {stop!r} is not among its parameters")
    text = host.rendered(candidate, [{"role": "user", "content": spec.probe}])
    if text is None:
        return  # the server can't show it: the probe is the only check left
    if "<|im_end|>" in spec.base_model.stop:
        expected = chatml(system, spec.probe)
        good = text in (expected, expected + NO_THINKING)
    else:
        expected = f"{system or ''} … {spec.probe}"
        good = text.count(spec.probe) == 1 and (not system or text.count(system) == 1)
    if not good:
        raise _failed(
            candidate,
            f"it renders the probe as {text!r}, but training saw {expected!r}",
        )


def chatml(system: str | None, prompt: str) -> str:
    """A prompt in ChatML, up to where the answer begins; the format of Qwen and SmolLM2."""
    head = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    return f"{head}<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"


def _probe(host: OllamaHost, candidate: str, spec: RegisterSpec) -> str:
    answer = host.chat(candidate, spec.probe, {"temperature": 0, "seed": 0})
    if not answer.text.strip():
        raise _failed(candidate, f"it answers {spec.probe!r} with nothing")
    if answer.done_reason != "stop":
        raise _failed(
            candidate,
            f"it does not end its answer to {spec.probe!r} within {spec.num_predict} tokens "
            f"({answer.done_reason}): {answer.text[-200:]!r}",
        )
    if answer.thinking or "<think>" in answer.text:
        raise _failed(candidate, "it thinks although it is asked not to")
    return answer.text


def _failed(model: str, why: str) -> RegistrationFailed:
    return RegistrationFailed(
        f"{model} in Ollama is not what was exported: {why}.",
        hint="`latest` was not moved. The candidate is kept for a look: "
        "`ollama show --modelfile`; a retry of the job starts with this stage.",
    )


def _version(
    spec: RegisterSpec,
    inputs: Inputs,
    *,
    gguf: Path,
    system: str | None,
    parameters: dict[str, Any],
    candidate: str,
    digest: str,
    blob: str,
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
        candidate=candidate,
        base_model=spec.base_model.name,
        base_ollama=spec.base_model.ollama,
        quantization=spec.quantization,
        digest=digest,
        blob=blob,
        gguf=str(gguf.relative_to(adapters_dir) if inside else gguf),
        size_bytes=gguf.stat().st_size,
        system=system,
        parameters=parameters,
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
