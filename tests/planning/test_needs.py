"""What a job's stages need: RAM, and what is fetched once."""

from pathlib import Path

import pytest

from loco.contracts.plans import Device, Lengths, Memory, Shape
from loco.contracts.previews import Needs
from loco.contracts.requests import JobRequest
from loco.contracts.specs import JobSpec
from loco.contracts.stages import Stage
from loco.planning.history import History
from loco.planning.needs import needs_of
from loco.planning.planner import make_plan
from loco.planning.stage_times import stage_times
from loco.recipes.resolve import resolve

ADAPTERS = Path(__file__).parents[2] / "adapters"
LENGTHS = Lengths(rows=200, tokens=33_395, answer_tokens=18_000, p50=160, p95=260, longest=420)
MEMORY = Memory(weights_gb=1, adapter_gb=1, activations_gb=1, logits_gb=1, workspace_gb=1)
SIXTEEN_BIT_GB = pytest.approx(8.04, abs=0.01)


def needs(spec: JobSpec, models: Path, *, gigabytes: float) -> dict[Stage, Needs]:
    """What it needs where the card has so much memory."""
    base = spec.train.base_model
    assert base.config is not None
    shape = Shape.of(base.config)
    card = Device(name="RTX 3090", memory_gb=gigabytes, free_gb=gigabytes, compute_capability=8.6)
    plan = make_plan(spec.train, shape, LENGTHS, card, engine="peft")
    assert plan.precision == ("4bit" if gigabytes < 12 else "bf16")
    return {n.stage: n for n in needs_of(spec, plan, MEMORY, shape, models_dir=models)}


@pytest.fixture
def spec(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> JobSpec:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return resolve(ADAPTERS, JobRequest.model_validate({"adapter": "math"}))


def trained_from(spec: JobSpec, source: str) -> JobSpec:
    base = spec.train.base_model.model_copy(update={"train": source})
    return spec.model_copy(update={"train": spec.train.model_copy(update={"base_model": base})})


def test_export_needs_the_ram_that_was_measured(spec: JobSpec, tmp_path: Path) -> None:
    assert needs(spec, tmp_path, gigabytes=8)[Stage.EXPORT].ram_gb == pytest.approx(5.6, abs=0.2)


def test_four_bit_and_16_bit_weights_are_fetched_each_by_its_stage(
    spec: JobSpec, tmp_path: Path
) -> None:
    found = needs(spec, tmp_path, gigabytes=8)
    assert found[Stage.TRAIN].download_gb == pytest.approx(2.7, abs=0.1)
    assert found[Stage.EXPORT].download_gb == SIXTEEN_BIT_GB


@pytest.mark.parametrize("gigabytes", [8, 24])
def test_16_bit_weights_for_both_stages_are_fetched_once_and_whole(
    gigabytes: float, spec: JobSpec, tmp_path: Path
) -> None:
    one = trained_from(spec, spec.train.base_model.merge)
    found = needs(one, tmp_path, gigabytes=gigabytes)
    assert found[Stage.TRAIN].download_gb == SIXTEEN_BIT_GB
    assert found[Stage.EXPORT].download_gb == 0
    alone = one.model_copy(update={"stages": (Stage.EXPORT,)})
    assert needs(alone, tmp_path, gigabytes=gigabytes)[Stage.EXPORT].download_gb == SIXTEEN_BIT_GB


def exporting(spec: JobSpec, **changes: object) -> JobSpec:
    return spec.model_copy(update={"export": spec.export.model_copy(update=changes)})


def test_an_adapter_alone_takes_its_own_bytes_once_its_base_is_written(
    spec: JobSpec, tmp_path: Path
) -> None:
    def disk(**changes: object) -> float:
        found = needs(exporting(spec, **changes), tmp_path, gigabytes=24)
        return found[Stage.EXPORT].disk_gb

    merged = disk(format="merged")
    assert merged == pytest.approx(2.5, abs=0.02)
    # 11.8 million parameters of 16 bits
    assert disk(format="both") - merged == pytest.approx(0.024, abs=0.011)
    assert disk(format=None) == disk(format="both")
    assert disk(format="merged", base=True) == pytest.approx(2 * merged, abs=0.02)
    assert disk(format="adapter") == disk(format="both")
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "qwen3-4b.0123.Q8_0.gguf").touch()
    assert disk(format="adapter") == disk(format="both")  # of another quantization
    (tmp_path / "served" / "qwen3-4b.0123.Q4_K_M.gguf").touch()
    assert disk(format="adapter") == pytest.approx(0.024, abs=0.006)


def test_and_seconds_instead_of_a_minute(spec: JobSpec, tmp_path: Path) -> None:
    base = spec.train.base_model
    assert base.config is not None
    shape = Shape.of(base.config)
    card = Device(name="RTX 3090", memory_gb=24, free_gb=24, compute_capability=8.6)
    plan = make_plan(spec.train, shape, LENGTHS, card, engine="peft")

    def seconds(export_format: str) -> float:
        (export,) = (
            time
            for time in stage_times(
                exporting(spec, format=export_format),
                plan,
                shape,
                card,
                history=History([]),
                models_dir=tmp_path,
                runs=0,
            )
            if time.stage is Stage.EXPORT
        )
        return float(export.seconds or 0)

    assert seconds("merged") > 20
    assert 0 < seconds("both") - seconds("merged") < 5
    assert seconds("adapter") == seconds("both")
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "qwen3-4b.0123.Q4_K_M.gguf").touch()
    assert seconds("adapter") < 15
