"""`loco keys`, and how the command line gets its own key."""

import json
from dataclasses import dataclass

import pytest

from loco.cli.main import main

pytestmark = pytest.mark.redis


@dataclass
class Ended:
    """What a command printed."""

    stdout: str
    stderr: str


@pytest.fixture
def loco(live_api, tmp_path, monkeypatch, capsys):
    """Runs the command line: `loco("keys", "list", LOCO_API_KEY=...)`."""
    settings = live_api.settings
    for name, value in {
        "LOCO_SERVER": live_api.url,
        "LOCO_DATA_DIR": str(tmp_path / "data"),
        "LOCO_REDIS_URL": settings.redis_url,
        "LOCO_NAMESPACE": settings.namespace,
    }.items():
        monkeypatch.setenv(name, value)

    def run(*arguments, code=0, **environment):
        capsys.readouterr()
        with monkeypatch.context() as patched:
            for name, value in environment.items():
                patched.setenv(name, value)
            ended = main(list(arguments))
        printed = capsys.readouterr()
        assert ended == code, printed.err
        return Ended(printed.out, printed.err)

    return run


def test_a_key_has_scope_owner_and_end(loco):
    made = json.loads(
        loco(
            *("keys", "create", "ci", "--scope", "read", "--owner", "anna", "--expires", "90d"),
            "--json",
        ).stdout
    )
    assert (made["scope"], made["owner"]) == ("read", "anna")
    assert made["key"].startswith("loco_")
    shown = loco("keys", "list").stdout
    for word in ("anna", "read", made["expires_at"][:10]):
        assert word in shown
    refused = loco("jobs", LOCO_API_KEY=made["key"])
    assert "No jobs" in refused.stderr
    refused = loco("submit", "math", LOCO_API_KEY=made["key"], code=2)
    assert "needs a key with scope submit. Yours has read" in refused.stderr
    assert "expires" in loco("keys", "create", "x", "--expires", "soon", code=2).stderr


def test_jobs_show_their_owner_and_the_trail_who_did_what(loco):
    key = loco("keys", "create", "laptop", "--owner", "anna").stdout.strip()
    loco("submit", "math", "--profile", "tiny", LOCO_API_KEY=key)
    assert "anna" in loco("jobs", LOCO_API_KEY=key).stdout
    (listed,) = json.loads(loco("keys", "list", "--json").stdout)
    assert listed["last_used_at"]
    last = loco("keys", "revoke", listed["id"]).stderr
    assert "the last key, so the server now answers nobody" in last
    told = loco("keys", "audit").stdout
    for words in ("submitJob", "127.0.0.1", "createKey", "revokeKey", "laptop, submit, of anna"):
        assert words in told
    assert key not in told
    actions = [event["action"] for event in json.loads(loco("keys", "audit", "--json").stdout)]
    assert actions == ["revokeKey", "submitJob", "createKey"]


def test_a_key_need_not_stand_on_the_line(loco, tmp_path):
    """Where `ps` shows it to every user of the machine."""
    key = loco("keys", "create", "laptop").stdout.strip()
    file = tmp_path / "key"
    file.write_text(key + "\n")
    loco("jobs", code=2)
    loco("jobs", LOCO_API_KEY_FILE=str(file))
    loco("jobs", "--api-key-file", str(file))
    on_the_line = loco("jobs", "--api-key", key)
    assert "Other users of this machine can see --api-key" in on_the_line.stderr
    assert key not in on_the_line.stderr
    file.write_text("two words\n")
    assert "holds no API key" in loco("jobs", "--api-key-file", str(file), code=2).stderr
    file.unlink()
    assert "cannot be read" in loco("jobs", LOCO_API_KEY_FILE=str(file), code=2).stderr
