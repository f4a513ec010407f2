"""The architectures of the catalog, end to end: trained two steps, written as a GGUF, read by llama.cpp.

Small random weights show what the shapes of a family ask of training, merge, converter and quantizer
(tied heads, biases, norms on q and k, fused layers, windows, layers without positions, padded
vocabularies); what a model knows is not looked at. All have SmolLM2's tokenizer.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from loco.contracts.errors import TrainingFailed
from loco.contracts.specs import BaseModelSpec, Inputs, LoraSpec, TrainSpec
from loco.recipes import catalog
from loco_trainer import train
from loco_trainer.engines import targets
from loco_trainer.gguf import folder as folders
from loco_trainer.gguf import parent
from loco_trainer.gguf.parent import Job
from loco_trainer.merge.lora import Adapter

REPOSITORY = Path(__file__).parents[2]
PADDED = 128
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16384,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "initializer_range": 0.06,
    "tie_word_embeddings": True,
}


def llama3_2(vocabulary: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    rope = {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
    }
    return LlamaForCausalLM(
        LlamaConfig(**SHAPE, vocab_size=vocabulary, head_dim=64, rope_parameters=rope)
    )


def qwen2(vocabulary: int) -> Any:
    """Biases on q, k and v; as the 7B has it a head of its own and more rows than tokens."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape = SHAPE | {"tie_word_embeddings": False, "vocab_size": vocabulary + PADDED}
    model = Qwen2ForCausalLM(Qwen2Config(**shape))
    for name, bias in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(bias, std=0.5)  # they begin as zeros
    return model


