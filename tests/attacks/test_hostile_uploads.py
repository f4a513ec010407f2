"""Uploads that lie, never end, unpack to more than there is, or are another's.

Before there were data sets, rows came to a server by whoever had an account on it.
"""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from loco.contracts.datasets import Inspected
from loco.contracts.disk import free_bytes
from loco.contracts.errors import DataError
from loco.contracts.keys import Scope
from loco.datasets.store import STORE, DataSets
from loco.datasets.uploads import Part
from loco_api import inspection_child
from loco_api.inspection import inspect

pytestmark = pytest.mark.redis

ROW = b'{"question": "How far is a mile?", "answer": "1.6 km"}\n'
MORE = {"Upload-Complete": "?0"}


@pytest.fixture
def live_settings(live_settings):
    return live_settings.model_copy(
        update={"dataset_mb": 1, "datasets_mb": 2, "datasets": 4, "submits_per_minute": 1000}
    )


@pytest.fixture
def http(live_api) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live_api.url, trust_env=False, timeout=60) as client:
        yield client


def push(client: httpx.Client, content: bytes = ROW, **query: Any) -> httpx.Response:
    return client.post("/datasets", content=content, params=query)


def begin(client: httpx.Client, length: int | None = None, **query: Any) -> httpx.Response:
    headers = MORE | ({} if length is None else {"Upload-Length": str(length)})
    return client.post("/datasets", content=b"", headers=headers, params=query)


def code(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["code"])


def stored(adapters_dir: Path) -> list[Path]:
    """Everything the store holds but its lock."""
    root = adapters_dir / STORE
    return [p for p in root.rglob("*") if p.is_file() and p.name != "lock"]


def test_too_much_is_refused_at_the_head_and_where_nothing_was_said_at_the_limit(
    http, adapters_dir: Path
):
    told = http.post("/datasets", content=ROW, headers={"Upload-Length": str(2**30)})
    assert (told.status_code, code(told)) == (422, "invalid_request"), "two lengths"
    assert code(begin(http, 2**30)) == "body_too_large"

    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield b"x" * 2**16

    with suppress(httpx.WriteError):  # the server hung up before all was sent: refused as well
        assert code(http.post("/datasets", content=endless())) == "body_too_large"
    deadline = time.monotonic() + 30
    while stored(adapters_dir):  # nothing of it is kept
        assert time.monotonic() < deadline, stored(adapters_dir)
        time.sleep(0.05)


def test_wrong_claims_about_offset_and_size_change_nothing(http):
    made = begin(http, len(ROW) * 2)
    place = made.headers["Location"]

    def patch(offset: int, content: bytes, complete: str = "?0") -> httpx.Response:
        headers = {"Upload-Offset": str(offset), "Upload-Complete": complete}
        return http.patch(place, content=content, headers=headers)

    assert patch(0, ROW).headers["Upload-Offset"] == str(len(ROW))
    for offset in (0, len(ROW) - 1, len(ROW) + 1, 2**40):
        told = patch(offset, ROW)
        assert (told.status_code, code(told)) == (409, "conflict")
        assert told.headers["Upload-Offset"] == str(len(ROW))
    assert patch(-1, ROW).status_code == 422
    assert patch(len(ROW), b"", "?1").status_code == 409, "bytes are missing"
    assert patch(len(ROW), ROW * 2, "?1").status_code == 413, "more than announced"
    head = http.head(place)
    assert (head.headers["Upload-Offset"], head.headers["Upload-Complete"]) == (
        str(len(ROW)),
        "?0",
    )
    ended = patch(len(ROW), ROW.replace(b"mile", b"foot"), "?1").json()
    assert (ended["status"], ended["rows"]) == ("ready", 2)
    assert patch(2 * len(ROW), ROW).status_code == 409, "it has ended"


def test_a_content_that_is_not_the_announced_one_is_not_kept(http, adapters_dir: Path):
    digest = "sha-256=:RBNvdxiA5zg0H3p7rlLEjsXW0jdW3JyWQTzb0kyqTvo=:"
    told = http.post("/datasets", content=ROW, headers={"Repr-Digest": digest})
    assert code(told) == "bad_data"
    assert "SHA-256" in told.json()["error"]["message"]
    assert stored(adapters_dir) == []


