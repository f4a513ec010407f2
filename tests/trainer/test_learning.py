"""The learning study: its batched answers are the plain ones, its table counts right, it runs."""

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

STUDY = Path(__file__).parents[1] / "benchmarks" / "learning"
MODELS = Path(__file__).parents[2] / ".loco" / "test-models"


@pytest.fixture(autouse=True)
def _study_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(STUDY))


def test_a_batch_answers_like_one_prompt_at_a_time() -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.6,  # large: its answers wander through the vocabulary
        pad_token_id=2,
    )
    model = LlamaForCausalLM(config).eval()
    model.generation_config.eos_token_id = None
    prompts = [torch.randint(3, 64, (n,)).tolist() for n in (40, 31, 30, 17, 9, 8, 3, 2)]
    alone = [
        model.generate(torch.tensor([p]), do_sample=False, max_new_tokens=40)[0][len(p) :].tolist()
        for p in prompts
    ]
    ends = {6}
    expected = []
    for tokens in alone:
        last = next((i for i, t in enumerate(tokens) if t in ends), len(tokens))
        expected.append(tokens[: last + 1])
    # rows end at different places, so that the batch shrinks more than once
    assert len({len(tokens) // 8 for tokens in expected}) > 3  # looked at every 8 steps
    assert import_module("answer_hf").greedy(model, prompts, ends, 2, 40) == expected


def test_llama_cpp_s_batch_answers_like_the_model_host(smollm2_dir: Path) -> None:
    from transformers import AutoTokenizer

    from loco_modelhost.engine.engine import Engine, Weights
    from loco_modelhost.engine.session import Session
    from loco_modelhost.requests.options import Options
    from loco_trainer.bases import smollm2

    answers, answer_gguf = import_module("answers"), import_module("answer_gguf")
    path = smollm2.wheel_gguf()
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    questions = ["What is 2 + 2?", "Name a colour.", "What is the capital of France?", "Say hello."]
    prompts = [answers.prompt(q, "You answer in one word.", tokenizer) for q in questions]
    engine = Engine(Weights(path), 512, threads=2)
    options = Options(temperature=0.0, num_predict=answers.MAX_TOKENS)
    served = [
        "".join(engine.pieces(Session(engine.tokenize(text), options, 512))) for text in prompts
    ]
    engine.close()

    model = answer_gguf.Batched(path, answer_gguf.Sizes(slots=2, threads=2))
    waiting, texts = dict(enumerate(prompts)), {}
    while waiting or model.busy:
        while waiting and model.free:
            number = min(waiting)
            model.start({"id": str(number)}, waiting.pop(number))
        for sequence in model.step():
            assert sequence.ended
            texts[int(sequence.problem["id"])] = model.text(sequence.tokens)
    model.close()
    assert [texts[n] for n in range(len(prompts))] == served


def test_answers_are_scored_and_go_on_behind_a_line_cut_short(tmp_path: Path) -> None:
    answers = import_module("answers")
    path = tmp_path / "a.jsonl"
    with answers.written_to(path) as say:
        say({"id": "1", "answer": "1234"}, "So it is $1,234.\nThe answer is 1234", 9, ended=True)
        say({"id": "2", "answer": "7"}, "8 and 8 and", 256, ended=False)
    path.write_bytes(path.read_bytes()[:-20])
    assert set(answers.read(path)) == {"1"}
    with answers.written_to(path) as say:
        say({"id": "2", "answer": "7"}, "The answer is 7", 5, ended=True)
    found = answers.read(path)
    assert (found["1"].correct, found["2"].correct) == (True, True)
    assert found["2"].tokens == 5


def study(out: Path, gsm8k: Path) -> Any:
    return import_module("recipes").Study(out, gsm8k, MODELS, 2, None, None, None)


def test_the_table_compares_with_the_base_on_common_problems(tmp_path: Path) -> None:
    answers, made = import_module("answers"), study(tmp_path, tmp_path)
    right = {"base": {1}, "linear": {1, 2, 3, 4, 5, 6, 7}}
    for name, solved in right.items():
        with answers.written_to(made.answers(name, "hf")) as say:
            for n in range(1, 9 if name == "base" else 11):
                say({"id": str(n), "answer": "1"}, "1" if n in solved else "2", 3, ended=n != 1)
    text = import_module("table").table(made)
    assert "| base | 1 of 8 | 12.5% (2.2% to 47.1%) |  | |  | 1 | 3 |" in text
    # 6 won and none lost: p = 2 / 2**6
    assert "| linear | 7 of 10 | 70.0% (39.7% to 89.2%) | +75.0 points | 6 / 0 | 0.031 |" in text


@pytest.mark.slow
def test_the_whole_study_on_a_few_rows(smollm2_dir: Path, tmp_path: Path) -> None:
    for name, count in (("train", 12), ("test", 2)):
        rows = (
            {"question": f"{name} {n}: what is {n} + 3?", "answer": f"{n} + 3\n#### {n + 3}"}
            for n in range(100, 100 + count)
        )
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    out = tmp_path / "out"
    command = [sys.executable, str(STUDY), "all", "attention", "--gsm8k", str(tmp_path)]
    command += ["--out", str(out), "--models", str(smollm2_dir.parent), "--rows", "2"]
    command += ["--max-steps", "2", "--repeat-steps", "2"]
    environment = os.environ | {"OMP_WAIT_POLICY": "passive"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "2 losses identical, largest difference 0 of the loss" in run.stdout
    answers = import_module("answers")
    made = study(out, tmp_path)
    for name in ("base", "attention"):
        for source in ("hf", "gguf"):
            assert set(answers.read(made.answers(name, source))) == {"1", "2"}
    prepared = json.loads((made.home("prepare") / "prepare.json").read_text())
    assert prepared["eval_items_checked"] == 2
    # again: nothing is left to do
    again = subprocess.run(
        [*command, "--minutes", "5"], capture_output=True, text=True, env=environment, check=False
    )
    assert "answers in" not in again.stderr
