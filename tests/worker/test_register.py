"""Stage register against a real model host."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loco.contracts.errors import OllamaUnavailable, RegistrationFailed
from loco.contracts.results import RegisterResult, Registration
from loco.contracts.specs import Inputs, JobSpec, RegisterSpec, StageRun
from loco.contracts.stages import Stage
from loco.recipes import registry
from loco.serving.host import OllamaHost
from loco.stage.program import Stopped
from loco_worker import register
from loco_worker.ollama.bases import wheel_gguf

pytestmark = [pytest.mark.redis, pytest.mark.slow]

EXPORTED = "export/gguf/unsloth.Q4_K_M.gguf"
MakeInputs = Callable[..., Inputs]


@pytest.fixture
def run(
    tiny: JobSpec, gguf: Path, inputs_of: MakeInputs, tmp_path: Path, heard: Any
) -> Callable[..., RegisterResult]:
    """Runs the stage; `spec` and other keywords override the spec's and the inputs' fields."""

    def go(spec: dict[str, Any] | None = None, **inputs: Any) -> RegisterResult:
        (tmp_path / "out").mkdir(exist_ok=True)
        return register.run(
            RegisterSpec.model_validate({**tiny.register_.model_dump(), **(spec or {})}),
            inputs_of(**{"files": {EXPORTED: gguf}, **inputs}),
            tmp_path / "out",
            heard.emit,
        )

    return go


def changed(tmp_path: Path, old: bytes, new: bytes) -> Path:
    """The model with some bytes of its metadata replaced, at equal length."""
    content = wheel_gguf().read_bytes()
    assert len(old) == len(new)
    assert old in content
    path = tmp_path / "changed.gguf"
    path.write_bytes(content.replace(old, new, 1))
    return path


def test_the_candidate_serves_and_is_recorded(
    run: Callable[..., RegisterResult],
    tiny: JobSpec,
    gguf: Path,
    stage_adapters: Path,
    tmp_path: Path,
    model_host: str,
) -> None:
    attempt = stage_adapters / "math/runs/j/train/a1"
    (attempt / "checkpoints").mkdir(parents=True)
    (attempt / "checkpoints/adapter_config.json").write_text("{}")
    data = tmp_path / "training_data.jsonl"
    data.write_text("{}\n")
    inputs = {
        "files": {
            EXPORTED: gguf,
            "prepare/training_data.jsonl": data,
            "train/checkpoints/adapter_config.json": attempt / "checkpoints/adapter_config.json",
        },
        "results": {
            Stage.PREPARE: {"source": "arithmetic generator", "kept": 160},
            Stage.TRAIN: {"engine": "peft", "first_loss": 2.0, "last_loss": 0.5},
        },
    }
    spec = StageRun(
        stage=Stage.TRAIN, spec=tiny.train.model_dump(mode="json"), inputs=_nothing(tmp_path)
    )
    (attempt / "spec.json").write_text(spec.model_dump_json())

    latest = f"{tiny.register_.model_name}:latest"
    with OllamaHost(model_host) as host:
        before = host.digests().get(latest)
    result = run(**inputs)

    assert result.candidate == f"{tiny.register_.model_name}:20261122-143722-4f9a2c"
    assert result.probe_answer.strip()
    with OllamaHost(model_host) as host:
        digests = host.digests()
        shown = host.show(result.candidate)
    assert digests[result.candidate] == result.digest
    assert digests.get(latest) == before, "the gate moves it"
    assert shown["system"] == tiny.register_.base_model.system
    assert "<|im_end|>" in shown["parameters"]
    version = result.version
    assert version is not None
    assert not version.promoted
    assert version.digest == result.digest
    assert version.gguf == gguf.relative_to(stage_adapters).as_posix()
    assert version.size_bytes == wheel_gguf().stat().st_size
    assert version.data.rows == 160
    assert version.data.sha256 is not None
    assert version.hyperparameters["learning_rate"] == 1e-3
    assert version.hyperparameters["lora"]["r"] == 16
    assert version.training == {"engine": "peft", "first_loss": 2.0, "last_loss": 0.5}
    left = Registration.model_validate_json((tmp_path / "out" / "register.json").read_bytes())
    assert left.version == version
    assert left.checks == result.checks
    assert registry.read(stage_adapters) == {}, "the gate records it"


def test_the_templates_own_system_prompt_is_served_as_it_was_trained(
    run: Callable[..., RegisterResult], tiny: JobSpec, model_host: str
) -> None:
    """Ollama's ChatML would leave it out: it comes from export's result and is sent."""
    own = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    base = tiny.register_.base_model.model_copy(update={"system": None})
    result = run(
        {"base_model": base.model_dump()},
        job_id="20261122-150000-eeeeee",
        results={Stage.EXPORT: {"system": own}},
    )
    with OllamaHost(model_host) as host:
        assert host.rendered(result.candidate, [{"role": "user", "content": "Hi"}]) == (
            f"<|im_start|>system\n{own}<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
            "<|im_start|>assistant\n"
        )
    assert result.version is not None
    assert result.version.system == own


def test_running_it_again_ends_the_same(run: Callable[..., RegisterResult], heard: Any) -> None:
    first = run()
    second = run()
    assert not second.uploaded
    assert "nothing to upload" in heard.logs
    assert second.digest == first.digest
    assert second.checks == first.checks


def test_no_ollama_is_worth_a_retry(run: Callable[..., RegisterResult]) -> None:
    with pytest.raises(OllamaUnavailable, match=r"127\.0\.0\.1:9") as caught:
        run(ollama_host="http://127.0.0.1:9")
    assert caught.value.retryable
    assert "OLLAMA_HOST" in str(caught.value.hint)


def test_a_missing_export_names_what_there_is(run: Callable[..., RegisterResult]) -> None:
    with pytest.raises(RegistrationFailed, match=r"Q8_0\.gguf\. It made: export/gguf"):
        run({"quantization": "Q8_0"})


def test_a_file_that_is_no_gguf_is_refused(
    run: Callable[..., RegisterResult], tmp_path: Path
) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"not a model")
    with pytest.raises(RegistrationFailed, match=r"created: .*GGUF"):
        run(files={EXPORTED: path})


def test_a_model_without_chat_template_fails(
    run: Callable[..., RegisterResult], tmp_path: Path
) -> None:
    path = changed(tmp_path, b"tokenizer.chat_template", b"tokenizer.chat_templatX")
    with pytest.raises(RegistrationFailed, match="no chat template"):
        run(files={EXPORTED: path}, job_id="20261122-150000-cccccc")


def test_an_answer_that_does_not_end_fails(run: Callable[..., RegisterResult]) -> None:
    with pytest.raises(RegistrationFailed, match=r"probe: .* does not end"):
        run({"num_predict": 2, "probe": "Tell me a long story."}, job_id="20261122-150000-dddddd")


def test_a_stop_request_ends_the_upload(
    run: Callable[..., RegisterResult], tmp_path: Path, heard: Any
) -> None:
    path = changed(tmp_path, b"tokenizer.chat_template", b"tokenizer.chat_templatY")
    heard.emit.request_stop()
    with pytest.raises(Stopped):
        run(files={EXPORTED: path})
    assert not (tmp_path / "out" / "register.json").exists()


def _nothing(folder: Path) -> Inputs:
    return Inputs(
        job_id="j",
        adapter="math",
        adapter_dir=folder,
        models_dir=folder,
        locks_dir=folder,
        ollama_host="http://127.0.0.1:9",
    )
