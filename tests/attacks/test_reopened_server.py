"""The last key goes, and the box is open to everybody on it.

Before: revoking the only key, or a lost record of it, made the server answer without one again.
"""

from collections.abc import Iterator

import httpx
import pytest
from typer.testing import CliRunner

from loco.cli.keys import app as cli
from loco.contracts.errors import Conflict

pytestmark = pytest.mark.redis


@pytest.fixture
def http(live_api) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live_api.url, trust_env=False) as client:
        yield client


def test_revoking_the_last_key_opens_nothing(http, keys):
    assert http.get("/jobs").status_code == 200
    info, _ = keys.create("laptop")
    assert http.get("/jobs").status_code == 401
    keys.revoke(info.id)
    assert not keys.any()
    assert http.get("/jobs").status_code == 401


def test_nor_does_one_of_an_earlier_release_or_a_lost_table(http, keys, namespace):
    old = '{"id": "0a1b2c3d", "name": "old", "created_at": "2026-01-01T00:00:00Z"}'
    with keys._connection.client() as client:
        client.hset(f"{namespace}:keys", "ab" * 32, old)
    assert http.get("/jobs").status_code == 401
    keys.revoke("0a1b2c3d")
    assert http.get("/jobs").status_code == 401
    keys.create("laptop")
    with keys._connection.client() as client:
        client.delete(f"{namespace}:keys")
    assert http.get("/jobs").status_code == 401


def test_a_person_on_the_machine_opens_it_and_is_told_what_that_means(
    http, keys, redis_url, namespace
):
    environment = {"LOCO_REDIS_URL": redis_url, "LOCO_NAMESPACE": namespace}
    info, _ = keys.create("laptop")
    with pytest.raises(Conflict):
        keys.open()
    keys.revoke(info.id)
    runner = CliRunner()
    asked = runner.invoke(cli, ["open"], input="n\n", env=environment)
    assert asked.exit_code != 0
    assert "every program and user" in asked.output
    assert http.get("/jobs").status_code == 401
    assert "answers nobody" in runner.invoke(cli, ["list"], env=environment).output
    assert runner.invoke(cli, ["open", "--yes"], env=environment).exit_code == 0
    assert http.get("/jobs").status_code == 200
    assert keys.audit.page()[0][0].action == "openServer"
