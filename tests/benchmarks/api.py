"""How fast the API takes and shows jobs, and how soon a stage starts.

    .venv/bin/python tests/benchmarks/api.py [--requests 500] [--starts 8]

Everything real, on this machine: a Redis server with production flags (append-only file, synced
before every answer), the API process, the CPU worker process. Beside it, as yardsticks on the same
machine with the same client: a bare FastAPI route in a process of its own, and raw Redis round trips.
Figures are wall-clock; the client is plain `http.client`, one kept-alive connection a thread.
"""

import argparse
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import redis

from loco.box import redis_server

ROOT = Path(__file__).resolve().parents[2]
JOB = {"adapter": "math", "profile": "tiny"}
CONCURRENCY = (1, 8)


@dataclass(frozen=True)
class Figures:
    """One measurement: latencies in seconds, sorted, and the wall-clock seconds of all."""

    name: str
    concurrency: int
    latencies: list[float]
    wall: float

    @property
    def rate(self) -> float:
        """Calls a second."""
        return len(self.latencies) / self.wall

    def percentile(self, part: float) -> float:
        """Latency in seconds that this part of the calls stayed within (nearest rank)."""
        return self.latencies[max(0, math.ceil(part * len(self.latencies)) - 1)]


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=500, help="calls of each measurement")
    parser.add_argument("--starts", type=int, default=8, help="jobs whose start is timed")
    parser.add_argument("--bare", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare:
        serve_bare(arguments.bare)
        return
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="loco-bench-")))
        server = redis_server.start(folder / "redis")
        stack.callback(server.stop)
        run(stack, folder, server.url, arguments.requests, arguments.starts)


def run(stack: ExitStack, folder: Path, redis_url: str, count: int, starts: int) -> None:
    """All measurements, each server started when it is needed."""
    bare = stack.enter_context(bare_process(folder))
    api = stack.enter_context(api_process(folder, redis_url, "bench"))
    document = call(api, "POST", "/jobs", JOB)
    poll = f"/jobs/{document['id']}"
    put(bare, document)
    rows = []
    for concurrency in CONCURRENCY:
        base_post = measure("bare POST", bare, concurrency, count, ("POST", "/bare", JOB))
        submit = measure("POST /jobs", api, concurrency, count, ("POST", "/jobs", JOB))
        base_get = measure("bare GET", bare, concurrency, count, ("GET", "/bare", None))
        job = measure("GET /jobs/{id}", api, concurrency, count, ("GET", poll, None))
        read = measure_redis("Redis PING", redis_url, concurrency, count, lambda c: c.ping())
        write = measure_redis(
            "Redis SET, synced", redis_url, concurrency, count, lambda c: c.set("bench", "x" * 2000)
        )
        rows += [(base_post, None, None), (submit, base_post, write)]
        rows += [(base_get, None, None), (job, base_get, read)]
        rows += [(write, None, None), (read, None, None)]
    print_table(rows)
    print_starts(start_delays(stack, folder, redis_url, starts))


def measure(
    name: str, port: int, concurrency: int, count: int, request: tuple[str, str, Any]
) -> Figures:
    """Sends a request `count` times over `concurrency` connections."""

    def connect() -> Callable[[], object]:
        connection = HTTPConnection("127.0.0.1", port, timeout=30)
        return lambda: exchange(connection, *request)

    return timed(name, connect, concurrency, count)


def measure_redis(
    name: str, url: str, concurrency: int, count: int, command: Callable[["redis.Redis"], object]
) -> Figures:
    """Sends one Redis command `count` times over `concurrency` connections."""

    def connect() -> Callable[[], object]:
        client = redis.Redis.from_url(url, single_connection_client=True)
        return lambda: command(client)

    return timed(name, connect, concurrency, count)


def timed(
    name: str, connect: Callable[[], Callable[[], object]], concurrency: int, count: int
) -> Figures:
    """Times calls from several threads, after ten calls each that do not count."""
    latencies: list[float] = []
    ready = threading.Barrier(concurrency + 1)
    share = count // concurrency

    def work() -> None:
        once = connect()
        for _ in range(10):
            once()
        ready.wait()
        mine = []
        for _ in range(share):
            started = time.perf_counter()
            once()
            mine.append(time.perf_counter() - started)
        latencies.extend(mine)

    threads = [threading.Thread(target=work) for _ in range(concurrency)]
    for thread in threads:
        thread.start()
    ready.wait()
    started = time.perf_counter()
    for thread in threads:
        thread.join()
    wall = time.perf_counter() - started
    assert len(latencies) == share * concurrency, "a thread failed"
    return Figures(name, concurrency, sorted(latencies), wall)


def start_delays(stack: ExitStack, folder: Path, redis_url: str, count: int) -> list[float]:
    """Seconds from `job.submitted` to `stage.running`, by Redis's clock, of an idle worker."""
    namespace = "bench-starts"
    api = stack.enter_context(api_process(folder, redis_url, namespace))
    environment = settings(folder, redis_url, namespace, free_port())
    stack.enter_context(process(["-m", "loco_worker"], environment, folder / "worker.log"))
    wait_for(lambda: call(api, "GET", "/readyz")["checks"]["worker_cpu"]["status"] == "ok")
    delays = []
    for seed in range(count):
        job = call(api, "POST", "/jobs", {**JOB, "stages": ["prepare"], "seed": seed})
        path = f"/jobs/{job['id']}"
        wait_for(lambda path=path: call(api, "GET", path)["is_terminal"])
        events = call(api, "GET", f"{path}/events")["data"]
        at = {event["type"]: datetime.fromisoformat(event["at"]) for event in reversed(events)}
        assert "job.succeeded" in at, events[-1]
        delays.append((at["stage.running"] - at["job.submitted"]).total_seconds())
    return sorted(delays)


