"""Health, readiness, adapters, workers, and what happens while Redis or Ollama are down."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from loco.box import redis_server
from loco.contracts.jobs import WorkerInfo
from loco.ledger.ledger import Ledger

pytestmark = pytest.mark.redis

TINY = {"adapter": "math", "profile": "tiny"}


@pytest.fixture
def http(live_api) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live_api.url, trust_env=False, timeout=30) as client:
        yield client


class OllamaVersion(BaseHTTPRequestHandler):
    """Answers what readiness asks of Ollama."""

    def do_GET(self) -> None:
        body = b'{"version": "0.99.0"}' if self.path == "/api/version" else b"{}"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Is quiet."""


def worker(queue: str) -> WorkerInfo:
    return WorkerInfo(
        id=f"{queue}-1", queue=queue, host="here", pid=1, device="cpu", seen_at=datetime.now(UTC)
    )


def test_ready_names_each_part_that_is_missing(http, ledger):
    answer = http.get("/readyz")
    ready = answer.json()
    assert (answer.status_code, ready["ready"], ready["status"]) == (200, True, "degraded")
    status = {name: check["status"] for name, check in ready["checks"].items()}
    assert status == {"redis": "ok", "ollama": "down", "worker_cpu": "down", "worker_gpu": "down"}
    assert "OLLAMA_HOST" in ready["checks"]["ollama"]["hint"]
    assert "train and export wait" in ready["checks"]["worker_gpu"]["message"]
    ledger.heartbeat(worker("cpu"))
    checks = http.get("/readyz").json()["checks"]
    assert (checks["worker_cpu"]["status"], checks["worker_gpu"]["status"]) == ("ok", "down")


def test_ready_is_ok_when_everything_answers(live_api, ledger):
    ollama = ThreadingHTTPServer(("127.0.0.1", 0), OllamaVersion)
    threading.Thread(target=ollama.serve_forever).start()
    live_api.stop()
    host = f"http://user:secret@127.0.0.1:{ollama.server_address[1]}"
    live_api.settings = live_api.settings.model_copy(update={"ollama_host": host})
    live_api.start()
    for queue in ("cpu", "gpu"):
        ledger.heartbeat(worker(queue))
    ready = httpx.get(f"{live_api.url}/readyz", trust_env=False).json()
    ollama.shutdown()
    ollama.server_close()
    assert (ready["ready"], ready["status"], ready["error"]) == (True, "ok", None)
    assert "0.99.0" in ready["checks"]["ollama"]["message"]
    down = httpx.get(f"{live_api.url}/readyz", trust_env=False).text
    assert '"degraded"' in down
    assert "secret" not in down


def test_workers_are_listed(http, ledger):
    ledger.heartbeat(worker("gpu"))
    (listed,) = http.get("/workers").json()["data"]
    assert (listed["id"], listed["queue"], listed["task_id"]) == ("gpu-1", "gpu", None)


def test_version_and_health(http):
    assert http.get("/healthz").json() == {"status": "ok"}
    assert http.get("/version").json()["name"] == "locollm"


def test_adapters_and_one_adapter(http, adapters_dir):
    listed = {entry["name"]: entry for entry in http.get("/adapters").json()["data"]}
    assert list(listed) == ["analysis", "code", "math"]
    math = listed["math"]
    assert (math["name"], math["base_model"]) == ("math", "qwen3-4b")
    assert math["profiles"] == ["default", "gold", "strong", "tiny"]
    detail = http.get("/adapters/math").json()
    assert detail["recipe"]["register"]["num_ctx"] == 2048
    assert detail["resolved"]["train"]["lora"]["r"] == 16
    assert detail["versions"] == []
    tiny = http.get("/adapters/math", params={"profile": "tiny"}).json()
    assert tiny["resolved"]["prepare"]["source"] == {"kind": "arithmetic"}
    assert http.get("/adapters/math", params={"profile": "x"}).json()["error"]["param"] == "profile"


@pytest.mark.parametrize("name", ["maths", "..", "%2e%2e", "math%2f..%2fmath", "math%00", "M"])
def test_unknown_and_hostile_adapter_names(http, name):
    answer = http.get(f"/adapters/{name}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] in ("unknown_adapter", "not_found")


def test_a_broken_recipe_is_shown_beside_the_others(http, adapters_dir):
    (adapters_dir / "broken").mkdir()
    (adapters_dir / "broken" / "adapter.yaml").write_text("name: [")
    listed = {a["name"]: a for a in http.get("/adapters").json()["data"]}
    assert listed["math"]["error"] is None
    assert listed["broken"]["error"]["code"] == "invalid_request"
    assert http.get("/adapters/broken").status_code == 422


def test_redis_down_is_said_and_nothing_accepted_is_lost(
    live_api, tmp_path, namespace, adapters_dir
):
    live_api.stop()
    folder = tmp_path / "redis"
    folder.mkdir()
    with httpx.Client(base_url=live_api.url, trust_env=False, timeout=30) as http:
        redis = redis_server.start(folder)
        live_api.settings = live_api.settings.model_copy(update={"redis_url": redis.url})
        live_api.start()
        key = {"Idempotency-Key": "k"}
        accepted = http.post("/jobs", json=TINY, headers=key).json()["id"]
        redis.process.kill()
        redis.process.wait()

        answer = http.get("/readyz")
        ready = answer.json()
        assert (answer.status_code, ready["ready"], ready["status"]) == (503, False, "down")
        assert ready["checks"]["redis"]["status"] == "down"
        assert ready["error"]["code"] == "redis_unavailable"
        assert http.get("/healthz").status_code == 200
        refused = http.post("/jobs", json=TINY, headers={"Idempotency-Key": "k2"})
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "redis_unavailable"
        assert refused.headers["Retry-After"]
        assert http.get(f"/jobs/{accepted}").status_code == 503
        stream = http.get(f"/jobs/{accepted}/events", headers={"Accept": "text/event-stream"})
        assert stream.status_code == 503

        redis = redis_server.start(folder)
        assert http.get("/readyz").status_code == 200
        assert http.post("/jobs", json=TINY, headers=key).json()["id"] == accepted
        later = http.post("/jobs", json=TINY, headers={"Idempotency-Key": "k2"}).json()["id"]
        ledger = Ledger.connect(redis.url, namespace=namespace)
        assert [job.id for job in ledger.jobs()[0]] == [later, accepted]
        ledger.close()
    live_api.stop()
    redis.stop()
