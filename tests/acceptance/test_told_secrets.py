"""Nothing a running system writes, shows or passes on holds a token, a password or a key."""

import re
import signal
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from loco.box import redis_server
from loco.ledger.keys import Keys

pytestmark = [pytest.mark.redis, pytest.mark.slow]

TOKEN = "hf_canaryTOKENcanaryTOKEN"
PASSWORD = "canaryPASSWORD42"
#: Of our processes those whose environment may hold them: who reaches Redis, and the children of their pools.
SERVICES = ("loco_api", "loco_worker", "loco_trainer", "loco.cli.main", "billiard")


@pytest.fixture
def guarded_redis(tmp_path: Path) -> Any:
    """A Redis with a password, as somebody else would run it."""
    server = redis_server.start(tmp_path / "outside", options=("--requirepass", ""))
    socket = re.sub(r"^unix://|\?.*$", "", server.url)
    cli = redis_server.redis.Redis.from_url(server.url)
    cli.config_set("requirepass", PASSWORD)
    cli.close()
    yield f"unix://:{PASSWORD}@{quote(socket)}?db=0"
    server.stop()


def test_no_secret_is_told(start, descendants, guarded_redis: str, tmp_path: Path) -> None:
    keys = Keys.connect(guarded_redis)
    _, key = keys.create("canary", scope="admin")
    keys.close()
    up = start(HF_TOKEN=TOKEN, LOCO_REDIS_URL=guarded_redis).wait_ready()
    secrets = {"token": TOKEN, "password": PASSWORD, "key": key}
    told: list[str] = []

    def look(where: str, content: bytes) -> None:
        told.extend(
            f"{name} in {where}" for name, text in secrets.items() if text.encode() in content
        )

    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=up.state()["server"], trust_env=False, headers=headers) as http:
        request = {"adapter": "math", "profile": "tiny", "stages": ["prepare"]}
        path = f"/jobs/{http.post('/jobs', json=request).json()['id']}"
        up.wait_for(lambda: bool(http.get(path).json()["is_terminal"]))
        assert http.get(path).json()["status"] == "succeeded"
        http.post("/jobs", json={"adapter": key, "profile": TOKEN})  # in an error's words at most
        for route in (
            path,
            f"{path}/events",
            "/readyz",
            "/workers",
            "/keys",
            "/audit",
            "/adapters",
        ):
            look(route, http.get(route).content)
        with httpx.Client(base_url=up.state()["server"], trust_env=False) as stranger:
            wrong = {"Authorization": f"Bearer {PASSWORD}"}
            look("a refusal", stranger.get("/jobs", headers=wrong).content)
    family = [up.process.pid, *descendants(up.process.pid)]
    for pid in family:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        look(f"the process list: {command!r:.80}", command)
        if not any(name.encode() in command for name in SERVICES):
            look(f"the environment of {command!r:.80}", Path(f"/proc/{pid}/environ").read_bytes())
    doctor = subprocess.run(
        [up.process.args[0], "-P", "-m", "loco.cli.main", "doctor"],
        capture_output=True,
        check=False,
        env={**dict(up.environment), "LOCO_API_KEY": key},
        cwd=tmp_path,
    )
    look("doctor", doctor.stdout + doctor.stderr)
    up.process.send_signal(signal.SIGINT)
    up.process.wait(60)
    look("the terminal", up.output.read_bytes())
    for folder in (up.data_dir, tmp_path / "adapters"):
        for file in folder.rglob("*"):
            if file.is_file() and not file.is_symlink() and file.stat().st_size < 50_000_000:
                look(str(file.relative_to(tmp_path)), file.read_bytes())
    assert told == [], "; ".join(told)
