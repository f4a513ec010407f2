"""Greedy answers of the Hugging Face weights, many problems at once.

Left-padded batches and one cache; rows that ended leave the batch, so a few long answers do not
keep all the others computing.
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from answers import MAX_TOKENS, Say, prompt, read, written_to
from peft import PeftModel
from stage_runs import ADAPTER, base_folder
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from programs import Budget, Skipped
from recipes import BASE, Study

#: Steps between two looks at which rows have ended: a look waits for the GPU.
STEPS_A_LOOK = 8
#: Rows leave the batch when they are so large a part of it: shrinking copies the cache.
WORTH_SHRINKING = 0.125


def answer(study: Study, name: str, at_once: int | None, budget: Budget) -> None:
    """Answers the test problems that have no answer yet.

    Args:
        study: its folder and problems.
        name: a trained recipe, or the base.
        at_once: prompts in a batch; None: as suits the device.
        budget: ends between two batches.

    Raises:
        Skipped: no time is left, or the recipe is not trained.
    """
    path = study.answers(name, "hf")
    done = read(path)
    problems = [p for p in study.test_problems() if p["id"] not in done]
    if not problems:
        return
    budget.require(10, f"answer-hf {name}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load(base_folder(study), None if name == BASE else study.home(name), device)
    tokenizer = AutoTokenizer.from_pretrained(base_folder(study))
    ends = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|endoftext|>")}
    started, count = time.monotonic(), len(problems)
    with written_to(path) as say:
        for part in _batches(
            problems, study.base.system, tokenizer, at_once or _batch_size(device)
        ):
            budget.require(1, f"answer-hf {name}: {len(problems)} problems")
            prompts = [ids for _, ids in part]
            made = greedy(model, prompts, ends, tokenizer.pad_token_id, MAX_TOKENS)
            _write(say, [problem for problem, _ in part], made, ends, tokenizer)
            problems = problems[len(part) :]
    seconds = time.monotonic() - started
    print(f"answer-hf {name}: {count} answers in {seconds:.1f} s", file=sys.stderr, flush=True)


def load(base: Path, adapter: Path | None, device: str) -> Any:
    """The base, with the adapter merged in float32, then as bfloat16."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        if not (adapter / ADAPTER).is_file():
            raise Skipped(f"{adapter.name}: no adapter in {adapter}; train it first")
        model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    return model.to(device=device, dtype=torch.bfloat16).eval()


@torch.inference_mode()
def greedy(
    model: Any, prompts: list[list[int]], ends: set[int], pad: int, limit: int
) -> list[list[int]]:
    """Continues every prompt greedily until an end token or the limit.

    Args:
        model: a causal language model.
        prompts: token ids, of different lengths.
        ends: token ids that end an answer.
        pad: token id to fill with; it is masked.
        limit: most tokens of an answer.

    Returns:
        The new tokens of each prompt, the end token included where one came.
    """
    device, width = model.device, max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=device)
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    mask = (torch.arange(width, device=device) >= width - lengths[:, None]).long()
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    made = torch.full((len(prompts), limit), pad, device=device)
    lasts = torch.tensor(sorted(ends), device=device)
    rows = torch.arange(len(prompts), device=device)  # which prompts are still in the batch
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    cache = DynamicCache(config=model.config)
    for step in range(limit):
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            logits_to_keep=1,
        ).logits[:, -1]
        token = logits.argmax(-1)
        made[rows, step] = token
        ended |= torch.isin(token, lasts)
        ids, positions = token[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        if step % STEPS_A_LOOK == STEPS_A_LOOK - 1:
            over = int(ended.sum())
            if over == len(ended):
                break
            if over >= WORTH_SHRINKING * len(ended):
                stay = (~ended).nonzero()[:, 0]
                cache.batch_select_indices(stay)
                ids, positions, mask = ids[stay], positions[stay], mask[stay]
                rows, ended = rows[stay], ended[stay]
    return [_until_end(tokens, ends) for tokens in made.tolist()]


def _until_end(tokens: list[int], ends: set[int]) -> list[int]:
    """Up to the first end token; a row that stayed in the batch wrote on behind it."""
    for position, token in enumerate(tokens):
        if token in ends:
            return tokens[: position + 1]
    return tokens


def _batches(
    problems: list[dict[str, str]], system: str | None, tokenizer: Any, size: int
) -> Iterator[list[tuple[dict[str, str], list[int]]]]:
    """Problems of like length together, the longest first: memory runs out at once or never."""
    encoded = [
        (p, tokenizer.encode(prompt(p["question"], system, tokenizer), add_special_tokens=False))
        for p in problems
    ]
    encoded.sort(key=lambda pair: -len(pair[1]))
    for start in range(0, len(encoded), size):
        yield encoded[start : start + size]


def _write(
    say: Say,
    problems: list[dict[str, str]],
    made: list[list[int]],
    ends: set[int],
    tokenizer: Any,
) -> None:
    for problem, tokens in zip(problems, made, strict=True):
        ended = tokens[-1] in ends
        text = tokenizer.decode(tokens[:-1] if ended else tokens, skip_special_tokens=True)
        say(problem, text, len(tokens), ended=ended)


def _batch_size(device: str) -> int:
    """On a GPU a step of few rows costs as much as one of many: launching kernels takes the time."""
    return 660 if device == "cuda" else 16
