"""Artifacts over HTTP: whole, by range, by condition, and hostile paths."""

import hashlib
import os
from collections.abc import Iterator

import httpx
import pytest

from loco.contracts.stages import Stage
from loco_api import artifacts

pytestmark = pytest.mark.redis

CONTENT = bytes(range(256)) * 4000  # 1,024,000 bytes: several chunks
SHA = hashlib.sha256(CONTENT).hexdigest()
NAME = "gguf/unsloth.Q4_K_M.gguf"


@pytest.fixture
def http_client(live_api) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live_api.url, trust_env=False) as client:
        yield client


@pytest.fixture
def job_id(http_client, hands) -> str:
    """A job whose prepare stage has committed two files."""
    answer = http_client.post("/jobs", json={"adapter": "math", "profile": "tiny"})
    files = {NAME: CONTENT, "empty.jsonl": b""}
    hands.commit(hands.claim(Stage.PREPARE), {}, files)
    return str(answer.json()["id"])


@pytest.fixture
def url(job_id) -> str:
    return f"/jobs/{job_id}/artifacts/prepare/{NAME}"


def test_the_list_names_size_and_digest(http_client, job_id):
    listed = http_client.get(f"/jobs/{job_id}/artifacts").json()
    prepared = [a for a in listed["data"] if a["stage"] == "prepare"]
    assert [a["name"] for a in prepared] == [NAME, "empty.jsonl"]
    assert (prepared[0]["size"], prepared[0]["sha256"]) == (len(CONTENT), SHA)


def test_the_frozen_inputs_are_artifacts_from_the_start(http_client, adapters_dir):
    recipe = adapters_dir / "math" / "adapter.yaml"
    before = recipe.read_bytes()
    job = http_client.post("/jobs", json={"adapter": "math", "profile": "tiny"}).json()
    recipe.write_bytes(b"edited")
    listed = http_client.get(f"/jobs/{job['id']}/artifacts").json()["data"]
    assert {"adapter.yaml", "eval_dataset.jsonl"} <= {a["name"] for a in listed}
    assert all(a["stage"] is None for a in listed)
    sha = hashlib.sha256(before).hexdigest()
    assert job["spec"]["inputs"]["adapter.yaml"]["sha256"] == sha
    for path in ("inputs/adapter.yaml", "adapter.yaml"):
        answer = http_client.get(f"/jobs/{job['id']}/artifacts/{path}")
        assert (answer.status_code, answer.content) == (200, before)
        assert answer.headers["ETag"] == f'"{sha}"'
        assert answer.headers["Content-Disposition"] == 'attachment; filename="adapter.yaml"'
    part = http_client.get(
        f"/jobs/{job['id']}/artifacts/inputs/adapter.yaml", headers={"Range": "bytes=0-9"}
    )
    assert (part.status_code, part.content) == (206, before[:10])
    for path in ("inputs", "inputs/", "inputs/x", "inputs/base_models.yaml"):
        assert http_client.get(f"/jobs/{job['id']}/artifacts/{path}").status_code == 404


def test_an_input_that_was_changed_is_refused(http_client, adapters_dir):
    job = http_client.post("/jobs", json={"adapter": "math", "profile": "tiny"}).json()
    copy = adapters_dir / job["spec"]["inputs"]["adapter.yaml"]["path"]
    copy.chmod(0o644)
    copy.write_bytes(copy.read_bytes()[::-1])
    error = http_client.get(f"/jobs/{job['id']}/artifacts/inputs/adapter.yaml").json()["error"]
    assert error["code"] == "artifact_changed"
    assert "changed after the job was accepted" in error["message"]
    assert "Submit the job again" in error["hint"]


def test_an_input_that_leads_outside_the_folder_is_not_followed(http_client, adapters_dir):
    job = http_client.post("/jobs", json={"adapter": "math", "profile": "tiny"}).json()
    copy = adapters_dir / job["spec"]["inputs"]["adapter.yaml"]["path"]
    secret = adapters_dir.parent / "secret"
    secret.write_bytes(copy.read_bytes())
    copy.unlink()
    copy.symlink_to(secret)
    url = f"/jobs/{job['id']}/artifacts/inputs/adapter.yaml"
    assert http_client.get(url).status_code == 404


def test_a_whole_file(http_client, url, job_id):
    answer = http_client.get(url)
    assert answer.status_code == 200
    assert answer.content == CONTENT
    assert answer.headers["ETag"] == f'"{SHA}"'
    assert answer.headers["Content-Length"] == str(len(CONTENT))
    assert answer.headers["Content-Type"] == "application/vnd.gguf"
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert answer.headers["Content-Disposition"] == 'attachment; filename="unsloth.Q4_K_M.gguf"'
    assert http_client.get(f"/jobs/{job_id}/artifacts/{NAME}").content == CONTENT
    assert http_client.get(f"/jobs/{job_id}/artifacts/empty.jsonl").content == b""


