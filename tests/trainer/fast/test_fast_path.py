"""The fast path computes what the plain one does: fused layers, rows end to end, chunked loss.

On the CPU with small Llama and Qwen3 models in float32, where differences are rounding alone.
"""

import copy
import gc
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch._subclasses import FakeTensorMode
from torch.nn.functional import cross_entropy, rms_norm

from loco.contracts.plans import Shape
from loco.contracts.specs import TrainSpec
from loco_trainer.bases.find import read_config
from loco_trainer.data import batches
from loco_trainer.data.rows import IGNORED, Row, Rows
from loco_trainer.engines import choose
from loco_trainer.engines.loaded import Loaded
from loco_trainer.fast import attention, forward, fused_lora, kernels
from loco_trainer.fast.answer_loss import answer_losses
from loco_trainer.loop.facts import plan_for
from loco_trainer.loop.passes import RecordedPasses

SHAPE = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
Q_TO_O = ["q_proj", "k_proj", "v_proj", "o_proj"]


def base_model(architecture: str, attention_name: str) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(1)
    if architecture == "qwen3":
        model: Any = Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=32))
    else:
        model = LlamaForCausalLM(LlamaConfig(**SHAPE))
    with torch.no_grad():  # norms of one hide a norm without its weight
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    model.set_attn_implementation(attention_name)
    return model.requires_grad_(False)


def adapted(model: Any, targets: Any = "all-linear", **more: Any) -> Any:
    torch.manual_seed(2)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=targets, **more)
    peft = get_peft_model(model, config)
    with torch.no_grad():  # B starts at zero, and would hide A
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    return peft


def some_rows(*lengths: int) -> list[Row]:
    generator = torch.Generator().manual_seed(3)
    rows = []
    for length in lengths:
        ids = torch.randint(2, 320, (length,), generator=generator).tolist()
        prompt = length // 3
        rows.append(Row(ids, [IGNORED] * prompt + ids[prompt:]))
    return rows


def reference(model: Any, rows: list[Row]) -> list[torch.Tensor]:
    """Losses of each row's answer tokens by transformers and torch alone, a row at a time."""
    losses = []
    for row in rows:
        logits = model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1]
        labels = torch.tensor(row.labels[1:])
        each = cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="none")
        losses.append(each[labels != IGNORED])
    return losses


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_alike(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert gradient.abs().max() > 0, name
        difference = (ours[name] - gradient).norm() / gradient.norm()
        assert difference < 1e-5, f"{name}: {difference}"


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
@pytest.mark.parametrize("lengths", [(9, 30, 17, 4), (24, 24, 24)], ids=["uneven", "even"])
@pytest.mark.parametrize("layout", ["end to end", "filled", "padded"])
def test_every_layout_gives_each_row_its_own_loss_and_gradient(
    architecture: str, lengths: tuple[int, ...], layout: str
) -> None:
    rows = some_rows(*lengths)
    plain = adapted(base_model(architecture, "eager"))
    expected = torch.cat(reference(plain, rows))
    expected.sum().backward()
    wanted = gradients(plain)

    name = "sdpa" if layout == "padded" else attention.NAME
    fast = adapted(base_model(architecture, name))
    match layout:
        case "end to end":
            batch = batches.end_to_end(rows)
        case "filled":
            batch = batches.end_to_end(rows, sizes=batches.Sizes(128, 96, len(rows) + 2))
        case _:
            batch = batches.padded(rows, filler=0)
    losses = forward.losses_of(fast, tight=False)(batch)
    assert losses.shape == batch.targets.shape
    assert batch.tokens == sum(lengths)
    counted = losses[batch.targets != IGNORED]
    torch.testing.assert_close(counted, expected, rtol=1e-5, atol=1e-5)
    assert losses[batch.targets == IGNORED].abs().sum() == 0
    losses.sum().backward()
    assert_alike(gradients(fast), wanted)


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
@pytest.mark.parametrize("targets", ["all-linear", Q_TO_O, ["k_proj", "down_proj"]])
@pytest.mark.parametrize("recompute", [False, True])
def test_fused_layers_compute_what_pefts_do(
    architecture: str, targets: Any, recompute: bool
) -> None:
    batch = batches.end_to_end(some_rows(12, 20, 7))
    plain = adapted(base_model(architecture, attention.NAME), targets)
    fused = copy.deepcopy(plain)
    per_block = 7 if targets == "all-linear" else len(targets)
    assert fused_lora.fuse(fused) == 3 * per_block
    if recompute:
        fused.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    losses = []
    for model in (plain, fused):
        model.train()
        out = forward.losses_of(model, tight=True)(batch)
        out.sum().backward()
        losses.append(out.detach())
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-5)
    assert_alike(gradients(fused), gradients(plain))


