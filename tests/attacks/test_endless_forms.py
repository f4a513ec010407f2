"""A form whose parts never end, and a key that takes every place to Ollama."""

import asyncio

import pytest
from fastapi import Request

from loco.contracts.errors import Busy, InvalidRequest
from loco_api.openai_api import upstream
from loco_api.openai_api.form import UploadForm

HEAD = b'--b\r\nContent-Disposition: form-data; name="'
PART = HEAD + b'purpose"\r\n\r\nfine-tune\r\n'
FILE = HEAD + b'file"; filename="a.jsonl"\r\n\r\n'


def form() -> UploadForm:
    return UploadForm("multipart/form-data; boundary=b")


def test_parts_of_one_name_count_one_by_one() -> None:
    whole = form()
    content = b"x" * 100_000
    assert whole.feed(PART * 16 + FILE + content + b"\r\n--b--\r\n") == content
    whole.finish()
    with pytest.raises(InvalidRequest, match="more than 16 parts"):
        form().feed(PART * 18)


@pytest.mark.parametrize(
    "filler",
    [
        (HEAD + b'a"' + (b"\r\nX: " + b"y" * 2000) * 3 + b"\r\n\r\n1\r\n") * 12,
        FILE + b"x\r\n--b--" + b"\r\n" * 40_000,
    ],
)
def test_bytes_outside_the_file_have_an_end(filler: bytes) -> None:
    with pytest.raises(InvalidRequest, match="65,536 bytes besides the file"):
        form().feed(filler)


def test_one_key_leaves_places_to_others() -> None:
    asyncio.run(_one_key_leaves_places_to_others())


async def _one_key_leaves_places_to_others() -> None:
    here = upstream.Upstream("http://127.0.0.1:1")
    ends = asyncio.Event()

    async def held(path: str, body: bytes) -> None:
        await ends.wait()

    here._send = held  # type: ignore[method-assign, assignment]

    async def receive() -> dict[str, str]:
        await asyncio.Event().wait()
        return {}

    def ask(key: str | None) -> asyncio.Task[object]:
        request = Request({"type": "http"}, receive)  # type: ignore[arg-type]
        return asyncio.ensure_future(here.post(request, "/v1/x", b"{}", key=key))

    mine = [ask("mine") for _ in range(upstream.OF_A_KEY)]
    await asyncio.sleep(0)
    with pytest.raises(Busy, match="with this key"):
        await ask("mine")
    others = [ask("theirs"), ask(None)]
    await asyncio.sleep(0)
    ends.set()
    await asyncio.gather(*mine, *others)
    assert not here._open, "each gave its place back"