def test_head_has_the_headers_and_no_body(http_client, url):
    answer = http_client.head(url)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["Content-Length"] == str(len(CONTENT))
    assert answer.headers["ETag"] == f'"{SHA}"'
    part = http_client.head(url, headers={"Range": "bytes=0-9"})
    assert (part.status_code, part.headers["Content-Length"]) == (206, "10")


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=300000-700000", 300_000, 700_001),
        ("bytes=1023990-", 1_023_990, 1_024_000),
        ("bytes=-10", 1_023_990, 1_024_000),
        ("bytes=-1", 1_023_999, 1_024_000),
        ("bytes=-9999999", 0, 1_024_000),
        ("bytes=1023990-9999999", 1_023_990, 1_024_000),
        ("bytes= 5-6", 5, 7),
    ],
)
def test_a_range(http_client, url, asked, start, stop):
    answer = http_client.get(url, headers={"Range": asked})
    assert answer.status_code == 206
    assert answer.content == CONTENT[start:stop]
    assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(CONTENT)}"
    assert answer.headers["Content-Length"] == str(stop - start)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("asked", ["1024000-", "1024000-1024100", "-0", "9" * 30 + "-"])
def test_a_range_outside_the_file(http_client, url, method, asked):
    answer = http_client.request(method, url, headers={"Range": f"bytes={asked}"})
    assert answer.status_code == 416
    assert answer.headers["Content-Range"] == f"bytes */{len(CONTENT)}"
    assert answer.headers["Content-Type"] == "application/json"
    if method == "GET":
        error = answer.json()["error"]
        assert (error["code"], error["param"]) == ("range_not_satisfiable", "Range")
        assert f"{len(CONTENT)} bytes" in error["message"]


@pytest.mark.parametrize("asked", ["bytes=0-", "bytes=-5", "bytes=0-0"])
def test_an_empty_file_has_no_range(http_client, job_id, asked):
    empty = f"/jobs/{job_id}/artifacts/empty.jsonl"
    answer = http_client.get(empty, headers={"Range": asked})
    assert (answer.status_code, answer.headers["Content-Range"]) == (416, "bytes */0")
    assert answer.json()["error"]["code"] == "range_not_satisfiable"


@pytest.mark.parametrize(
    "asked",
    [
        b"",
        b"bytes",
        b"bytes=",
        b"bytes=-",
        b"bytes=5-1",
        b"bytes=a-b",
        b"bytes=0-1,5-6",
        b"bytes=0x1-2",
        b"bytes=1-\xb2",
        b"lines=1-2",
        b"nonsense",
        b"bytes=1_0-2_0",
        b"bytes=+1-5",
        b"bytes=--5",
        b"bytes=-+5",
    ],
)
def test_what_is_no_single_range_gets_the_whole_file(http_client, url, asked):
    answer = http_client.get(url, headers={b"Range": asked})
    assert (answer.status_code, answer.content) == (200, CONTENT)
    assert answer.headers["ETag"] == f'"{SHA}"'


def test_if_range_serves_the_range_only_of_the_same_file(http_client, url):
    same = http_client.get(url, headers={"Range": "bytes=0-9", "If-Range": f'"{SHA}"'})
    assert (same.status_code, same.content) == (206, CONTENT[:10])
    other = http_client.get(url, headers={"Range": "bytes=0-9", "If-Range": '"other"'})
    assert (other.status_code, other.content) == (200, CONTENT)


@pytest.mark.parametrize("tags", [f'"{SHA}"', f'"x", W/"{SHA}"', "*"])
def test_if_none_match_saves_the_download(http_client, url, tags):
    answer = http_client.get(url, headers={"If-None-Match": tags, "Range": "bytes=0-9"})
    assert (answer.status_code, answer.content) == (304, b"")
    assert answer.headers["ETag"] == f'"{SHA}"'
    assert http_client.get(url, headers={"If-None-Match": '"x"'}).status_code == 200


@pytest.mark.parametrize("content", [b"short", b"\xff" + CONTENT[1:]])  # and one of the same size
@pytest.mark.parametrize("asked", [{}, {"Range": "bytes=0-9"}])
def test_a_file_that_was_changed_is_refused(http_client, url, adapters_dir, content, asked):
    assert http_client.get(url, headers=asked).status_code in (200, 206)
    (path,) = adapters_dir.glob(f"math/runs/*/prepare/*/{NAME}")
    times = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    answer = http_client.get(url, headers=asked)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (409, "artifact_changed")
    assert SHA in error["message"]
    assert hashlib.sha256(content).hexdigest() in error["message"]
    assert "Run stage prepare again" in error["hint"]
    assert http_client.head(url).status_code == 409


def test_a_file_that_was_deleted_is_said_to_be_gone(http_client, url, adapters_dir):
    (path,) = adapters_dir.glob(f"math/runs/*/prepare/*/{NAME}")
    path.unlink()
    answer = http_client.get(url)
    assert answer.status_code == 404
    assert "no longer" in answer.json()["error"]["message"]


@pytest.mark.parametrize("asked", [{}, {"Range": "bytes=0-9"}])
def test_a_file_that_is_deleted_meanwhile_is_said_to_be_gone(
    http_client, url, monkeypatch, adapters_dir, asked
):
    look = artifacts._place

    def look_and_lose(*arguments):
        found = look(*arguments)
        (path,) = adapters_dir.glob(f"math/runs/*/prepare/*/{NAME}")
        path.unlink()
        return found

    monkeypatch.setattr(artifacts, "_place", look_and_lose)
    answer = http_client.get(url, headers=asked)
    assert answer.status_code == 404
    assert "no longer" in answer.json()["error"]["message"]


def test_a_ledger_entry_that_leads_outside_is_not_followed(http_client, url, adapters_dir):
    (path,) = adapters_dir.glob(f"math/runs/*/prepare/*/{NAME}")
    secret = adapters_dir.parent / "secret"
    secret.write_bytes(CONTENT)
    path.unlink()
    path.symlink_to(secret)
    assert http_client.get(url).status_code == 404
