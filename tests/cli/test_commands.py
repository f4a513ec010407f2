"""The command line as a user runs it: `.venv/bin/loco` as a process against the real API."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis

from loco import Client
from loco.cli.main import main
from loco.contracts.files import sha256_of
from loco.contracts.jobs import JobStatus
from loco.contracts.stages import Stage
from loco.ledger.keys import Keys

pytestmark = pytest.mark.redis

LOCO = Path(sys.executable).with_name("loco")

TRAIN = {
    "engine": "peft",
    "device": "cpu",
    "dtype": "float32",
    "base_model": "smollm2-135m-instruct",
    "examples": 160,
    "tokens": 9000,
    "trainable_parameters": 1000,
    "total_steps": 2,
    "first_loss": 2.5,
    "last_loss": 0.75,
    "train_seconds": 2.0,
    "tokens_per_second": 512.0,
    "peak_gpu_memory_gb": 0,
    "plan": {
        "engine": "peft",
        "precision": "fp32",
        "micro_batch": 8,
        "accumulation": 1,
        "gradient_checkpointing": False,
        "padding_free": True,
        "max_length": 80,
        "memory_gb": 2.4,
        "step_seconds": 1.0,
        "train_seconds": 20.0,
    },
    "attempts": [],
    "lengths": {
        "rows": 160,
        "tokens": 9000,
        "answer_tokens": 3000,
        "p50": 56,
        "p95": 75,
        "longest": 80,
    },
    "start_seconds": 10.0,
    "step_seconds": 1.0,
    "log": [
        {"step": 1, "epoch": 0.5, "loss": 2.5, "learning_rate": 0.001},
        {"step": 2, "epoch": 1.0, "loss": 0.75, "learning_rate": 0.0005},
    ],
}


def wait_for_job(client: Client, process: subprocess.Popen[str]):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if found := next(client.jobs(), None):
            return found
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("no job was submitted")


def read_until(process: subprocess.Popen[str], words: str) -> None:
    """Reads what a started command says until it says these words."""
    said = ""
    while words not in said:
        line = process.stderr.readline()
        assert line, f"it ended and said only {said!r}"
        said += line


def test_submit_sends_every_option(loco, client):
    done = loco(
        *("submit", "math", "--profile", "tiny", "--stages", "prepare,train", "--seed", "7"),
        *("--no-reuse", "--priority", "3", "--metadata", "owner=ada", "--set", "train.epochs=5"),
        *("--set", "train.learning_rate=1e-3", "--set", "train.lora.r=8", "--json"),
        *("--set", "prepare.source={kind: reasoning-gym}", "--base-model", "qwen3-4b"),
    )
    assert done.returncode == 0, done.stderr
    job = client.job(json.loads(done.stdout)["id"])
    assert job.spec.stages == (Stage.PREPARE, Stage.TRAIN)
    assert (job.spec.seed, job.spec.reuse, job.priority) == (7, False, 3)
    assert job.metadata == {"owner": "ada"}
    assert (job.spec.train.epochs, job.spec.train.learning_rate) == (5, 0.001)
    assert job.spec.train.lora.r == 8
    assert job.spec.train.lora.alpha == 32
    assert job.spec.prepare.source.kind == "reasoning-gym"
    assert job.spec.train.base_model.name == "qwen3-4b"
    assert f"loco watch {job.id}" in done.stderr


def test_submit_wait_json_of_a_job_that_succeeds(started, client, hands):
    process = started(
        "submit", "math", "--profile", "tiny", "--stages", "prepare,train", "--wait", "--json"
    )
    job = wait_for_job(client, process)
    hands.commit(hands.claim(Stage.PREPARE), {"kept": 3})
    claim = hands.claim(Stage.TRAIN)
    hands.progress(claim, step=1, total_steps=2, loss=2.5, eta_seconds=4)
    hands.commit(claim, TRAIN, {"checkpoints/adapter_model.safetensors": b"lora"})
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 0, stderr
    document = json.loads(stdout)
    assert document["id"] == job.id
    assert document["status"] == "succeeded"
    assert document["is_terminal"] is True
    assert document["spec"]["register"]["model_name"] == "locollm-math-tiny"
    assert document["stages"][1]["result"]["last_loss"] == 0.75
    assert "train     4.0 s left, step 1/2, loss 2.500" in stderr
    assert "job       succeeded" in stderr


def test_submit_wait_of_a_job_that_fails(started, client, hands):
    process = started("submit", "math", "--profile", "tiny", "--stages", "prepare", "--wait")
    job = wait_for_job(client, process)
    hands.fail(hands.claim(Stage.PREPARE), "No rows are left.", "Ask for fewer examples.")
    stdout, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "No rows are left." in stdout
    assert "Ask for fewer examples." in stdout
    assert f"loco retry {job.id}" in stdout


def test_ctrl_c_leaves_the_job_running_and_says_so(started, client, hands):
    process = started("submit", "math", "--profile", "tiny", "--wait", "--json")
    job = wait_for_job(client, process)
    hands.claim(Stage.PREPARE)
    read_until(process, "prepare")
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"Job {job.id} continues" in stderr
    assert "Traceback" not in stderr
    assert stdout == ""
    assert client.job(job.id).status is JobStatus.RUNNING


def test_watch_shows_the_summary_of_an_ended_job(loco, client, hands):
    job = client.submit("math", profile="tiny", stages=["prepare", "train"])
    hands.commit(hands.claim(Stage.PREPARE), {"kept": 3})
    hands.commit(hands.claim(Stage.TRAIN), TRAIN)
    done = loco("watch", job.id)
    assert done.returncode == 0, done.stderr
    assert "loss 2.500 → 0.750 █▁ in 2 steps, 512 tokens/s, peft on cpu" in done.stdout
    assert "\x1b[" not in done.stdout + done.stderr


def test_watch_follows_a_running_job_and_exits_1_when_it_is_cancelled(started, loco, client, hands):
    job = client.submit("math", profile="tiny")
    process = started("watch", job.id)
    claim = hands.claim(Stage.PREPARE)
    hands.progress(claim, percent=40, message="reading rows")
    read_until(process, "prepare   40 %, reading rows")
    cancelled = loco("cancel", job.id)
    assert cancelled.returncode == 0
    assert "stops at its next safe point" in cancelled.stdout
    assert hands.ledger.cancelled(claim.task_id, claim.token)
    process.communicate(timeout=30)
    assert process.returncode == 1


def test_a_terminal_gets_a_table_that_redraws_itself(environment, client, hands):
    job = client.submit("math", profile="tiny", stages=["prepare"])
    claim = hands.claim(Stage.PREPARE)
    screen, end = pty.openpty()
    process = subprocess.Popen(
        [LOCO, "watch", job.id],
        env={**environment, "TERM": "xterm", "COLUMNS": "120"},
        stdin=end,
        stdout=end,
        stderr=end,
    )
    os.close(end)
    seen = b""
    with open(screen, "rb", buffering=0) as output, contextlib.suppress(OSError):
        while chunk := output.read(65536):  # OSError: the other end is closed
            seen += chunk
            if b"starting" in seen and b"\xe2\x94\x81" not in seen:
                hands.progress(claim, percent=50, message="reading rows")
            elif b"reading rows" in seen and b"succeeded" not in seen:
                hands.commit(claim, {"kept": 1})
    assert process.wait(30) == 0
    text = seen.decode()
    assert "━━━━━━━━━━╌╌╌╌╌╌╌╌╌╌  50 %  reading rows" in text
    assert "\x1b[32msucceeded" in text
    assert "\x1b[?25h" in text  # the cursor is back


def test_cancel_and_retry(loco, client):
    job = client.submit("math", profile="tiny")
    assert loco("retry", job.id).returncode == 2
    assert "cancelled" in loco("cancel", job.id).stdout
    again = loco("cancel", job.id)
    assert (again.returncode, "had ended already" in again.stdout) == (0, True)
    retried = loco("retry", job.id, "--json")
    assert retried.returncode == 0
    assert json.loads(retried.stdout)["status"] == "queued"


def test_jobs_lists_and_filters(loco, client):
    first, second = (client.submit("math", profile="tiny").id for _ in range(2))
    client.cancel(first)
    lines = loco("jobs").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["job", second, first]
    only = json.loads(loco("jobs", "--status", "cancelled", "--json").stdout)
    assert [entry["id"] for entry in only] == [first]
    assert len(json.loads(loco("jobs", "--limit", "1", "--json").stdout)) == 1
    assert json.loads(loco("jobs", "--adapter", "chess", "--json").stdout) == []


def test_job_shows_one_job(loco, client):
    job = client.submit("math", profile="tiny")
    assert json.loads(loco("job", job.id, "--json").stdout)["id"] == job.id
    assert "queued" in loco("job", job.id).stdout


def test_artifacts_are_listed_and_downloaded(loco, client, hands, tmp_path):
    job = client.submit("math", profile="tiny", stages=["prepare"])
    files = {"training_data.jsonl": b"{}\n", "held_out.jsonl": b"[]\n"}
    hands.commit(hands.claim(Stage.PREPARE), {"kept": 1}, files)
    assert "prepare/held_out.jsonl" in loco("artifacts", job.id).stdout
    done = loco("artifacts", job.id, "training_data.jsonl", "--download", "here")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Saved in here: 1 file, 3 B.\n"  # the list is not shown again
    found = [p for p in (tmp_path / "here").rglob("*") if p.is_file()]
    assert found == [tmp_path / "here" / "prepare" / "training_data.jsonl"]
    assert found[0].read_bytes() == b"{}\n"
    assert loco("artifacts", job.id, "nothing").returncode == 2
    assert loco("artifacts", job.id, "adapter.yaml", "--download", "here").returncode == 0
    recipe = tmp_path / "here" / "inputs" / "adapter.yaml"
    assert sha256_of(recipe) == job.spec.inputs["adapter.yaml"].sha256


def test_a_job_that_cannot_be_read_is_named_beside_the_others(loco, client, ledger, redis_url):
    broken = client.submit("math", profile="tiny", stages=["prepare"])
    whole = client.submit("math", profile="tiny", stages=["prepare"])
    with redis.Redis.from_url(redis_url) as raw:
        raw.hset(f"{ledger.namespace}:job:{broken.id}", "created_at", "yesterday")
    done = loco("jobs")
    assert done.returncode == 0, done.stderr
    assert whole.id in done.stdout
    assert broken.id not in done.stdout
    assert f"{broken.id} is not shown: " in done.stderr


def test_adapters_workers_version(loco, live_api):
    assert "math" in loco("adapters").stdout
    assert "No workers" in loco("workers").stderr
    assert json.loads(loco("version", "--json").stdout)["address"] == live_api.url


def test_keys_are_made_listed_and_revoked_on_the_servers_redis(loco, live_settings, redis_url):
    at = {"LOCO_REDIS_URL": redis_url, "LOCO_NAMESPACE": live_settings.namespace}
    made = loco("keys", "create", "laptop", **at)
    key = made.stdout.strip()
    assert Keys.connect(redis_url, namespace=live_settings.namespace).verify(key)
    assert loco("jobs").returncode == 2
    assert loco("jobs", "--api-key", key).returncode == 0
    assert loco("jobs", LOCO_API_KEY=key).returncode == 0
    (listed,) = json.loads(loco("keys", "list", "--json", **at).stdout)
    assert listed["name"] == "laptop"
    assert key not in loco("keys", "list", **at).stdout
    assert loco("keys", "revoke", listed["id"], **at).returncode == 0
    assert loco("keys", "revoke", listed["id"], **at).returncode == 2


def test_keys_find_the_redis_of_a_running_loco_up(loco, live_settings, redis_url, tmp_path):
    (tmp_path / "data").mkdir(exist_ok=True)
    (tmp_path / "data" / "up.json").write_text(json.dumps({"redis_url": redis_url}))
    assert loco("keys", "list", LOCO_NAMESPACE=live_settings.namespace).returncode == 0


def test_the_first_key_is_made_before_the_first_loco_up(loco):
    key = loco("keys", "create", "laptop", LOCO_SERVER="").stdout.strip()
    assert key.startswith("loco_")
    (kept,) = json.loads(loco("keys", "list", "--json", LOCO_SERVER="").stdout)
    assert kept["name"] == "laptop"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["submit", "maths"], "Adapters here: analysis, code, math"),
        (["submit", "math", "--profile", "huge"], "Profiles: default, gold, strong, tiny"),
        (["submit", "math", "--set", "train.epoch=3"], "train.epoch: unknown field"),
        (["submit", "math", "--set", "epochs"], "must be FIELD=VALUE"),
        (["submit", "math", "--stages", "prepare,bake"], "no stage 'bake'"),
        (["submit", "math", "--stages", "export"], "prepare, train"),
        (["submit", "math", "--priority", "1000"], "priority"),
        (["job", "20260101-000000-abcdef"], "20260101-000000-abcdef"),
        (["watch", "../jobs"], "../jobs"),
        (["jobs", "--status", "burnt"], "burnt"),
        (["jobs", "--server", "ftp://x"], "ftp://x"),
        (["frobnicate"], "frobnicate"),
        (["submit"], "adapter"),
    ],
)
def test_a_wrong_request_exits_2_and_says_what_and_how(live_api, monkeypatch, capsys, words, says):
    monkeypatch.setenv("LOCO_SERVER", live_api.url)
    assert main(words) == 2
    stdout, stderr = capsys.readouterr()
    assert stdout == ""
    assert stderr.startswith("error: ")
    assert says in stderr
    assert "\nfix: " in stderr


def test_an_error_of_the_process_is_two_lines_and_its_exit_code(loco):
    done = loco("submit", "maths")
    assert done.returncode == 2
    assert done.stdout == ""
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ["error", "fix"]


def test_no_server_exits_1_and_says_how_to_start_one(loco):
    done = loco("jobs", "--server", "127.0.0.1:9")
    assert done.returncode == 1
    assert done.stderr.startswith("error: No answer from http://127.0.0.1:9")
    assert "fix: Start it with `loco up`" in done.stderr


def test_a_reader_that_leaves_early_is_no_crash(environment, client):
    for _ in range(3):
        client.submit("math", profile="tiny")
    piped = subprocess.run(
        f"{LOCO} jobs --json | head -c 1",
        shell=True,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert piped.stdout == "["
    assert "Traceback" not in piped.stderr
    assert "Exception" not in piped.stderr


def test_a_terminal_without_unicode_is_no_crash(loco, client, hands):
    job = client.submit("math", profile="tiny", stages=["prepare", "train"])
    hands.commit(hands.claim(Stage.PREPARE), {})
    hands.commit(hands.claim(Stage.TRAIN), TRAIN)
    done = loco("job", job.id, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    assert "loss 2.500" in done.stdout


@pytest.mark.slow
def test_doctor_names_every_part_and_its_fix(loco, live_api):
    done = loco("doctor", LOCO_TRAIN_PYTHON=sys.executable)
    assert done.returncode == 1
    assert "ok      runtime venv     Python 3.11" in done.stdout
    assert "problem training venv    torch cannot be imported" in done.stdout
    assert f"locollm 0.1.0 at {live_api.url}" in done.stdout
    assert "problem api, worker_gpu" in done.stdout
    missing = loco("doctor", LOCO_TRAIN_PYTHON="nowhere/python", LOCO_DATA_DIR="/proc/1/loco")
    assert "problem disk, data" in missing.stdout
    assert "make setup" in missing.stdout


def test_doctor_of_a_server_elsewhere_looks_at_the_server_only(loco):
    done = loco("doctor", "--server", "http://0.0.0.0:9", NO_COLOR="1")
    assert done.returncode == 1
    assert [line.split()[1] for line in done.stdout.splitlines() if "fix:" not in line] == ["api"]
