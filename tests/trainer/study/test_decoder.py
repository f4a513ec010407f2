"""The study's server: its decoder against Hugging Face's, its draws, its adapters, its API."""

import queue
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.train

torch = pytest.importorskip("torch")
ROOT = Path(__file__).parents[3]
sys.path.append(str(ROOT / "tests" / "benchmarks" / "learning"))

import decode_sampling  # noqa: E402
from decode_model import Model  # noqa: E402
from decode_ops import TorchOps  # noqa: E402
from decode_slots import Slots, Start  # noqa: E402
from decoder import Decoder, Job, Served  # noqa: E402
from peft import LoraConfig, PeftModel, get_peft_model  # noqa: E402
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config  # noqa: E402

from loco_trainer.merge.lora import Adapter  # noqa: E402

CPU = torch.device("cpu")
END = 7
SHAPE = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "vocab_size": 300,
    "initializer_range": 0.2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
}
CONFIGS = {
    "qwen2": Qwen2Config(
        **SHAPE, num_attention_heads=6, num_key_value_heads=2, tie_word_embeddings=False
    ),
    "qwen2 tied": Qwen2Config(
        **SHAPE, num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=True
    ),
    "llama": LlamaConfig(
        **SHAPE, num_attention_heads=3, num_key_value_heads=1, tie_word_embeddings=True
    ),
}


@pytest.fixture(params=CONFIGS)
def judge(request):
    """A small model of Hugging Face's, with random weights, biases among them."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[request.param]).float().eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return model


def ours(judge, length=128):
    weights = judge.state_dict()
    return Model(
        judge.config,
        weights.__getitem__,
        TorchOps(),
        length=length,
        dtype=torch.float32,
        device=CPU,
    )


class Running:
    """A decoder, and its answers in order."""

    def __init__(self, model, slots=3, ends=(END,)):
        self.decoder = Decoder(Slots(model, slots, ends), steps=3)
        self.base = Served("base", None)

    def __enter__(self):
        self.decoder.start()
        return self

    def __exit__(self, *_):
        self.decoder.stop()

    def answers(self, starts, served=None):
        inbox = queue.SimpleQueue()
        for n, start in enumerate(starts):
            done = lambda made, n=n: inbox.put((n, made))  # noqa: E731
            self.decoder.submit(Job(served or self.base, start, done))
        found = dict(inbox.get(timeout=60) for _ in starts)
        assert all(made.error is None for made in found.values()), found
        return [found[n] for n in range(len(starts))]


def prompts(*lengths):
    made = torch.Generator().manual_seed(1)
    return [torch.randint(8, 300, (n,), generator=made).tolist() for n in lengths]


def greedy(prompt, new=12):
    return Start(prompt, len(prompt) + new, 0, 40, 0.9, 0)


def hugging_face(model, prompt, new=12):
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=END,
            pad_token_id=0,
        )
    return out[0, len(prompt) :].tolist()


def test_more_prompts_than_slots_get_hugging_faces_greedy_answers(judge):
    asked = prompts(3, 64, 20, 65, 1, 33, 7)
    with Running(ours(judge)) as running:
        made = running.answers([greedy(p) for p in asked])
    assert [m.tokens for m in made] == [hugging_face(judge, p) for p in asked]
    assert [m.ended for m in made] == [m.tokens[-1] == END for m in made]


def test_logits_are_hugging_faces(judge):
    model = ours(judge)
    cache, (prompt, *_) = model.cache(2), prompts(70)
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        expected = judge(ids).logits[0]
        padded = torch.tensor([prompt[:-1] + [0] * 59])
        slots = torch.tensor([1])
        first = model.prompts(padded, torch.tensor([68]), slots, cache)
        second = model.step(ids[:, -1], slots, torch.tensor([69]), cache, 96)
    assert torch.allclose(first[0], expected[-2], atol=1e-4)
    assert torch.allclose(second[0], expected[-1], atol=1e-4)


def test_an_answer_ends_at_the_end_token_or_the_limit():
    torch.manual_seed(0)
    judge = AutoModelForCausalLM.from_config(CONFIGS["llama"]).float().eval()
    [prompt] = prompts(5)
    with Running(ours(judge), ends=()) as running:
        [whole] = running.answers([greedy(prompt, 20)])
    assert len(whole.tokens) == 20
    assert not whole.ended
    end = whole.tokens[4]
    with Running(ours(judge), ends=(end,)) as running:
        [cut] = running.answers([greedy(prompt, 20)])
    assert cut.tokens == whole.tokens[: whole.tokens.index(end) + 1]
    assert cut.ended


def test_a_draw_depends_on_its_seed_and_not_on_its_neighbours(judge):
    asked = prompts(9, 9, 30, 12, 5)
    starts = [Start(p, len(p) + 10, 0.8, 40, 0.95, n) for n, p in enumerate(asked)]
    with Running(ours(judge), slots=2) as running:
        first = running.answers(starts)
    with Running(ours(judge), slots=5) as running:
        again = running.answers([*map(greedy, asked), *starts[::-1]])[len(asked) :][::-1]
        other = running.answers([Start(*s.__dict__.values()) for s in starts])
        changed = running.answers([Start(**{**s.__dict__, "seed": s.seed + 9}) for s in starts])
    assert [m.tokens for m in first] == [m.tokens for m in again] == [m.tokens for m in other]
    assert [m.tokens for m in first] != [m.tokens for m in changed]


def test_draws_follow_the_distribution():
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0]).repeat(20_000, 1)
    rows = torch.arange(20_000)
    drawn = decode_sampling.sample(
        logits,
        torch.full((20_000,), 0.8),
        torch.full((20_000,), 4),
        torch.full((20_000,), 0.9),
        rows,
        torch.full((20_000,), 17),
    )
    chance = (logits[0, :4] / 0.8).softmax(-1)
    kept = chance * torch.tensor([1.0, 1, 1, 0])  # the first three reach 0.9
    expected = kept / kept.sum()
    assert float(chance[:2].sum()) < 0.9 < float(chance[:3].sum())
    found = torch.bincount(drawn, minlength=6)[:4] / 20_000
    assert torch.allclose(found, expected, atol=0.012)
    assert int(drawn.max()) == 2


def test_candidates_are_the_largest_of_a_large_vocabulary():
    logits = torch.randn(5, 20_001, generator=torch.Generator().manual_seed(3))
    value, token = decode_sampling.candidates(logits)
    expected = logits.topk(decode_sampling.MOST_CANDIDATES)
    assert torch.equal(value, expected.values)
    assert torch.equal(token, expected.indices)


def test_noise_is_even_and_never_infinite():
    tokens = torch.arange(1000).repeat(1000, 1)
    noise = decode_sampling.uniform(torch.arange(1000) * 2**40, torch.arange(1000), tokens)
    assert float(noise.min()) > 0
    assert float(noise.max()) < 1
    assert abs(float(noise.mean()) - 0.5) < 0.002
    assert abs(float(noise.std()) - 12**-0.5) < 0.002


def adapter(judge, folder, targets, seed=4):
    """A trained-looking adapter of PEFT's, saved; the judge itself stays as it is."""
    torch.manual_seed(seed)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM")
    model = get_peft_model(judge, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return model.unload()


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], "all-linear"])
def test_an_adapter_answers_as_pefts_merged_model_and_leaves_the_base_as_it_was(
    judge, tmp_path, targets
):
    asked = prompts(4, 40, 11)
    judge = adapter(judge, tmp_path, targets)
    model = ours(judge)
    with Running(model) as running:
        math = Served("math", Adapter(tmp_path))
        before = running.answers([greedy(p) for p in asked])
        worn = running.answers([greedy(p) for p in asked], math)
        after = running.answers([greedy(p) for p in asked])
    assert [m.tokens for m in before] == [m.tokens for m in after]
    merged = PeftModel.from_pretrained(judge, tmp_path).merge_and_unload()
    assert [m.tokens for m in worn] == [hugging_face(merged, p) for p in asked]
    assert [m.tokens for m in worn] != [m.tokens for m in before]