def print_table(rows: list[tuple[Figures, Figures | None, Figures | None]]) -> None:
    """One line a measurement; ratios are of median latencies."""
    print(
        f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, load {os.getloadavg()[0]:.1f}\n"
    )
    print(f"{'':20} {'conc.':>5} {'n':>5} {'per s':>8} {'p50 ms':>8} {'p99 ms':>8}  ratio of p50")
    for figures, bare, raw in rows:
        ratios = [
            f"{figures.percentile(0.5) / other.percentile(0.5):.1f} x {other.name}"
            for other in (bare, raw)
            if other
        ]
        print(
            f"{figures.name:20} {figures.concurrency:5} {len(figures.latencies):5}"
            f" {figures.rate:8.0f} {figures.percentile(0.5) * 1000:8.2f}"
            f" {figures.percentile(0.99) * 1000:8.2f}  {', '.join(ratios)}"
        )


def print_starts(delays: list[float]) -> None:
    """The delays in milliseconds."""
    middle = delays[len(delays) // 2]
    print(
        f"\nsubmit to stage start, idle worker, {len(delays)} jobs: median {middle * 1000:.0f} ms,"
        f" least {delays[0] * 1000:.0f} ms, most {delays[-1] * 1000:.0f} ms"
    )


# The processes


def serve_bare(port: int) -> None:
    """The yardstick: FastAPI and uvicorn as the API runs them, with nothing behind the route."""
    import uvicorn  # noqa: PLC0415 (the bench itself does not need it)
    from fastapi import FastAPI, Response  # noqa: PLC0415

    app = FastAPI()
    answer = b"{}"

    @app.put("/bare")
    def learn(body: dict[str, Any]) -> None:
        nonlocal answer
        answer = json.dumps(body).encode()

    @app.post("/bare", status_code=202)
    def post(body: dict[str, Any]) -> Response:
        return Response(answer, 202, media_type="application/json")

    @app.get("/bare")
    def get() -> Response:
        return Response(answer, media_type="application/json")

    uvicorn.run(app, port=port, server_header=False)


@contextmanager
def bare_process(folder: Path) -> Iterator[int]:
    """The yardstick's process; gives its port."""
    port = free_port()
    with process([str(Path(__file__)), "--bare", str(port)], dict(os.environ), folder / "bare.log"):
        wait_for(lambda: call(port, "GET", "/openapi.json"))
        yield port


@contextmanager
def api_process(folder: Path, redis_url: str, namespace: str) -> Iterator[int]:
    """The API's process; gives its port."""
    port = free_port()
    environment = settings(folder, redis_url, namespace, port)
    with process(["-m", "loco_api"], environment, folder / f"api-{namespace}.log"):
        wait_for(lambda: call(port, "GET", "/healthz"))
        yield port


@contextmanager
def process(arguments: list[str], environment: dict[str, str], log: Path) -> Iterator[None]:
    """A Python process that is stopped at the end; its log is shown when the body fails."""
    with log.open("wb") as file:
        child = subprocess.Popen(
            [sys.executable, *arguments], env=environment, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        yield
    except BaseException:
        sys.stderr.write(f"--- {log.name}\n{log.read_text()[-3000:]}\n")
        raise
    finally:
        child.terminate()
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def settings(folder: Path, redis_url: str, namespace: str, port: int) -> dict[str, str]:
    """The environment of a service of the benchmark."""
    adapters = folder / "adapters"
    if not adapters.exists():
        for path in (
            "base_models.yaml", "math/adapter.yaml", "math/eval_dataset.jsonl"
        ):  # fmt: skip
            target = adapters / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / "adapters" / path, target)
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith("LOCO_")},
        "LOCO_REDIS_URL": redis_url,
        "LOCO_NAMESPACE": namespace,
        "LOCO_PORT": str(port),
        "LOCO_ADAPTERS_DIR": str(adapters),
        "LOCO_DATA_DIR": str(folder / "data"),
    }


# The client


def put(port: int, document: dict[str, Any]) -> None:
    """Tells the yardstick to answer with a document as large as the API's."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    exchange(connection, "PUT", "/bare", document)
    connection.close()


def call(port: int, method: str, path: str, body: Any = None) -> Any:
    """One request on a connection of its own; the decoded answer."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        return json.loads(exchange(connection, method, path, body))
    finally:
        connection.close()


def exchange(connection: HTTPConnection, method: str, path: str, body: Any) -> bytes:
    """One request; fails unless the answer is a 2xx."""
    content = None if body is None else json.dumps(body)
    headers = {} if body is None else {"Content-Type": "application/json"}
    connection.request(method, path, content, headers)
    response = connection.getresponse()
    answer = response.read()
    assert 200 <= response.status < 300, answer
    return answer


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    """Waits until a condition is true; a refused connection counts as not yet."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except (TimeoutError, ConnectionError):
            pass
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing after {seconds:g} s")
        time.sleep(0.05)


def free_port() -> int:
    """A TCP port nobody listens on right now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
