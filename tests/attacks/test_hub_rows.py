"""A hub data set whose rows name files of the server, or that fills its disk or memory.

Before: a row's `{"path": "/etc/…"}` in a column of pictures was opened while the rows were read, whether the
column was used or not; a data set of any size was fetched; a disk that ran full was `source_unreachable`.
"""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_hub import hub_of

pytestmark = [pytest.mark.redis, pytest.mark.slow]

GOOD = {"question": "How many?", "answer": "#### 3"}
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
MUCH = 10**9
_OPEN = """
import json, sys
from loco.contracts.errors import LocoError
from loco.contracts.sources import HuggingFaceSource
from loco.recipes import data_files
from loco_worker.sources import hub
for name, hub.LARGEST_FETCH, data_files.LARGEST_ROWS in json.loads(sys.argv[1]):
    try:
        table = hub.hub_table(HuggingFaceSource(kind="huggingface", dataset=name, config=None))
        said = {"rows": list(table.rows), "columns": table.columns}
    except LocoError as error:
        said = {"code": error.code, "message": error.message, "param": error.param, "hint": error.hint}
    print(json.dumps(said))
"""
Serve = Callable[[type[BaseHTTPRequestHandler]], str]


def opened(
    hub: str, home: Path, *asked: tuple[str, int, int], before: str = ""
) -> list[dict[str, Any]]:
    """What comes of data sets, in a process of its own: `datasets` reads its variables on import.

    Args:
        hub: its address.
        home: where it keeps what it fetches.
        asked: their names, and the bytes that may be fetched and read.
        before: a command that runs first, with mounts of its own.
    """
    program = [sys.executable, "-c", _OPEN, json.dumps(asked)]
    user = [] if os.getuid() == 0 else ["--map-root-user"]
    mounted = ["unshare", "--mount", *user, "sh", "-c", f'{before} && exec "$@"', "sh", *program]
    ended = subprocess.run(
        mounted if before else program,
        env={**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines()]


TEXT, IMAGE = ({"dtype": "string", "_type": "Value"}, {"_type": "Image"})


def parquet(row: dict[str, Any], kinds: dict[str, Any]) -> bytes:
    """A file of one row that says what its columns are, as the library writes it."""
    table = pa.Table.from_pylist([row], pa.schema([(n, _stored(k)) for n, k in kinds.items()]))
    said = {"huggingface": json.dumps({"info": {"features": kinds}})}
    out = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(said), out)
    return out.getvalue()


def _stored(kind: dict[str, Any]) -> pa.DataType:
    if kind == TEXT:
        return pa.string()
    if kind == IMAGE:
        return pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    if kind.get("_type") == "List":
        return pa.list_(_stored(kind["feature"]))
    return pa.struct([(name, _stored(inner)) for name, inner in kind.items()])


def test_no_file_that_a_row_names_is_opened(serve: Serve, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    os.mkfifo(secret)  # who opens it waits for ever
    picture = {"bytes": None, "path": str(secret)}
    kinds = {"question": TEXT, "answer": TEXT, "picture": IMAGE}
    beside = parquet({**GOOD, "picture": picture}, kinds)
    turns = [{**turn, "picture": picture} for turn in TURNS]
    turn = {"role": TEXT, "content": TEXT, "picture": IMAGE}
    within = parquet({"messages": turns}, {"messages": {"feature": turn, "_type": "List"}})
    instead = parquet({**GOOD, "question": picture}, {"question": IMAGE, "answer": TEXT})
    hub = serve(
        hub_of(
            {
                f"team/{name}": {"README.md": b"", "train.parquet": content}
                for name, content in (("beside", beside), ("within", within), ("instead", instead))
            }
        )
    )
    names = [(f"team/{name}", MUCH, MUCH) for name in ("beside", "within", "instead")]
    first, second, third = opened(hub, tmp_path / "hf", *names)
    assert first == {"rows": [GOOD], "columns": ["question", "answer", "picture"]}
    assert second["rows"] == [{"messages": turns}]
    assert third["rows"] == [{**GOOD, "question": picture}]


def test_a_data_set_has_a_size(serve: Serve, tmp_path: Path) -> None:
    files = {
        "README.md": b"",
        "train.jsonl": b"".join(json.dumps(GOOD).encode() + b"\n" for _ in range(90)),
    }
    hub = serve(hub_of({"team/sums": files}))
    size = len(files["train.jsonl"])
    asked = [("team/sums", *most) for most in ((size - 1, MUCH), (size, 1000), (size, MUCH))]
    fetched, read, taken = opened(hub, tmp_path / "hf", *asked)
    assert (fetched["code"], fetched["param"]) == ("invalid_request", "prepare.source.dataset")
    assert f"{size:,} bytes" in fetched["message"]
    assert (read["code"], read["param"]) == ("invalid_request", "prepare.source.split")
    assert "train[:" in read["hint"]
    assert len(taken["rows"]) == 90


@pytest.mark.skipif(sys.platform != "linux", reason="needs a disk of its own")
def test_a_disk_that_runs_full_is_said(serve: Serve, tmp_path: Path) -> None:
    row = json.dumps({**GOOD, "question": "How many? " * 1000}).encode() + b"\n"
    hub = serve(hub_of({"team/large": {"README.md": b"", "train.jsonl": row * 300}}))
    home = tmp_path / "hf"
    home.mkdir()
    for megabytes in (1, 5):  # while it is fetched, and while the library writes it again
        mount = f"mount -t tmpfs -o size={megabytes}m tmpfs {home}"
        found = opened(hub, home, ("team/large", MUCH, MUCH), before=mount)[0]
        assert found["code"] == "disk_full", found
        assert str(home) in found["message"]
