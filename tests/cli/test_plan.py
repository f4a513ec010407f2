"""`loco plan` as a user runs it, against the real API."""

import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

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
    hands.ledger.heartbeat(
        WorkerInfo(
            id="gpu-box-1",
            queue="gpu",
            host="box",
            pid=1,
            device="gpu 0",
            hardware=Device(name="NVIDIA H200", memory_gb=150, free_gb=149, compute_capability=9.0),
            seen_at=datetime.now(UTC),
        )
    )
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
