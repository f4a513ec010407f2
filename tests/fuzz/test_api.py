"""schemathesis against the real API: what the OpenAPI document says is what the server does.

Every check, in examples, coverage, fuzzing and sequences of requests, without an API key and with one:

    make fuzz

In CI it is a sample with a fixed seed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from loco.contracts.keys import Scope
from loco.ledger.keys import Keys

pytestmark = [pytest.mark.redis, pytest.mark.slow]

LONG = os.environ.get("LOCO_FUZZ") == "long"
EFFORT = (
    ["--max-examples", "200"]
    if LONG
    # coverage, the systematic part, makes thousands of requests: it has its turn in `make fuzz`
    else ["--max-examples", "4", "--seed", "12", "--phases", "examples,fuzzing,stateful"]
)


@pytest.fixture
def live_settings(live_settings, tags, tmp_path):
    """With an Ollama that names its models, which /v1 asks; without torch, which takes seconds a look."""
    tags.models["smollm2:135m"] = "0" * 64
    changes = {"ollama_host": tags.url, "train_python": tmp_path / "no-python"}
    return live_settings.model_copy(update=changes)


@pytest.fixture
def attack(live_api, tmp_path):
    """Runs schemathesis: `attack(document, "--header", …)`; it fails with what was found."""

    def run(document: dict[str, object], *options: str) -> None:
        openapi = tmp_path / "openapi.json"
        openapi.write_text(json.dumps(document))
        command = [Path(sys.executable).with_name("schemathesis"), "--config-file"]
        command += [Path(__file__).with_name("schemathesis.toml"), "run", openapi]
        command += ["--url", live_api.url, "--checks", "all", "--continue-on-failure", "--no-color"]
        command += ["--request-timeout", "30", *EFFORT, *options]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
        assert httpx.get(f"{live_api.url}/healthz", trust_env=False).is_success

    return run


@pytest.fixture
def document(live_api):
    # the first answer is built, from some 150 schemas
    return httpx.get(f"{live_api.url}/openapi.json", timeout=60, trust_env=False).json()


def test_with_a_key(live_api, live_settings, document, attack):
    keys = Keys.connect(live_settings.redis_url, namespace=live_settings.namespace)
    _, key = keys.create("fuzz", scope=Scope.ADMIN)
    keys.close()
    # it would find its own key in the list and revoke it
    options = ("--exclude-operation-id", "revokeKey")
    attack(document, "--header", f"Authorization: Bearer {key}", *options)


def test_without_a_key(document, attack):
    for path in document["paths"].values():
        for operation in path.values():
            operation.pop("security", None)  # nobody asks for a key before there is one
    attack(document)