def test_jobs_of_two_models_at_once_are_answered_by_their_own(judge, tmp_path):
    [prompt] = prompts(6)
    judge = adapter(judge, tmp_path, "all-linear")
    with Running(ours(judge)) as running:
        math = Served("math", Adapter(tmp_path))
        [base], [worn] = running.answers([greedy(prompt)]), running.answers([greedy(prompt)], math)
        inbox = queue.SimpleQueue()
        for n in range(12):
            served = math if n % 2 else running.base
            done = lambda made, n=n: inbox.put((n, made.tokens))  # noqa: E731
            running.decoder.submit(Job(served, greedy(prompt), done))
        for n, tokens in (inbox.get(timeout=60) for _ in range(12)):
            assert tokens == (worn if n % 2 else base).tokens


def test_a_fault_in_the_model_reaches_whoever_waits(judge):
    model = ours(judge)
    model.layers[0].down[:] = float("nan")
    inbox = queue.SimpleQueue()
    decoder = Decoder(Slots(model, 2, (END,)))
    decoder.start()
    decoder.submit(Job(Served("base", None), greedy(*prompts(5)), inbox.put))
    assert inbox.get(timeout=60).error == "the model's logits are no numbers"
    model.norm = None
    decoder.submit(Job(Served("base", None), greedy(*prompts(5)), inbox.put))
    assert "the decoder has failed" in inbox.get(timeout=60).error
    decoder.submit(Job(Served("base", None), greedy(*prompts(5)), inbox.put))
    assert "the decoder has failed" in inbox.get(timeout=60).error
    decoder.stop()
