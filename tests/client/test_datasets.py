"""Pushing a file from elsewhere: once, in pieces, over lines that break and servers that start again."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from loco import Client
from loco.client import datasets
from loco.contracts.errors import Conflict, DataError, NotFound

pytestmark = pytest.mark.redis


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "units.csv"
    lines = [f"How far are {n} miles?;{n * 1.6:.1f} km" for n in range(4000)]
    path.write_text("\n".join(["Frage;Antwort", *lines]))
    return path


MAPPING = {"question": "Frage", "answer": "Antwort"}


@pytest.fixture
def client(live_api, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setattr(datasets, "_PIECE", 20_000)
    monkeypatch.setattr(datasets, "_PAUSE", 0.05)
    with Client(live_api.url) as client:
        yield client


def test_a_file_goes_up_once(client: Client, rows: Path) -> None:
    seen: list[tuple[int, int]] = []
    made = client.push(rows, mapping=MAPPING, on_progress=lambda *at: seen.append(at))
    size = rows.stat().st_size
    assert (made.name, made.rows, made.bytes, made.mapping) == ("units", 4000, size, MAPPING)
    assert seen[-1] == (size, size)
    assert len(seen) > 4
    assert client.push(rows, mapping=MAPPING).id == made.id
    assert [d.id for d in client.datasets(page_size=1)] == [made.id]
    assert client.dataset("units").first[0].messages[1]["content"] == "0.0 km"
    assert client.delete_dataset("units").id == made.id
    with pytest.raises(NotFound):
        client.dataset("units")


def test_bad_rows_are_named_and_may_be_left_out(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("question,answer\na,b\nc,\n")
    with pytest.raises(DataError, match="line 3: blank answer"):
        client.push(path)
    assert client.push(path, skip_bad=True).bad_rows == 1


def test_a_line_that_breaks_costs_no_more_than_a_piece(cable, client: Client, rows: Path) -> None:
    cable.cut_after = [3000, 500]  # bytes of answers: a few pieces, then one that is cut, too
    with Client(cable.url) as far:
        made = far.push(rows, mapping=MAPPING)
    assert made.rows == 4000
    assert any("HEAD /datasets/" in head for head in cable.heads)


def test_a_server_that_starts_again_goes_on(live_api, client: Client, rows: Path) -> None:
    restarted = threading.Event()

    def restart(sent: int, _: int) -> None:
        if sent and not restarted.is_set():
            restarted.set()
            live_api.stop()
            thread = threading.Thread(target=lambda: (time.sleep(0.3), live_api.start()))
            thread.start()

    assert client.push(rows, mapping=MAPPING, on_progress=restart).rows == 4000
    assert restarted.is_set()


def test_a_job_reads_what_it_named_and_keeps_it(
    client: Client, rows: Path, adapters_dir: Path
) -> None:
    made = client.push(rows, mapping=MAPPING)
    source = {"kind": "dataset", "dataset": "units"}
    job = client.submit("math", profile="tiny", prepare={"source": source})
    settled = job.spec.prepare.source
    assert settled.model_dump() == source | {
        "dataset": made.id,
        "mapping": MAPPING,
        "format": "csv",
    }
    frozen = job.spec.inputs[f"{made.id}.csv"]
    assert frozen.sha256 == made.sha256
    with pytest.raises(Conflict, match=job.id):
        client.delete_dataset(made.id)
    assert client.cancel(job.id).is_terminal
    assert client.delete_dataset(made.id).id == made.id
    assert (adapters_dir / frozen.path).read_bytes() == rows.read_bytes()
    assert client.replay(job.id).spec.prepare.source == settled