def qwen3(vocabulary: int) -> Any:
    """A head of its own, as from the 8B on."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    shape = SHAPE | {"tie_word_embeddings": False, "vocab_size": vocabulary}
    return Qwen3ForCausalLM(Qwen3Config(**shape, head_dim=64))


def gemma3_text(vocabulary: int) -> Any:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    more = {"head_dim": 64, "sliding_window": 16, "layer_types": kinds, "num_hidden_layers": 6}
    more["query_pre_attn_scalar"] = 64  # that of head_dim, as the 1B and 4B have it
    return Gemma3ForCausalLM(Gemma3TextConfig(**SHAPE | more, vocab_size=vocabulary))


def smollm3(vocabulary: int) -> Any:
    from transformers import SmolLM3Config, SmolLM3ForCausalLM

    shape = SHAPE | {"num_hidden_layers": 4, "vocab_size": vocabulary}
    return SmolLM3ForCausalLM(SmolLM3Config(**shape, no_rope_layers=[1, 1, 1, 0]))


def phi3(vocabulary: int) -> Any:
    """Phi-4-mini: fused layers, and positions on three quarters of a head."""
    from transformers import Phi3Config, Phi3ForCausalLM

    rope = {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "partial_rotary_factor": 0.75,
        "short_factor": [1.0 + i / 100 for i in range(24)],
        "long_factor": [1.0 + i / 2 for i in range(24)],
        "original_max_position_embeddings": 4096,
    }
    more = {"rope_parameters": rope, "original_max_position_embeddings": 4096}
    return Phi3ForCausalLM(
        Phi3Config(**SHAPE, **more, vocab_size=vocabulary, sliding_window=262_144)
    )


#: Architecture of the catalog to a small model of it, and the layers that its adapter is on where the
#: recipe names q, k, v and o.
ARCHITECTURES: dict[str, tuple[Callable[[int], Any], int]] = {
    "llama": (llama3_2, 4),
    "qwen2": (qwen2, 4),
    "qwen3": (qwen3, 4),
    "gemma3_text": (gemma3_text, 4),
    "smollm3": (smollm3, 4),
    "phi3": (phi3, 2),
}


class Built:
    """A small base of an architecture, trained for two steps."""

    def __init__(
        self,
        name: str,
        root: Path,
        smollm2: Path,
        inputs: Inputs,
        base: BaseModelSpec,
        recorder: Any,
    ) -> None:
        self.base, self.trained, self.root = root / "base", root / "train", root
        self.tokenizer = AutoTokenizer.from_pretrained(smollm2)
        make, self.layers = ARCHITECTURES[name]
        torch.manual_seed(0)
        make(len(self.tokenizer)).half().save_pretrained(self.base)
        self.tokenizer.save_pretrained(self.base)
        if name == "phi3":
            rewritten(self.base / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")
        spec = TrainSpec(
            base_model=base.model_copy(update={"train": str(self.base), "merge": str(self.base)}),
            engine="peft",
            lora=LoraSpec(r=4, alpha=32),
            learning_rate=1e-2,
            max_steps=2,
            max_length=128,
        )
        train.run(spec, inputs, self.trained, recorder)
        self.tokenizer_dir = self.trained / "checkpoints"
        if name == "qwen2":
            # transformers makes Qwen's own tokenizer for this type whatever the files hold, which of
            # SmolLM2's words no converter knows; that goes by `architectures`
            self.tokenizer_dir = self.base
            rewritten(self.base / "config.json", model_type="llama")

    def written(self, quantization: str, recorder: Any) -> Path:
        folder = folders.make(
            self.root / f"x-{quantization}",
            self.base,
            self.tokenizer_dir,
            lambda text: text,
        )
        target = self.root / f"{quantization}.gguf"
        job = Job(
            folder=str(folder),
            adapter=str(self.trained / "checkpoints"),
            target=str(target),
            name="x",
            outtype="f16",
            quantization=quantization,
            device="cpu",
        )
        parent.write(job, recorder)
        return target


def rewritten(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def greedy(model: Any, ids: list[int], count: int) -> list[int]:
    with torch.no_grad():
        for _ in range(count):
            ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
    return ids


def logits_of(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float()


def logits_in(gguf: Path, ids: list[int]) -> torch.Tensor:
    """[tokens, vocabulary] as llama.cpp computes them."""
    model = llama_cpp.Llama(str(gguf), n_ctx=256, logits_all=True, verbose=False)
    try:
        model.eval(ids)
        return torch.from_numpy(np.array(model.scores[: len(ids)]))
    finally:
        model.close()


def test_every_architecture_of_the_catalog_is_tried_here() -> None:
    bases = catalog.load_catalog(REPOSITORY / "adapters").values()
    assert {(base.config or {})["model_type"] for base in bases} == set(ARCHITECTURES)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_llama_cpp_reads_is_what_was_trained(
    name: str,
    tmp_path: Path,
    smollm2_dir: Path,
    inputs: Inputs,
    toy: BaseModelSpec,
    recorder: Any,
) -> None:
    built = Built(name, tmp_path, smollm2_dir, inputs, toy, recorder)
    gguf = built.written("F16", recorder)
    if name == "qwen2":
        rewritten(built.base / "config.json", model_type="qwen2")
    base = AutoModelForCausalLM.from_pretrained(built.base, dtype=torch.float32).eval()
    ids = built.tokenizer.encode("What is 3 + 4? Ann has 12 apples.\n\n" * 3)[:40]
    plain = logits_of(base, ids)
    trained = (
        PeftModel.from_pretrained(base, built.trained / "checkpoints").merge_and_unload().eval()
    )
    ids = greedy(trained, ids, 12)

    expected, seen = logits_of(trained, ids), logits_in(gguf, ids)
    assert seen.shape == expected.shape  # rows beyond the tokenizer's are in the file, too
    apart = (seen - expected).abs().max()
    assert apart < 0.05 * expected.std()
    assert (expected[: len(plain)] - plain).abs().max() > 10 * apart, "the adapter is in it"
    # what is said next, twelve times over: the same text
    assert seen[-13:-1].argmax(-1).tolist() == ids[-12:]

    # of Phi's fused layers one stands for q, k and v
    adapted = Adapter(built.trained / "checkpoints")
    assert len(adapted) == built.layers * trained.config.num_hidden_layers
    if name in ("gemma3_text", "phi3"):  # the others' k-quants: tests/trainer/gguf/test_stream.py
        small = logits_in(built.written("Q4_K_M", recorder), ids)
        both = torch.stack([small.flatten(), expected.flatten()])
        assert torch.corrcoef(both)[0, 1] > 0.97


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("gemma3_text", {"layer_types": ["full_attention", "sliding_attention"] * 3}),
        ("smollm3", {"no_rope_layers": [0, 1, 1, 1]}),
    ],
)
def test_an_order_of_layers_that_llama_cpp_would_not_keep_is_refused(
    name: str, order: dict[str, Any], tmp_path: Path, toy_spec: TrainSpec
) -> None:
    make, _ = ARCHITECTURES[name]
    model = make(64)
    model.config.save_pretrained(tmp_path)
    targets.check(asking(toy_spec), tmp_path)
    rewritten(tmp_path / "config.json", **order)
    with pytest.raises(TrainingFailed, match="in an unusual order"):
        targets.check(asking(toy_spec), tmp_path)


def asking(spec: TrainSpec) -> TrainSpec:
    return spec.model_copy(update={"lora": LoraSpec(r=4)})
