"""Which server a command means: that of its folder, else the user's only one, or it refuses."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from loco.box.announced import announce, announce_to_user
from loco.box.doctor import Finding, Level
from loco.cli import admin
from loco.cli.main import main
from loco.client.running import Up, born, note_path, notes_dir, own_ups, up_at, up_in
from loco.client.target import default_server
from loco.contracts.errors import InvalidRequest
from loco.ledger.keys import Keys


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder without a server, and a state folder of this test."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name in ("LOCO_SERVER", "LOCO_DATA_DIR", "LOCO_REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "elsewhere"


def running(data_dir: Path, server: str, *, pid: int | None = None, **more: object) -> Path:
    """What a `loco up` of this process, or of another, leaves."""
    data_dir.mkdir(parents=True)
    pid = os.getpid() if pid is None else pid
    up = Up(server=server, data_dir=data_dir, pid=pid, born=born(os.getpid()), **more)
    announce(up, data_dir)
    return announce_to_user(data_dir)


def test_a_command_finds_the_users_server_from_any_folder(elsewhere, tmp_path):
    assert default_server() == "http://127.0.0.1:8321"
    note = running(tmp_path / "box" / ".loco", "http://127.0.0.1:7001")
    assert default_server() == "http://127.0.0.1:7001"
    assert stat.S_IMODE(note.stat().st_mode) == 0o600
    assert stat.S_IMODE(note.parent.stat().st_mode) == 0o700
    assert up_at("http://localhost:7001/") == own_ups()[0]
    assert up_at("http://127.0.0.1:7009") is None
    running(elsewhere / ".loco", "http://127.0.0.1:7002")
    assert default_server() == "http://127.0.0.1:7002", "the folder's goes first"
    chosen = {**os.environ, "LOCO_DATA_DIR": str(tmp_path / "new")}
    assert default_server(chosen) == "http://127.0.0.1:8321", "a folder that is named is meant"


def test_several_servers_are_named_and_none_is_guessed(elsewhere, tmp_path):
    for number in (1, 2):
        running(tmp_path / f"box{number}", f"http://127.0.0.1:700{number}")
    with pytest.raises(InvalidRequest, match=r"7001 .*box1.*7002 .*box2") as refused:
        default_server()
    assert "--server http://127.0.0.1:700" in str(refused.value.hint)


def test_a_dead_process_is_passed_over_and_its_note_goes_with_the_next_start(elsewhere, tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    old = running(tmp_path / "old", "http://127.0.0.1:7001", pid=ended.pid)
    # the number of a process that began at another time: it was given out anew
    later = Up(server="http://127.0.0.1:7003", pid=os.getpid(), born=born(1) + "x")
    running(tmp_path / "reused", "http://127.0.0.1:7003")
    announce(later, tmp_path / "reused")
    assert own_ups() == []
    assert up_in(tmp_path / "old") is up_in(tmp_path / "reused") is None
    assert default_server() == "http://127.0.0.1:8321"
    running(tmp_path / "box", "http://127.0.0.1:7002")
    assert not old.exists()
    assert [up.server for up in own_ups()] == ["http://127.0.0.1:7002"]


def test_what_another_user_may_have_written_is_not_believed(elsewhere, tmp_path):
    data = tmp_path / "box"
    running(data, "http://127.0.0.1:7001")
    target = elsewhere / ".loco"
    target.mkdir()
    (target / "up.json").symlink_to(data / "up.json")
    with pytest.raises(InvalidRequest, match=r"up\.json was not used: it is a link"):
        default_server()
    (target / "up.json").unlink()
    os.mkfifo(target / "up.json")
    with pytest.raises(InvalidRequest, match="it is not a file"):
        default_server()
    (target / "up.json").unlink()
    (target / "up.json").write_bytes((data / "up.json").read_bytes())
    target.chmod(0o777)
    with pytest.raises(InvalidRequest, match="others may write"):
        default_server()
    target.chmod(0o700)
    (target / "up.json").chmod(0o620)
    with pytest.raises(InvalidRequest, match=r"others may write .*up\.json"):
        default_server()
    (target / "up.json").chmod(0o644)
    assert default_server() == "http://127.0.0.1:7001"
    (target / "up.json").unlink()
    notes_dir().chmod(0o770)
    assert own_ups() == []
    assert default_server() == "http://127.0.0.1:8321"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_not_believed(elsewhere, tmp_path):
    note = running(tmp_path / "box", "http://127.0.0.1:7001")
    os.chown(note, 65534, 65534)
    assert own_ups() == []
    os.chown(tmp_path / "box" / "up.json", 65534, 65534)
    with pytest.raises(InvalidRequest, match="belongs to uid 65534"):
        up_in(tmp_path / "box")


def test_no_home_is_said_and_nothing_fails(elsewhere, tmp_path, monkeypatch):
    (tmp_path / "state").write_text("a file where a folder should be")
    with pytest.raises((OSError, InvalidRequest)):
        announce_to_user(tmp_path)
    assert own_ups() == []
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert note_path(tmp_path).parent == Path("/home/somebody/.local/state/locollm")


def test_the_doctor_looks_at_the_folders_of_the_server_it_finds(
    elsewhere, tmp_path, monkeypatch, capsys
):
    running(tmp_path / "box", "http://127.0.0.1:7001", adapters_dir=tmp_path / "recipes")
    seen = []
    long = Finding("disk, data", Level.PROBLEM, "no room " * 15, "clean up " * 15)
    monkeypatch.setattr(admin, "examine", lambda settings, client: seen.append(settings) or [long])
    monkeypatch.setattr("loco.cli.console._PIPE_WIDTH", 80)
    assert main(["doctor"]) == 1
    first, *folded = capsys.readouterr().out.splitlines()
    assert first.startswith("problem disk, data       no room")
    assert len(folded) > 2
    assert all(line.startswith(" " * 25) and len(line) <= 80 for line in folded)
    assert (seen[0].data_dir, seen[0].adapters_dir) == (tmp_path / "box", tmp_path / "recipes")


# `loco keys` (real API, real Redis)

pytestmark = pytest.mark.redis


@pytest.fixture
def served(live_api, live_settings, tmp_path):
    """A running server whose data folder lies elsewhere."""
    settings = live_settings
    return lambda: running(tmp_path / "box", live_api.url, redis_url=settings.redis_url)


def test_keys_are_those_of_the_running_server_not_of_a_fresh_folder(
    elsewhere, loco, live_api, live_settings, served, tmp_path
):
    served()
    here = {"LOCO_SERVER": "", "LOCO_DATA_DIR": "", "LOCO_NAMESPACE": live_settings.namespace}
    made = loco("keys", "create", "laptop", **here)
    assert made.returncode == 0, made.stderr
    assert f"for {live_api.url} (data in {tmp_path / 'box'})" in made.stderr
    assert not (tmp_path / ".loco").exists()
    keys = Keys.connect(live_settings.redis_url, namespace=live_settings.namespace)
    assert keys.verify(made.stdout.strip())
    keys.close()
    assert loco("jobs", **here).returncode == 2, "the server asks for the key now"
    assert loco("jobs", **here, LOCO_API_KEY=made.stdout.strip()).returncode == 0


def test_keys_are_made_over_the_api_where_a_server_is_named(
    elsewhere, loco, live_api, live_settings, tmp_path
):
    there = {"LOCO_DATA_DIR": str(tmp_path / "none")}
    opened = loco("keys", "create", "first", **there)
    assert opened.returncode == 2
    assert "The first key closes the server" in opened.stderr
    keys = Keys.connect(live_settings.redis_url, namespace=live_settings.namespace)
    admin, text = keys.create("root", scope="admin")
    made = loco("keys", "create", "laptop", "--json", **there, LOCO_API_KEY=text)
    assert made.returncode == 0, made.stderr
    assert keys.verify(json.loads(made.stdout)["key"])
    assert live_api.url in made.stderr
    listed = json.loads(loco("keys", "list", "--json", **there, LOCO_API_KEY=text).stdout)
    assert {key["name"] for key in listed} == {"root", "laptop"}
    trail = loco("keys", "audit", **there, LOCO_API_KEY=text).stdout
    assert "createKey" in trail
    refused = loco("keys", "open", "--yes", **there, LOCO_API_KEY=text)
    assert (refused.returncode, "on its own machine" in refused.stderr) == (2, True)
    last = loco("keys", "revoke", json.loads(made.stdout)["id"], **there, LOCO_API_KEY=text)
    assert last.returncode == 0
    assert "last key" not in last.stderr
    assert "last key" in loco("keys", "revoke", admin.id, **there, LOCO_API_KEY=text).stderr
    assert not (tmp_path / "none").exists()
    keys.close()


def test_a_server_of_nobody_known_is_not_passed_by(elsewhere, loco, live_api, tmp_path):
    """Its files are another user's: a key made in a fresh folder would leave it open."""
    unknown = {"LOCO_SERVER": "", "LOCO_DATA_DIR": "", "LOCO_PORT": live_api.url.rpartition(":")[2]}
    refused = loco("keys", "create", "laptop", **unknown)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert f"A server answers at {live_api.url}" in refused.stderr
    assert "--server" in refused.stderr
    assert not (tmp_path / ".loco").exists()
