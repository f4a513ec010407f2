"""What compose.yaml runs, run here without containers: Redis's command line, the first start, health."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
import redis
import yaml

from loco.box import redis_server
from loco.contracts.jobs import WorkerInfo
from loco.ledger.ledger import Ledger

pytestmark = pytest.mark.redis

ROOT = Path(__file__).parents[2]
SERVICES = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
PASSWORD = "3f9c"


def free_port() -> int:
    """A TCP port nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def compose_redis(tmp_path: Path) -> Iterator[str]:
    """A server started by the words of compose.yaml; its URL, with the password."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "redis-server").symlink_to(redis_server.find_server())
    data = tmp_path / "data"
    data.mkdir()
    port = free_port()
    shell, flag, script = SERVICES["redis"]["command"]
    assert "--dir /data" in script
    script = script.replace("$$", "$").replace("--dir /data", f"--dir {data} --port {port}")
    process = subprocess.Popen(
        [shell, flag, script],
        env={"PATH": f"{programs}:{os.environ['PATH']}", "REDISCLI_AUTH": PASSWORD},
        stdout=subprocess.DEVNULL,
    )
    url = f"redis://:{PASSWORD}@127.0.0.1:{port}/0"
    wait_for_redis(url)
    yield url
    process.terminate()
    process.wait(10)


def wait_for_redis(url: str) -> None:
    """Returns once the server answers."""
    deadline = time.monotonic() + 20
    with redis.Redis.from_url(url) as client:
        while True:
            try:
                client.ping()
            except redis.ConnectionError:
                assert time.monotonic() < deadline, "no answer from Redis"
                time.sleep(0.05)
            else:
                return


def test_the_redis_of_compose_wants_the_password_and_keeps_everything(compose_redis: str) -> None:
    with redis.Redis.from_url(compose_redis, decode_responses=True) as client:
        wanted = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
        assert client.config_get(*wanted) == wanted
        assert client.config_get("save") == {"save": ""}
    with (
        redis.Redis.from_url(compose_redis.replace(f":{PASSWORD}@", "")) as stranger,
        pytest.raises(redis.AuthenticationError),
    ):
        stranger.ping()


def test_the_api_starts_once_a_key_exists(compose_redis: str, adapters_dir: Path) -> None:
    """`docker compose run --rm api loco keys create laptop`, then `docker compose up`."""
    port = free_port()
    environment = {
        "PATH": os.environ["PATH"],
        "LOCO_HOST": SERVICES["api"]["environment"]["LOCO_HOST"],
        "LOCO_PORT": str(port),
        "LOCO_REDIS_URL": compose_redis,
        "LOCO_ADAPTERS_DIR": str(adapters_dir),
    }
    command = [sys.executable, *SERVICES["api"]["command"][1:]]
    early = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=30, check=False
    )
    assert early.returncode != 0  # so that the engine starts it again
    assert "loco keys create" in early.stderr

    created = subprocess.run(
        [str(Path(sys.executable).parent / "loco"), "keys", "create", "laptop"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    api = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for_http(f"{url}/readyz")
        key = {"Authorization": f"Bearer {created.stdout.strip()}"}
        assert httpx.get(f"{url}/jobs", headers=key).status_code == 200
        assert httpx.get(f"{url}/jobs").status_code == 401
    finally:
        api.terminate()
        api.wait(15)


def wait_for_http(url: str) -> None:
    """Returns once a GET succeeds."""
    deadline = time.monotonic() + 20
    while True:
        try:
            if httpx.get(url).is_success:
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline, f"no answer from {url}"
        time.sleep(0.1)


def is_alive(url: str, namespace: str) -> subprocess.CompletedProcess[str]:
    """The health check of a worker's container."""
    return subprocess.run(
        [sys.executable, "-m", "loco.running.alive"],
        env={"PATH": os.environ["PATH"], "LOCO_REDIS_URL": url, "LOCO_NAMESPACE": namespace},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_worker_is_healthy_while_it_is_heard_of(
    redis_url: str, namespace: str, ledger: Ledger
) -> None:
    assert is_alive(redis_url, namespace).returncode == 1
    worker = WorkerInfo(
        id="cpu-elsewhere",
        queue="cpu",
        host="elsewhere",
        pid=1,
        device="cpu",
        seen_at=datetime.now(UTC),
    )
    ledger.heartbeat(worker)
    found = is_alive(redis_url, namespace)
    assert found.returncode == 1
    assert socket.gethostname() in found.stdout
    ledger.heartbeat(worker.model_copy(update={"id": "cpu-here", "host": socket.gethostname()}))
    found = is_alive(redis_url, namespace)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == "cpu-here"


def test_a_worker_is_unhealthy_without_redis(namespace: str) -> None:
    found = is_alive(f"redis://127.0.0.1:{free_port()}/0", namespace)
    assert found.returncode == 1
    assert "Redis" in found.stderr
