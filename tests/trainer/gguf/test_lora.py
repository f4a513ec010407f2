"""An adapter as a GGUF of its own, on its base in llama.cpp, is the adapter that PEFT trained."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from loco.contracts.errors import ExportFailed
from loco.stage.program import Emitter
from loco_trainer.data.rows import Row
from loco_trainer.gguf import lora
from loco_trainer.gguf import parent as gguf_file
from loco_trainer.gguf.check import loaded
from loco_trainer.gguf.parent import Job, Written
from loco_trainer.merge.lora import Adapter

Make = Callable[..., Path]


class Lane:
    """A base of random weights as a GGUF, and a strong adapter for it as another."""

    def __init__(self, base: Path, root: Path, make_adapter: Make) -> None:
        self.base = base
        self.adapter = make_adapter(base, root / "adapter", std=0.2)
        self.gguf, self.lora = root / "base.gguf", root / "adapter.gguf"
        self.written: Written = gguf_file.write(self.job, Emitter(io.StringIO()))

    @property
    def job(self) -> Job:
        return Job(
            folder=str(self.base),
            adapter=str(self.adapter),
            target=str(self.gguf),
            name="x",
            outtype="f16",
            quantization="F16",
            lora=str(self.lora),
            merge=False,
            device="cpu",
        )

    def trained(self) -> Any:
        """The adapter in transformers and PEFT, on the weights that the GGUF has."""
        base = AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float16).float()
        return PeftModel.from_pretrained(base, self.adapter).eval()


@pytest.fixture(scope="module")
def llama(toy_dir: Path, tmp_path_factory: Any, make_adapter: Make) -> Lane:
    return Lane(toy_dir, tmp_path_factory.mktemp("llama"), make_adapter)


@pytest.fixture(scope="module")
def qwen3(small_qwen_dir: Path, tmp_path_factory: Any, make_adapter: Make) -> Lane:
    return Lane(small_qwen_dir, tmp_path_factory.mktemp("qwen3"), make_adapter)


def row(model: Path, text: str) -> Row:
    ids = AutoTokenizer.from_pretrained(model)(text, add_special_tokens=False).input_ids
    return Row(ids, [-100, *ids[1:]])


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["llama", "qwen3"])
def test_on_its_base_it_says_what_peft_says(request: Any, shape: str) -> None:
    it: Lane = request.getfixturevalue(shape)
    assert (it.written.not_carried, it.written.merged) == ("", 0)
    peft = it.trained()
    asked = row(it.base, "Ann has 2 apples and gets 11 more. How many does she have now?")
    with torch.inference_mode():
        logits = peft(torch.tensor([asked.input_ids])).logits[0, :-1].log_softmax(1)
        wanted = logits.gather(1, torch.tensor(asked.input_ids[1:]).view(-1, 1)).view(-1)
        out = peft.generate(
            input_ids=torch.tensor([asked.input_ids]), max_new_tokens=16, do_sample=False
        )[0]
        with peft.disable_adapter():
            plain = peft(torch.tensor([asked.input_ids])).logits[0, :-1].log_softmax(1)
    tokenizer = AutoTokenizer.from_pretrained(it.base)
    text = tokenizer.decode(asked.input_ids)
    with loaded(it.gguf, adapter=it.lora) as model:
        found = model.log_probabilities(asked)
        assert model.answer(text, tokens=16).text == tokenizer.decode(
            out[len(asked.input_ids) :], skip_special_tokens=True
        )
    assert (found - wanted).abs().max() < 0.05
    # the base alone is far from that: the adapter was there
    assert (logits - plain).abs().max() > 1
    with loaded(it.gguf) as model:
        assert (model.log_probabilities(asked) - wanted).abs().max() > 0.5
        model.require_fits(it.lora)


@pytest.mark.slow
def test_its_head_and_its_tensors(llama: Lane) -> None:
    reader = GGUFReader(llama.lora)
    said = {name: field.contents() for name, field in reader.fields.items() if "." in name}
    assert said["general.type"] == "adapter"
    assert said["general.architecture"] == "llama"
    assert said["adapter.type"] == "lora"
    assert said["adapter.lora.alpha"] == 16
    tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    layers = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    assert set(tensors) == {
        f"blk.{block}.{layer}.weight.lora_{part}"
        for block in range(2)
        for layer in layers
        for part in "ab"
    }
    saved = load_file(llama.adapter / "adapter_model.safetensors")
    layer = "base_model.model.model.layers.0.self_attn.{}_proj.lora_{}.weight"
    for name, short, moved in (("q", "attn_q", True), ("v", "attn_v", False)):
        a, b = (saved[layer.format(name, part)].half().numpy() for part in "AB")
        assert np.array_equal(tensors[f"blk.0.{short}.weight.lora_a"], a)
        # llama.cpp has the query and key rows of this shape in another order
        assert np.array_equal(tensors[f"blk.0.{short}.weight.lora_b"], b) is not moved


@pytest.mark.slow
def test_alone_no_base_is_written(llama: Lane, tmp_path: Path, recorder: Any) -> None:
    """And of rsLoRA the scale is alpha / sqrt(r), which a server computes as alpha / r."""
    folder = tmp_path / "rslora"
    folder.mkdir()
    (folder / "adapter_model.safetensors").symlink_to(llama.adapter / "adapter_model.safetensors")
    config = json.loads((llama.adapter / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"use_rslora": True}))
    target, alone = tmp_path / "none.gguf", tmp_path / "alone.gguf"
    job = replace(llama.job, adapter=str(folder), target=str(target), lora=str(alone), whole=False)
    written = gguf_file.write(job, recorder)
    assert (written.tensors, target.exists()) == (0, False)
    assert GGUFReader(alone).fields["adapter.lora.alpha"].contents() == 16 / 4**0.5 * 4


@pytest.mark.slow
def test_an_adapter_of_another_base_does_not_fit(llama: Lane, qwen3: Lane) -> None:
    refused = r"cannot apply adapter\.gguf to the model"
    with loaded(llama.gguf) as model, pytest.raises(ExportFailed, match=refused):
        model.require_fits(qwen3.lora)
    with pytest.raises(ExportFailed, match=refused), loaded(llama.gguf, adapter=qwen3.lora):
        pytest.fail("it was put on another base")


class Rearranging:
    """A converter's model that does to a weight what it is told."""

    class gguf_writer:  # noqa: N801 (the converter's name)
        arch = "llama"

    def __init__(self, change: Callable[[torch.Tensor], list[tuple[str, torch.Tensor]]]) -> None:
        self._change = change

    @classmethod
    def filter_tensors(cls, item: Any) -> Any:
        return item

    def modify_tensors(self, value: torch.Tensor, _name: str, _block: int | None) -> Any:
        return self._change(value)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda w: [("x.weight", w.flip(1))], "columns rearranged"),
        (lambda w: [("x.weight", w + 1)], "columns rearranged"),
        (lambda w: [("x.weight", w.T)], "another shape"),
        (lambda w: [("x", w)], "another shape"),
        (lambda _: [], "is 0 tensors"),
        (lambda w: [("x.weight", w[:2]), ("y.weight", w[2:])], "is 2 tensors"),
    ],
)
def test_what_a_lora_cannot_say_is_refused(change: Any, why: str, tmp_path: Path) -> None:
    class One:
        scale, rank = 2.0, 2

        def layers(self) -> Any:
            yield "model.layers.0.x.weight", torch.randn(2, 6), torch.randn(4, 2)

    target = tmp_path / "x.gguf"
    with pytest.raises(lora.NotCarried, match=why):
        lora.write(Rearranging(change), cast(Adapter, One()), target, name="x")
    assert not target.exists()