def test_a_switched_off_adapter_leaves_the_base() -> None:
    batch = batches.end_to_end(some_rows(12, 20))
    base = base_model("qwen3", attention.NAME)
    expected = forward.losses_of(adapted(copy.deepcopy(base)), tight=True)
    fused = adapted(base)
    fused_lora.fuse(fused)
    losses = forward.losses_of(fused, tight=True)
    with torch.no_grad():
        torch.testing.assert_close(losses(batch), expected(batch))
        with fused.disable_adapter():
            off = losses(batch)
        assert (off - losses(batch)).abs().max() > 1e-3


def test_dropout_keeps_pefts_own_forward_pass() -> None:
    assert fused_lora.fuse(adapted(base_model("llama", "eager"), lora_dropout=0.1)) == 0


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_the_fused_norm_is_the_models_own(architecture: str) -> None:
    model = base_model(architecture, "eager")
    norm = model.model.layers[0].input_layernorm
    x = torch.randn(5, SHAPE["hidden_size"], requires_grad=True)
    expected, ours = norm(x), kernels._Norm(norm)(x)
    torch.testing.assert_close(ours, expected)
    slope = torch.randn_like(expected)
    one, two = (torch.autograd.grad(y, x, slope)[0] for y in (ours, expected))
    torch.testing.assert_close(one, two)


def test_the_fused_norm_keeps_its_type_under_autocast() -> None:
    torch.set_autocast_enabled("cuda", True)  # torch.autocast does nothing where there is no GPU
    try:
        with FakeTensorMode():
            shape = {"dtype": torch.bfloat16, "device": "cuda"}
            x, weight = torch.empty(5, 64, **shape), torch.empty(64, **shape)
            assert rms_norm(x, weight.shape, weight).dtype is torch.float32
            module = mock.Mock(weight=weight, variance_epsilon=1e-6)
            assert kernels._Norm(module)(x).dtype is torch.bfloat16
    finally:
        torch.set_autocast_enabled("cuda", False)


@pytest.mark.parametrize("architecture", ["gemma2", "mistral"])
def test_attention_that_is_not_plain_is_transformers_own(
    architecture: str, toy_spec: TrainSpec, tmp_path: Path, recorder: Any
) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM, MistralConfig, MistralForCausalLM

    torch.manual_seed(1)
    if architecture == "gemma2":
        config: Any = Gemma2Config(**SHAPE, head_dim=16, sliding_window=16)
        model: Any = Gemma2ForCausalLM(config)
    else:
        model = MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=16))
    model.set_attn_implementation("eager")
    model.save_pretrained(tmp_path)
    data = some_rows(9, 60, 33)
    plan = plan_for(toy_spec, Shape.of(read_config(tmp_path)), Rows(data, cut=0, dropped=0), "peft")
    loaded = choose.load(toy_spec, plan, tmp_path, recorder)
    loaded.model.eval()
    batch = loaded.lay_out(data)
    with torch.no_grad():
        expected = torch.cat(reference(model.eval(), data))
        torch.testing.assert_close(loaded.losses(batch), expected, rtol=1e-5, atol=1e-5)


