"""Whether the study's server does on this GPU what it does elsewhere, and how fast: run it first.

    python tests/benchmarks/learning/check_gpu.py

Random weights in real shapes; no model is needed. One line a check; the exit code is 1 where one failed,
and the last lines say what to do then. About half a minute, half of it compiling.
"""

import argparse
import importlib
import json
import queue
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import decode_ops
import torch
from decode_model import Model
from decode_slots import Slots, Start
from decoder import Decoder, Job, Made, Served
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from loco_trainer.merge.lora import Adapter

_NEEDED = ("starlette", "uvicorn", "gguf", "safetensors", "transformers", "httpx", "jinja2")
_ROPE = {"rope_type": "default", "rope_theta": 1e6}


@dataclass
class Table:
    """What was found, a line each as it is found."""

    wrong: list[str] = field(default_factory=list)

    def say(self, what: str, found: str, *, right: bool = True, advice: str = "") -> None:
        """Prints a line, and remembers it where it is not right."""
        print(f"{'ok   ' if right else 'WRONG'} {what:<44} {found}", flush=True)
        if not right:
            self.wrong.append(f"{what}: {found}. {advice}")

    def run(self, check: Callable[..., None], *args: Any, advice: str = "") -> None:
        """Runs a check; what it raises is a line too."""
        started = time.monotonic()
        try:
            check(self, *args)
        except Exception as error:
            traceback.print_exc()
            name = check.__name__.strip("_")
            text = f"{type(error).__name__}: {str(error)[:300]}"
            self.say(name, text, right=False, advice=advice)
        print(f"      ({time.monotonic() - started:.1f} s)", flush=True)


