"""GET /bases and `loco bases`: the catalog, and what of it fits a card."""

import json
import threading
from datetime import UTC, datetime

import httpx
import pytest
import yaml
from typer.testing import CliRunner

from loco import Client
from loco.cli.main import app
from loco.contracts.errors import InvalidRequest
from loco.contracts.jobs import WorkerInfo
from loco.contracts.plans import Device
from loco_api import bases as listing

pytestmark = pytest.mark.redis


@pytest.fixture
def loco(live_api):
    with Client(live_api.url) as client:
        yield client


def fits(page):
    return {entry["name"]: entry["fits"] for entry in page["data"]}


def test_a_larger_card_fits_what_a_smaller_one_does_and_more(loco):
    small, large = loco.bases(gpu_memory=8), loco.bases(gpu_memory=24)
    assert small["device"]["memory_gb"] == 8
    ours = {name for name, fit in fits(small).items() if fit}
    theirs = {name for name, fit in fits(large).items() if fit}
    assert "qwen3-4b" in ours
    assert "qwen3-14b" in theirs - ours
    assert ours < theirs
    assert list(fits(small)) == list(fits(large))


def test_the_smallest_card_is_where_it_begins_to_fit(loco):
    cards = {entry["name"]: entry["smallest_card_gb"] for entry in loco.bases()["data"]}
    for name, card in cards.items():
        assert fits(loco.bases(gpu_memory=card))[name], name
    below = cards["qwen3-14b"] - 4
    assert not fits(loco.bases(gpu_memory=below))["qwen3-14b"]


def test_the_device_is_the_newest_workers(loco, live_api, hands):
    assert set(fits(loco.bases()).values()) == {None}
    hands.ledger.heartbeat(
        WorkerInfo(
            id="gpu-box-1",
            queue="gpu",
            host="box",
            pid=1,
            device="cpu",
            hardware=Device(name="cpu", memory_gb=8, free_gb=4, cores=2),
            seen_at=datetime.now(UTC),
        )
    )
    found = loco.bases()
    assert found["device"]["name"] == "cpu"
    assert fits(found)["smollm2-135m-instruct"] is True
    assert fits(found)["qwen3-14b"] is False


def test_a_base_whose_shape_nobody_knows_says_so(loco, live_api):
    catalog = live_api.settings.adapters_dir / "base_models.yaml"
    mine = {"kind": "hub", "train": "me/mine", "merge": "me/mine", "ollama": "mine"}
    entries = yaml.safe_load(catalog.read_text()) | {"mine": {**mine, "parameters_billion": 1.0}}
    catalog.write_text(yaml.safe_dump(entries))
    entry = next(e for e in loco.bases(gpu_memory=8)["data"] if e["name"] == "mine")
    assert "not known before its download" in entry["error"]["message"]
    assert entry["fits"] is None


@pytest.mark.parametrize("memory", [0, -1, 1e9])
def test_a_card_of_no_memory_or_endless_is_refused(loco, memory):
    with pytest.raises(InvalidRequest, match="gpu_memory"):
        loco.bases(gpu_memory=memory)


def test_a_list_takes_a_place_of_plans(live_api, monkeypatch):
    """Each new card is 0.7 s of computing: asked for in numbers, they kept threads of all routes busy."""
    leave, working = threading.Event(), []

    def slow(ledger, settings, asked):
        working.append(asked.memory_gb)
        leave.wait(60)
        return [], None

    monkeypatch.setattr(listing, "bases", slow)
    monkeypatch.setattr(listing, "_SECONDS", 0.5)
    url = f"{live_api.url}/bases?gpu_memory"
    try:
        for n in range(3):  # the third waits for a place: the threads of the others keep theirs
            answer = httpx.get(f"{url}=8.{n}4", trust_env=False, timeout=30)
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "busy"
    finally:
        leave.set()
    assert working == [8.0, 8.1], "to a tenth, so that more of them are remembered"


def test_a_name_alone_is_no_card(loco):
    with pytest.raises(InvalidRequest, match="gpu_name needs gpu_memory"):
        loco.bases(gpu_name="RTX 3070")


def test_the_command_shows_a_row_a_base(live_api, monkeypatch):
    monkeypatch.setenv("LOCO_SERVER", live_api.url)
    done = CliRunner().invoke(app, ["bases", "--gpu-memory", "8"])
    assert done.exit_code == 0, done.output
    row = next(line for line in done.stdout.splitlines() if line.startswith("qwen3-4b "))
    assert row.split()[:5] == ["qwen3-4b", "4", "B", "yes", "~6"]
    assert "apache-2.0" in row
    assert "on this card" in done.stdout.splitlines()[0]
    assert "On this card: whether a GPU with 8 GB can train it. Smallest card: " in done.stderr
    shown = json.loads(CliRunner().invoke(app, ["bases", "--json"]).stdout)
    assert len(shown["data"]) >= 22


@pytest.mark.parametrize(
    ("device", "heading", "said"),
    [
        ("cpu", "on this CPU", "On this CPU: whether the server, which trains without a GPU and"),
        ("RTX 3070", "on this card", "On this card: whether the server's RTX 3070 with 25.28 GB "),
        (None, "fits", "No worker reports a device to train on."),
    ],
)
def test_the_command_says_which_device_fits_is_about(
    live_api, hands, monkeypatch, device, heading, said
):
    """7B that does not fit the server's 25 GB of RAM fits a card of 8 GB: `fits` alone was a riddle."""
    monkeypatch.setenv("LOCO_SERVER", live_api.url)
    if device:
        hands.ledger.heartbeat(
            WorkerInfo(
                id="gpu-box-1",
                queue="gpu",
                host="box",
                pid=1,
                device=device,
                hardware=Device(name=device, memory_gb=25.28, free_gb=20, cores=2),
                seen_at=datetime.now(UTC),
            )
        )
    done = CliRunner().invoke(app, ["bases"])
    assert done.exit_code == 0, done.output
    assert f" {heading} " in done.stdout.splitlines()[0]
    assert said in done.stderr
