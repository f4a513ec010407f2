"""Bases that are called otherwise on disk than in memory, from the first step to the GGUF."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_models
import torch
from transformers import AutoTokenizer

from loco.contracts.specs import BaseModelSpec, ExportSpec, Inputs, TrainSpec
from loco_trainer import export, train


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "carried"), [(small_models.gemma3, True), (small_models.qwen3_5, False)]
)
def test_it_trains_and_its_gguf_answers(
    model: Callable[[int], Any],
    carried: bool,
    smollm2_dir: Path,
    toy: BaseModelSpec,
    toy_spec: TrainSpec,
    inputs: Inputs,
    tmp_path: Path,
    recorder: Any,
) -> None:
    folder, trained, exported = (tmp_path / name for name in ("base", "train", "export"))
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    model(len(tokenizer)).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    base = toy.model_copy(update={"train": str(folder), "merge": str(folder)})
    spec = toy_spec.model_copy(update={"base_model": base, "max_steps": 2})
    result = train.run(spec, inputs, trained, recorder)

    exported.mkdir()
    files = {f"train/{name}": trained / path for name, path in result.files.items()}
    asked = ExportSpec(base_model=base, model_name="renamed", quantization="F16", num_ctx=512)
    gguf = export.run(asked, inputs.model_copy(update={"files": files}), exported, recorder)
    assert gguf.sample_answer
    merged = [e.message for e in recorder.of_type("log") if "Merged" in e.message]
    assert merged
    assert "Merged 0" not in merged[0]
    # without a word both files are written; what a LoRA cannot say of this base is merged alone
    assert gguf.format == ("both" if carried else "merged")
    assert (exported / "gguf" / "adapter.gguf").exists() is carried
    if not carried:
        assert "GGUF of the base" in str(gguf.format_reason)
