"""Losses of architectures that do more than Llama: capped scores, scaled and capped logits.

Against transformers' own forward pass with eager attention, a row at a time. Weights are large enough
for a cap to be felt.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_models
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy

from loco.contracts.plans import Plan, Shape
from loco.contracts.specs import TrainSpec
from loco_trainer.bases.find import read_config
from loco_trainer.data import batches
from loco_trainer.data.rows import IGNORED, Row, Rows
from loco_trainer.engines import choose
from loco_trainer.fast import forward
from loco_trainer.loop.facts import plan_for

SHAPE = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


def gemma2() -> Any:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    caps = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
    return Gemma2ForCausalLM(Gemma2Config(**SHAPE, **caps, head_dim=16, sliding_window=16))


def gemma3_text() -> Any:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    return Gemma3ForCausalLM(Gemma3TextConfig(**SHAPE, head_dim=16, sliding_window=16))


def gemma3n_text() -> Any:
    from transformers import Gemma3nForCausalLM, Gemma3nTextConfig

    shape = SHAPE | {"intermediate_size": [96] * 2, "final_logit_softcapping": 3.0}
    more = {"vocab_size_per_layer_input": 320, "hidden_size_per_layer_input": 8, "laurel_rank": 4}
    config = Gemma3nTextConfig(
        **shape,
        **more,
        head_dim=16,
        sliding_window=16,
        num_kv_shared_layers=0,
        layer_types=["sliding_attention", "full_attention"],
        activation_sparsity_pattern=[0.0, 0.0],
    )
    return Gemma3nForCausalLM(config)


def gemma4() -> Any:
    """One that sees, without its eyes: the cap on its logits is in the config of its language model."""
    from transformers import Gemma4Config, Gemma4ForConditionalGeneration

    text = SHAPE | {"final_logit_softcapping": 3.0, "head_dim": 16, "global_head_dim": 16}
    more = {"vocab_size_per_layer_input": 320, "hidden_size_per_layer_input": 8}
    kinds = {"num_kv_shared_layers": 0, "layer_types": ["sliding_attention", "full_attention"]}
    return Gemma4ForConditionalGeneration(Gemma4Config(text_config=text | more | kinds))


def gemma3() -> Any:
    return small_models.gemma3(320)


def cohere() -> Any:
    from transformers import CohereConfig, CohereForCausalLM

    return CohereForCausalLM(CohereConfig(**SHAPE, logit_scale=0.5))


def granite() -> Any:
    from transformers import GraniteConfig, GraniteForCausalLM

    return GraniteForCausalLM(GraniteConfig(**SHAPE, logits_scaling=4.0, attention_multiplier=0.25))


def phi() -> Any:
    """Its output layer has a bias."""
    from transformers import PhiConfig, PhiForCausalLM

    return PhiForCausalLM(PhiConfig(**SHAPE))


MODELS = [gemma2, gemma3_text, gemma3n_text, gemma4, gemma3, cohere, granite, phi]
SHAPED = [gemma2, gemma3n_text, gemma4, cohere, granite, phi]


def some_rows(*lengths: int) -> list[Row]:
    generator = torch.Generator().manual_seed(3)
    rows = []
    for length in lengths:
        ids = torch.randint(2, 320, (length,), generator=generator).tolist()
        rows.append(Row(ids, [IGNORED] * (length // 3) + ids[length // 3 :]))
    return rows


def saved(make: Callable[[], Any], folder: Path) -> Path:
    torch.manual_seed(1)
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    if isinstance(config.get("intermediate_size"), list):  # Gemma 3n's; `Shape` takes a number
        config["intermediate_size"] = config["intermediate_size"][0]
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def answers(rows: list[Row]) -> int:
    return sum(label != IGNORED for row in rows for label in row.labels[1:])


def loaded(base: Path, spec: TrainSpec, rows: list[Row], recorder: Any) -> tuple[Plan, Any]:
    shape = Shape.of(read_config(base))
    plan = plan_for(spec, shape, Rows(rows, cut=0, dropped=0), "peft")
    engine = choose.load(spec, plan, base, recorder)
    engine.model.eval()
    return plan, engine


@pytest.mark.parametrize("make", MODELS)
def test_losses_are_those_of_the_models_own_forward_pass(
    make: Callable[[], Any], toy_spec: TrainSpec, tmp_path: Path, recorder: Any
) -> None:
    from transformers import AutoModelForCausalLM

    rows = some_rows(9, 60, 33)
    base = saved(make, tmp_path)
    _, engine = loaded(base, toy_spec, rows, recorder)
    reference = AutoModelForCausalLM.from_pretrained(
        base, attn_implementation="eager", dtype=torch.float32
    ).eval()
    with torch.no_grad():
        ours = engine.losses(engine.lay_out(rows))
        theirs = []
        for row in rows:
            logits = reference(input_ids=torch.tensor([row.input_ids])).logits[0, :-1]
            labels = torch.tensor(row.labels[1:])
            theirs.append(
                cross_entropy(
                    logits[labels != IGNORED], labels[labels != IGNORED], reduction="none"
                )
            )
    torch.testing.assert_close(ours, torch.cat(theirs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", SHAPED)
def test_logits_are_computed_where_a_loss_is_taken_and_nowhere_else(
    make: Callable[[], Any], toy_spec: TrainSpec, tmp_path: Path, recorder: Any
) -> None:
    rows = some_rows(9, 60, 33)
    _, engine = loaded(saved(make, tmp_path), toy_spec, rows, recorder)
    head = engine.model.get_base_model().get_output_embeddings()
    seen: list[int] = []
    head.register_forward_hook(lambda _module, _inputs, out: seen.append(out.shape[:-1].numel()))
    engine.losses(engine.lay_out(rows)).sum().backward()
    assert seen == [answers(rows)]


def test_an_adapted_output_layer_learns(toy_dir: Path) -> None:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    rows = some_rows(9, 20)
    model = AutoModelForCausalLM.from_pretrained(toy_dir, dtype=torch.float32)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    adapted = get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["lm_head"])
    )
    losses = forward.losses_of(adapted, tight=False)(batches.padded(rows, filler=0))
    losses.sum().backward()
    gradients = {n: p.grad for n, p in adapted.named_parameters() if p.grad is not None}
    assert any("lm_head.lora_B" in name for name in gradients)