def test_of_two_who_add_at_once_one_is_told_to_wait(
    http, live_api, monkeypatch: pytest.MonkeyPatch
):
    place = begin(http, len(ROW) * 2).headers["Location"]
    begun, go_on = threading.Event(), threading.Event()
    writing = DataSets.writing

    @contextmanager
    def told_of(sets: DataSets, *asked: str | None) -> Iterator[Part]:
        with writing(sets, *asked) as part:
            begun.set()
            yield part

    def slowly() -> Iterator[bytes]:
        yield ROW
        assert go_on.wait(60)
        yield ROW.replace(b"mile", b"foot")

    monkeypatch.setattr(DataSets, "writing", told_of)
    first = {"Upload-Offset": "0", "Upload-Complete": "?1"}
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(
            httpx.patch, live_api.url + place, content=slowly(), headers=first, timeout=60
        )
        assert begun.wait(60)
        told = http.patch(place, content=b"", headers={"Upload-Offset": "0", **MORE})
        assert told.status_code == 409
        assert "Another request" in told.text
        assert http.delete(place).status_code == 409
        go_on.set()
        assert running.result().json()["rows"] == 2


@pytest.mark.parametrize(
    "name",
    ["../x", "..", "/etc/passwd", ".hidden", "a/b", "a\0b", "", "-rf", "ds-0123456789abcdef"],
)
def test_a_name_like_a_path_is_no_name(http, name: str, adapters_dir: Path):
    assert push(http, name=name).status_code == 422
    assert stored(adapters_dir) == []


@pytest.mark.parametrize("name", ["..%2f..%2fadapter", "%2e%2e", "*", "ds-*", "open"])
def test_an_id_like_a_path_or_pattern_finds_nothing(http, name: str):
    push(http, name="units")
    for method in ("GET", "HEAD", "DELETE"):
        assert http.request(method, f"/datasets/{name}").status_code == 404
    assert len(http.get("/datasets").json()["data"]) == 1


def test_a_packed_file_that_unpacks_to_gigabytes_ends_its_reader_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet  # noqa: PLC0415

    bomb = tmp_path / "bomb.parquet"
    text = pyarrow.array(["x" * 2**20])
    repeated = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 20_000), text)
    parquet.write_table(pyarrow.table({"question": repeated, "answer": repeated}), bomb)
    assert bomb.stat().st_size < 2**20, "20 GB in it"
    with pytest.raises(DataError, match=r"unpack|too much memory"):
        inspect(bomb, None, {})


def test_a_reader_that_takes_too_much_memory_is_an_error_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = tmp_path / "rows.jsonl"
    source.write_bytes(ROW)
    assert isinstance(inspect(source, None, {}), Inspected)
    script = tmp_path / "hungry.py"
    script.write_text("import sys; sys.exit(1)")
    monkeypatch.setattr(inspection_child, "__name__", "no.such.module")
    with pytest.raises(DataError, match="too much memory or time"):
        inspect(source, None, {})


def test_thirty_thousand_bad_lines_are_counted_and_twenty_named(http, adapters_dir: Path):
    content = ROW + b"{}\n" * 30_000
    told = push(http, content, name="units")
    assert (told.status_code, code(told)) == (422, "bad_data")
    message = told.json()["error"]["message"]
    assert "30,000 of 30,001 rows of units cannot be used" in message
    assert "line 2: " in message
    assert "29,980 more" in message
    assert len(message) < 10_000
    assert stored(adapters_dir) == []


def test_quotas_hold_against_many_at_once(login, live_api):
    anna = login("anna")

    def one(_: int) -> httpx.Response:
        with httpx.Client(
            base_url=live_api.url, trust_env=False, timeout=60, headers=anna.headers
        ) as client:
            return begin(client, 2**19)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(one, range(8)))
    assert [a.status_code for a in answers].count(201) == 4, "half a megabyte each of two"
    refused = next(a for a in answers if a.status_code != 201)
    assert (refused.status_code, code(refused)) == (403, "quota_exceeded")
    assert "loco data rm" in refused.json()["error"]["hint"]
    assert begin(login("ben"), 2**19).status_code == 201, "another has their own"
    for entry in anna.get("/datasets").json()["data"]:
        assert anna.delete(f"/datasets/{entry['id']}").status_code == 200
    for n in range(4):
        assert push(anna, ROW.replace(b"mile", b"%d" % n), name="units").status_code == 201
    assert code(push(anna, name="units")) == "quota_exceeded", "four are allowed"