@dataclass(eq=False)
class Saved:
    """What autograd keeps for the backward pass; unlike tensors in its hands, it can be watched."""

    tensor: torch.Tensor


def test_a_pass_that_broke_off_leaves_nothing_behind() -> None:
    model = adapted(base_model("qwen3", attention.NAME))
    fused_lora.fuse(model)
    losses = forward.losses_of(model, tight=True)
    kept: weakref.WeakSet[Saved] = weakref.WeakSet()

    def keep(tensor: torch.Tensor) -> Saved:
        saved = Saved(tensor.detach())  # with its history it would hold itself
        kept.add(saved)
        return saved

    def no_room(*_: Any) -> None:  # where q is there, and k and v wait for their turn
        raise torch.OutOfMemoryError("CUDA out of memory")

    last = model.get_base_model().model.layers[2]
    last.self_attn.q_norm.register_forward_hook(no_room)
    batch = batches.end_to_end(some_rows(12, 20))
    broke_off = False
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved.tensor):
        try:
            losses(batch)
        except (
            torch.OutOfMemoryError
        ):  # pytest.raises would keep the traceback, and that the tensors
            broke_off = True
    gc.collect()
    assert broke_off
    assert kept
    fused_lora.forget(model)
    gc.collect()
    assert not kept


def recorded(rows: int, longest: int) -> RecordedPasses:
    model = adapted(base_model("llama", attention.NAME))
    loaded = Loaded(
        model=model,
        dtype="float32",
        lay_out=batches.end_to_end,
        losses=forward.losses_of(model, tight=True),
        recompute=lambda: None,
    )
    state = mock.Mock(parameters=torch.zeros(1))
    state.scaler.scale = lambda loss: loss
    return RecordedPasses(loaded, state, micro_batch=rows, longest=longest)


def test_the_sizes_that_are_recorded_are_few() -> None:
    pairs = recorded(2, longest=300)
    lengths = [(300, 300), (150, 150), (299, 299), (299, 300), (17, 212), (300,)]
    laid = [pairs.lay_out(some_rows(*each)) for each in lengths]
    shapes = [(b.input_ids.numel(), len(b.starts)) for b in laid if b.starts is not None]
    # full rows as a plain batch; others filled up, with a place for the filler
    assert shapes == [(600, 3), (384, 4), (640, 4), (640, 4), (256, 4), (384, 4)]
    single = recorded(1, longest=300)
    sizes = {single.lay_out(some_rows(n)).input_ids.numel() for n in range(20, 301)}
    assert sizes == {128, 256, 384, 300}


def test_full_and_almost_full_rows_are_recorded_apart() -> None:
    """They have as many tokens, but the filler of one is a row more."""
    pairs = recorded(2, longest=128)
    pairs.start_step(100)
    for lengths in ((128, 120), (128, 128)):
        pairs.run(pairs.lay_out(some_rows(*lengths)))
    assert len(pairs._records) == 2  # the second time one is met, it is recorded


@pytest.mark.parametrize("tokens", [1, 63, 200])
def test_the_chunked_loss_is_cross_entropy(tokens: int) -> None:
    torch.manual_seed(4)
    hidden = torch.randn(tokens, 16, requires_grad=True)
    weight = torch.randn(50, 16)
    targets = torch.randint(0, 50, (tokens,))
    targets[::7] = IGNORED
    ours = answer_losses(hidden, weight, targets, chunk_bytes=1)  # 64 tokens, the least
    theirs = cross_entropy(hidden @ weight.t(), targets, ignore_index=IGNORED, reduction="none")
    torch.testing.assert_close(ours, theirs)
    slope = torch.rand(tokens)
    one, two = (torch.autograd.grad(y, hidden, slope)[0] for y in (ours, theirs))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
