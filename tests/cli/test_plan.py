"""`loco plan` as a user runs it, against the real API."""

import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from loco import Client
from loco.cli.main import main
from loco.cli.plan import page, verdict
from loco.contracts.jobs import WorkerInfo
from loco.contracts.plans import Device

pytestmark = pytest.mark.redis

LOCO = Path(sys.executable).with_name("loco")


@pytest.fixture
def loco(live_api, tmp_path):
    """Runs `loco plan` to its end."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LOCO_")}
    environment = {
        **kept,
        "LOCO_SERVER": live_api.url,
        "LOCO_DATA_DIR": str(tmp_path / "data"),
        "PYTHONIOENCODING": "utf-8",
    }

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [LOCO, "plan", *words],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=60,
            check=False,
        )

    return run


@pytest.mark.parametrize(
    "words",
    [
        ("math", "--gpu-memory", "8", "--gpu-name", "RTX 3070"),
        ("math", "--gpu-memory", "141", "--gpu-name", "NVIDIA H200"),
        ("math", "--gpu-memory", "11", "--gpu-name", "NVIDIA GeForce RTX 2080 Ti"),
        ("math", "--gpu-memory", "24", "--set", "train.max_length=16384"),
        ("math", "--profile", "tiny", "--gpu-memory", "16", "--gpu-name", "cpu"),
    ],
)
def test_the_page_fits_a_terminal_and_names_everything(loco, words):
    done = loco(*words)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80, done.stdout
    labels = {line[:10].strip() for line in lines}
    assert {"plan", "memory", "rows", "time", "needs"} <= labels
    for word in ("weights", "activations", "margin", "train ~", "export", "GB RAM", "GB disk"):
        assert word in done.stdout


def test_a_verdict_comes_first(loco):
    done = loco("math", "--gpu-memory", "24", "--gpu-name", "RTX 4090")
    first = done.stdout.split("\n\n")[0].replace("\n", " ")
    assert re.match(
        r"Fits\. About \d+ min plus prepare, register and eval, not known yet\. The time is computed: "
        r"nothing like it has run here yet\. Downloads \d+\.\d GB, so the server must reach the model hub\. math",
        first,
    ), first


def test_the_verdict_says_what_is_tight_and_what_is_not_known(live_api):
    with Client(live_api.url) as client:
        found = client.plan("math", profile="tiny", device={"name": "cpu", "memory_gb": 16})
    known = [s.model_copy(update={"seconds": 900.0}) for s in found.stages]
    found = found.model_copy(update={"total_seconds": 4500.0, "stages": tuple(known)})
    computed = " The time is computed: nothing like it has run here yet."
    assert verdict(found) == f"Fits. About 1 h 15 min.{computed}"
    none = tuple(s.model_copy(update={"seconds": None}) for s in known)
    assert "not known yet" in verdict(found.model_copy(update={"stages": none}))
    tight = found.device.model_copy(update={"free_gb": found.memory.peak_gb})
    assert verdict(found.model_copy(update={"device": tight})).startswith("Just fits")
    timed = (known[0].model_copy(update={"basis": "runs", "runs": 1}), *known[1:])
    assert computed not in verdict(found.model_copy(update={"stages": timed}))
    told = " ".join(" ".join(map(str, page(found.model_copy(update={"stages": timed})))).split())
    assert "time ~1 h 15 min: prepare ~15 min 00 s (from 1 earlier run)" in told


@pytest.mark.parametrize(
    ("memory", "words", "warned"),
    [
        (3, (), "does not fit"),
        (140, ("--set", "train.epochs=1000"), "Fits. About "),
        (140, ("--set", "train.max_steps=1"), None),
        (3, ("--stages", "prepare"), None),
    ],
)
def test_submit_warns_of_what_is_long_or_does_not_fit_and_goes_on(
    live_api, hands, monkeypatch, capsys, memory, words, warned
):
    monkeypatch.setenv("LOCO_SERVER", live_api.url)
    card = Device(name="NVIDIA H100", memory_gb=memory, free_gb=memory, compute_capability=9.0)
    hands.ledger.heartbeat(a_worker(card))
    assert main(["submit", "math", "--json", *words]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["status"] == "queued"
    if warned is None:
        assert "Fits" not in printed.err
        assert "fit" not in printed.err
    else:
        assert warned in printed.err


def test_submit_goes_on_where_no_plan_can_be_made(live_api, monkeypatch, capsys):
    monkeypatch.setenv("LOCO_SERVER", live_api.url)
    assert main(["submit", "math", "--profile", "tiny"]) == 0  # no worker says what it trains on
    assert "Accepted" in capsys.readouterr().err


def a_worker(device: Device) -> WorkerInfo:
    return WorkerInfo(
        id="gpu-box-1",
        queue="gpu",
        host="box",
        pid=1,
        device="gpu 0",
        hardware=device,
        seen_at=datetime.now(UTC),
    )


def test_every_computed_figure_is_marked(loco):
    done = loco("math", "--gpu-memory", "8", "--gpu-name", "RTX 3070")
    page, table = done.stdout.split("\ninstead ")
    words = " ".join(page[page.index("\nmemory ") :].split())
    figures = re.findall(r"~?\d[\d.]* (?:GB free|GB|min \d\d s|h \d\d min|s)\b", words)
    assert len(figures) > 10
    assert [figure for figure in figures if not figure.startswith("~")] == ["7.6 GB free"]
    for part in ("weights", "adapter", "activations", "logits", "workspace", "margin"):
        assert re.search(rf"{part} ~\d", words), part
    assert table.split()[:3] == ["~GB", "~step", "~train"]
    assert re.search(r"(yes|no) +~\d", table)


def test_the_workers_device_is_the_default_and_json_is_the_apis(loco, hands):
    card = Device(name="NVIDIA H200", memory_gb=150, free_gb=149, compute_capability=9.0)
    hands.ledger.heartbeat(a_worker(card))
    done = loco("math", "--set", "train.micro_batch=4", "--set", "train.epochs=1", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["device"]["name"] == "NVIDIA H200"
    assert (found["plan"]["micro_batch"], found["plan"]["accumulation"]) == (4, 2)
    assert found["total_steps"] == 25


def test_what_does_not_fit_exits_with_2_and_says_what_would(loco):
    done = loco("math", "--gpu-memory", "3")
    assert done.returncode == 2
    assert "does not fit" in done.stderr
    assert "fix: " in done.stderr
    assert "smollm2-135m-instruct" in done.stderr
    assert done.stdout == ""


def test_a_name_without_memory_is_refused(loco):
    done = loco("math", "--gpu-name", "RTX 3080")
    assert done.returncode == 2
    assert "--gpu-memory" in done.stderr