@dataclass(frozen=True)
class Place:
    """Where and with what."""

    device: torch.device
    ops: Any
    #: Tiny shapes, to try this program itself without a GPU.
    small: bool

    def config(self, kind: str) -> Any:
        """A model of a few layers with the heads of the real one."""
        shape = {"max_position_embeddings": 4096, "rope_parameters": _ROPE, "num_hidden_layers": 4}
        shape |= {"vocab_size": 32_000}
        tiny = {"num_hidden_layers": 1, "vocab_size": 500, "intermediate_size": 64}
        if kind == "qwen2":
            shape |= {"hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12}
            shape |= {"num_key_value_heads": 2, "tie_word_embeddings": False}
            return Qwen2Config(**shape | (tiny | {"hidden_size": 192} if self.small else {}))
        shape |= {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9}
        shape |= {"num_key_value_heads": 3, "tie_word_embeddings": True}
        return LlamaConfig(**shape | (tiny | {"hidden_size": 144} if self.small else {}))


def versions(table: Table, place: Place) -> None:
    """What is installed."""
    gpu = torch.cuda.get_device_name() if place.device.type == "cuda" else "no GPU"
    table.say("torch", f"{torch.__version__}, {gpu}, python {sys.version.split()[0]}")
    for name in _NEEDED:
        try:
            module = importlib.import_module(name)
            table.say(name, str(getattr(module, "__version__", "there")))
        except ImportError as error:
            table.say(name, str(error), right=False, advice="Carry its wheel.")


def kernels(table: Table, place: Place, dtype: torch.dtype) -> None:
    """Every Triton kernel against plain torch in float32."""
    for heads, kv_heads, dim in ((12, 2, 128), (9, 3, 64)):
        rows, slots, length = (3, 4, 96) if place.small else (97, 128, 640)
        made = torch.Generator(place.device).manual_seed(1)

        def random(*shape: int, made: torch.Generator = made) -> Tensor:
            return torch.randn(shape, generator=made, device=place.device).to(dtype)

        keys, values = (random(slots, kv_heads, length, dim) for _ in "kv")
        qkv, hidden = random(rows, heads + 2 * kv_heads, dim), heads * dim
        table_of = torch.randn(length, dim, generator=made, device=place.device)
        at = torch.randint(0, length, (rows,), generator=made, device=place.device)
        at[0], at[1] = 0, length - 1
        place_of = torch.randperm(slots, generator=made, device=place.device)[:rows]
        x, delta, weight = random(rows, hidden), random(rows, hidden), random(hidden)
        gate_up = random(rows, 2 * 1536)
        exact = decode_ops.TorchOps()
        apart = {}
        mine, theirs = (keys.clone(), values.clone()), (keys.float(), values.float())
        q = place.ops.rotate_store(qkv, table_of, *mine, place_of, at)
        r = exact.rotate_store(qkv.float(), table_of, *theirs, place_of, at)
        apart["rotate"] = max(_apart(a, b) for a, b in zip((q, *mine), (r, *theirs), strict=True))
        out = place.ops.attend(q, *mine, place_of, at, None)
        wide = [t.float() for t in (q, *mine)]
        apart["attend"] = _apart(out, exact.attend(*wide, place_of, at, None))
        pair = place.ops.add_norm(x, delta, weight, 1e-6)
        other = exact.add_norm(x.float(), delta.float(), weight.float(), 1e-6)
        apart["norm"] = max(_apart(a, b) for a, b in zip(pair, other, strict=True))
        alone = place.ops.add_norm(x, None, weight, 1e-6)[1]
        apart["norm"] = max(
            apart["norm"], _apart(alone, exact.add_norm(x.float(), None, weight.float(), 1e-6)[1])
        )
        apart["gate"] = _apart(place.ops.gate(gate_up), exact.gate(gate_up.float()))
        limit = 0.02 if dtype == torch.bfloat16 else 1e-4
        for name, difference in apart.items():
            table.say(
                f"{name} {heads}/{kv_heads}x{dim} {str(dtype)[6:]}",
                f"{difference:.1e} of the largest value, limit {limit:.0e}",
                right=difference < limit,
                advice="Serve with --attention torch.",
            )


def against_hugging_face(table: Table, place: Place, dtype: torch.dtype) -> None:
    """Greedy answers through the decoder and its graphs, judged by Hugging Face's float32 logits."""
    for kind in ("qwen2", "llama"):
        torch.manual_seed(2)
        config = place.config(kind)
        judge = AutoModelForCausalLM.from_config(config).to(place.device).eval()
        for name, parameter in judge.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.5)
            parameter.data = parameter.data.to(dtype).float()
        weights = judge.state_dict()
        model = Model(
            config, weights.__getitem__, place.ops, length=256, dtype=dtype, device=place.device
        )
        decoder = Decoder(Slots(model, 12, ()))
        decoder.start()
        count, new = (3, 6) if place.small else (30, 32)
        prompts = [torch.randint(0, config.vocab_size, (3 + 5 * n,)).tolist() for n in range(count)]
        answers = answer(decoder, [Start(p, len(p) + new, 0, 1, 1, 0) for p in prompts])
        warm = [Start(p, len(p) + new, 0.8, 40, 0.95, n) for n, p in enumerate(prompts)]
        drawn = answer(decoder, warm)
        again = answer(decoder, warm[::-2])[::-1]  # other neighbours, other rows
        decoder.stop()
        missed = [_missed(judge, p, a.tokens) for p, a in zip(prompts, answers, strict=True)]
        best = sum(float((m == 0).float().mean()) for m in missed) / count
        worst = max(float(m.max()) for m in missed)
        limit = 0.5 if dtype == torch.bfloat16 else 0.002
        table.say(
            f"greedy, {kind} {str(dtype)[6:]}",
            f"{best:.1%} of tokens are the judge's first choice, worst {worst:.4f} sd below it",
            right=worst < limit and all(len(a.tokens) == new for a in answers),
            advice="Try --attention torch; if that is right, the kernels are wrong here.",
        )
        mine = drawn[::-1][::2][::-1]
        same = sum(a.tokens == b.tokens for a, b in zip(mine, again, strict=True))
        table.say(
            f"sampled twice, other batch, {kind} {str(dtype)[6:]}",
            f"{same} of {len(again)} answers the same",
            right=dtype == torch.bfloat16 or same == len(again),
            advice="An answer depends on its neighbours: decode_sampling.uniform is wrong here.",
        )