def test_what_does_not_fit_the_disk_is_refused_before_it_is_sent(
    http, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("loco.datasets.store.free_bytes", lambda folder: 2**26)
    assert free_bytes(Path("/")) > 0
    told = begin(http, 2**19)
    assert (told.status_code, code(told)) == (507, "disk_full")


def test_another_owners_data_set_is_none(login):
    anna, ben, root = login("anna"), login("ben"), login("root", Scope.ADMIN)
    made = push(anna, name="units").json()
    assert ben.get("/datasets").json()["data"] == []
    for name in (made["id"], "units"):
        assert anna.get(f"/datasets/{name}").status_code == 200
        for method in ("GET", "HEAD", "DELETE"):
            assert ben.request(method, f"/datasets/{name}").status_code == 404
        job = {"adapter": "math", "profile": "tiny", "prepare": {"examples": 1}}
        job["prepare"]["source"] = {"kind": "dataset", "dataset": name}
        told = ben.post("/jobs", json=job)
        assert (told.status_code, told.json()["error"]["param"]) == (
            404,
            "prepare.source.dataset",
        )
    unfinished = begin(anna, 100).headers["Location"]
    told = ben.patch(unfinished, content=ROW, headers={"Upload-Offset": "0", **MORE})
    assert told.status_code == 404
    assert push(login("looker", Scope.READ), name="units").status_code == 403
    # the same content is stored once, and stays for the one when the other deletes theirs
    assert push(ben, name="mine").status_code == 201
    assert anna.delete("/datasets/units").status_code == 200
    assert (
        ben.post(
            "/jobs",
            json=job
            | {"prepare": {**job["prepare"], "source": {"kind": "dataset", "dataset": "mine"}}},
        ).status_code
        == 202
    )
    assert [d["owner"] for d in root.get("/datasets").json()["data"]].count("ben") == 1


def test_a_broken_record_hides_itself_alone(http, adapters_dir: Path):
    made = push(http, name="units").json()
    (adapters_dir / STORE / "ready" / "ds-0000000000000000.json").write_text('{"id": 3}')
    (adapters_dir / STORE / "open" / "ds-0000000000000001.json").write_text("no JSON")
    assert [d["id"] for d in http.get("/datasets").json()["data"]] == [made["id"]]
    assert json.loads(http.get(f"/datasets/{made['id']}").text)["rows"] == 1


def test_another_owners_rows_come_out_of_no_job(login):
    """Before: any key read them as an input of the job that reads them, or of a replay of its own."""
    anna, ben, root = login("anna"), login("ben"), login("root", Scope.ADMIN)
    rows = push(anna, name="mine").json()["id"]
    source = {"kind": "dataset", "dataset": rows}
    job = anna.post(
        "/jobs", json={"adapter": "math", "profile": "tiny", "prepare": {"source": source}}
    ).json()
    place = f"/jobs/{job['id']}/artifacts"
    (name,) = (name for name in job["spec"]["inputs"] if rows in name)
    for path in (f"inputs/{name}", name):
        for method in ("GET", "HEAD"):
            assert ben.request(method, f"{place}/{path}").status_code == 404
        digest = {"If-None-Match": "*"}
        assert ben.get(f"{place}/{path}", headers=digest).status_code == 404
        assert anna.get(f"{place}/{path}").content == root.get(f"{place}/{path}").content == ROW
    assert rows not in ben.get(place).text
    assert rows in anna.get(place).text
    assert ben.get(f"{place}/inputs/adapter.yaml").status_code == 200, "the rest is everybody's"
    told = ben.post(f"/jobs/{job['id']}/replay")
    assert (told.status_code, told.json()["error"]["param"]) == (404, "job_id")
    for able in (anna, root):
        assert able.post(f"/jobs/{job['id']}/replay").status_code == 202


def test_nobodys_newer_upload_takes_the_place_of_an_admins(login):
    """Before: an admin's `units` was the newest `units` of anybody."""
    ben, root = login("ben"), login("root", Scope.ADMIN)
    mine = push(root, name="units").json()["id"]
    other = push(ben, ROW.replace(b"1.6", b"99"), name="units").json()["id"]
    only_ben = push(ben, ROW.replace(b"1.6", b"98"), name="his").json()["id"]
    assert root.get("/datasets/units").json()["id"] == mine
    source = {"kind": "dataset", "dataset": "units"}
    job = {"adapter": "math", "profile": "tiny", "prepare": {"source": source}}
    told = root.post("/jobs", json=job).json()
    assert told["spec"]["prepare"]["source"]["dataset"] == mine
    recipe = "name: miles\nbase_model: smollm2-135m-instruct\nmodel_name: locollm-miles\n"
    recipe += (
        "prepare: {source: {kind: jsonl, path: rows.jsonl}, examples: 1}\nprofiles: {tiny: {}}\n"
    )
    put = {"recipe": recipe, "files": {"rows.jsonl": "his"}}
    refused = root.put("/adapters/miles", json=put)
    assert (refused.status_code, code(refused)) == (404, "not_found"), refused.text
    assert root.delete("/datasets/his").status_code == 404
    assert root.get(f"/datasets/{other}").json()["owner"] == "ben", "by ID"
    assert root.delete(f"/datasets/{only_ben}").status_code == 200