def speed(table: Table, place: Place, slots_count: int) -> None:
    """Qwen2.5-1.5B's shape, random: steps, a whole run, an adapter put on and off."""
    config = Qwen2Config(
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        vocab_size=151_936,
        tie_word_embeddings=False,
        rope_parameters=_ROPE,
    )
    if place.small:
        config = place.config("qwen2")
        config.vocab_size = 20_000
    dtype = torch.float32 if place.small else torch.bfloat16
    model = Model(
        config,
        _random_weights(config, place.device),
        place.ops,
        length=256 if place.small else 1536,
        dtype=dtype,
        device=place.device,
    )
    decoder = Decoder(Slots(model, slots_count, ()))
    started = time.monotonic()
    decoder.start()
    table.say("steps recorded", f"{time.monotonic() - started:.1f} s")
    waves = [("greedy", 0.0, 2 * slots_count), ("sampled", 0.8, 2 * slots_count)]
    for name, temperature, count in waves:
        made = torch.Generator().manual_seed(3)
        starts = []
        for n in range(count):
            size, new = (int(torch.randint(*r, (), generator=made)) for r in ((70, 190), (80, 320)))
            if place.small:
                size, new = size // 10, new // 40
            prompt = torch.randint(0, 10_000, (size,), generator=made).tolist()
            starts.append(Start(prompt, size + new, temperature, 40, 0.95, n))
        started = time.monotonic()
        answers = answer(decoder, starts)
        seconds = time.monotonic() - started
        rate = sum(len(a.tokens) for a in answers) / seconds
        table.say(
            f"{name}, {slots_count} slots",
            f"{rate:,.0f} tokens/s ({count} answers in {seconds:.1f} s); aim 33,000",
            right=place.small or rate > 15_000,
            advice="See the milliseconds a step below; --attention torch is another way.",
        )
    decoder.stop()
    _steps(table, place, Slots(model, slots_count, ()))
    _adapter(table, place, model)


def _steps(table: Table, place: Place, slots: Slots) -> None:
    """Milliseconds a step, with a few hundred tokens in every slot."""
    stream = torch.cuda.Stream() if place.device.type == "cuda" else None
    with torch.inference_mode(), torch.cuda.stream(stream):
        for rows in sorted({min(n, slots.count) for n in (32, 128, slots.count)}):
            size = 20 if place.small else 300
            start = Start([5] * size, slots.model.length, 0.8, 40, 0.95, 1)
            slots.begin([(n, start) for n in range(rows)])
            for sampled in (False, True):
                slots.advance(range(rows), 2, sampled=sampled, longest=size).wait()
                started = time.monotonic()
                slots.advance(range(rows), 16, sampled=sampled, longest=size + 2).wait()
                each = (time.monotonic() - started) / 16
                name = f"a step of {rows}{', sampled' * sampled}"
                table.say(name, f"{1000 * each:.2f} ms, {rows / each:,.0f} tokens/s")


def _adapter(table: Table, place: Place, model: Model) -> None:
    """Merging in place and back."""
    name = "model.layers.0.mlp.down_proj.weight"
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        tensors = {}
        for weight, view in model.linear.items():
            layer = f"base_model.model.{weight.removesuffix('.weight')}"
            tensors[f"{layer}.lora_A.weight"] = 0.02 * torch.randn(16, view.shape[1])
            tensors[f"{layer}.lora_B.weight"] = 0.02 * torch.randn(view.shape[0], 16)
        save_file(tensors, Path(folder) / "adapter_model.safetensors")
        told = {"peft_type": "LORA", "r": 16, "lora_alpha": 32}
        (Path(folder) / "adapter_config.json").write_text(json.dumps(told))
        adapter, before = Adapter(Path(folder)), model.linear[name].clone()
        for turn in ("put on", "put on again"):
            started = time.monotonic()
            model.wear(adapter)
            worn = model.linear[name].cpu()
            seconds = time.monotonic() - started
            apart = _apart(worn, adapter.merged(name, before.cpu()))
            table.say(
                f"adapter {turn}",
                f"{seconds:.2f} s, {apart:.1e} from the CPU's",
                right=apart < 0.01,
            )
            model.wear(None)
        same = bool(torch.equal(model.linear[name], before))
        table.say("adapter taken off", "as before" if same else "not as before", right=same)


def answer(decoder: Decoder, starts: Sequence[Start]) -> list[Made]:
    """The answers of a running decoder, in order."""
    inbox: queue.SimpleQueue[tuple[int, Made]] = queue.SimpleQueue()
    served = _BASE.setdefault(id(decoder), Served("base", None))
    for n, start in enumerate(starts):
        decoder.submit(Job(served, start, lambda made, n=n: inbox.put((n, made))))
    found = dict(inbox.get(timeout=300) for _ in starts)
    if wrong := next((m.error for m in found.values() if m.error), None):
        raise RuntimeError(wrong)
    return [found[n] for n in range(len(starts))]


_BASE: dict[int, Served] = {}


@torch.inference_mode()
def _missed(judge: Any, prompt: list[int], made: list[int]) -> Tensor:
    """How far below the judge's first choice each token is, in standard deviations of its logits."""
    ids = torch.tensor([prompt + made], device=judge.device)
    logits = judge(ids).logits[0, len(prompt) - 1 : -1].float()
    chosen = logits.gather(1, ids[0, len(prompt) :, None])[:, 0]
    return (logits.amax(-1) - chosen) / logits.std(-1)


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one.float() - other.float()).abs().max() / other.float().abs().max())


def _random_weights(config: Any, device: torch.device) -> Callable[[str], Tensor]:
    """A weight of the right shape by its name."""
    dim = config.hidden_size // config.num_attention_heads
    queries, keys = config.num_attention_heads * dim, config.num_key_value_heads * dim
    out = {"q_proj": queries, "k_proj": keys, "v_proj": keys, "o_proj": config.hidden_size}
    out |= dict.fromkeys(("gate_proj", "up_proj"), config.intermediate_size)
    out |= {"down_proj": config.hidden_size}
    out |= dict.fromkeys(("embed_tokens", "lm_head"), config.vocab_size)
    into = {"o_proj": queries, "down_proj": config.intermediate_size}

    def make(name: str) -> Tensor:
        kind, what = name.split(".")[-2:]
        if "norm" in kind:
            return torch.ones(config.hidden_size, device=device)
        shape = (out[kind],) if what == "bias" else (out[kind], into.get(kind, config.hidden_size))
        return 0.02 * torch.randn(shape, device=device)

    return make


def main() -> int:
    """Runs the checks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--attention", choices=["triton", "torch"], default="triton")
    parser.add_argument("--slots", type=int, default=384)
    parser.add_argument("--small", action="store_true", help="tiny shapes, for a CPU")
    options = parser.parse_args()
    device, table, started = torch.device(options.device), Table(), time.monotonic()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    place = Place(device, decode_ops.choose(options.attention, device), options.small)
    table.run(versions, place)
    for dtype in (torch.bfloat16, torch.float32):
        if place.small and dtype == torch.bfloat16:
            continue
        if options.attention == "triton":
            table.run(kernels, place, dtype, advice="Serve with --attention torch.")
        table.run(against_hugging_face, place, dtype, advice="Try --attention torch.")
    table.run(speed, place, options.slots)
    print(f"\n{time.monotonic() - started:.0f} s", flush=True)
    for line in table.wrong:
        print(f"WRONG {line}", flush=True)
    return 1 if table.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
