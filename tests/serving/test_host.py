"""The clients of chats: all closed at the end, whoever takes or returns one meanwhile."""

from typing import Any

import httpx
import pytest

from loco.serving.host import OllamaHost


def test_chats_that_begin_and_end_while_the_host_closes_spoil_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[httpx.Client] = []
    ending: list[Any] = []

    class Client(httpx.Client):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            made.append(self)

        def close(self) -> None:
            """An asking thread's turn comes between two clients: a chat ends, the next begins."""
            super().close()
            if ending and self is not made[0]:
                ending.pop().__exit__(None, None, None)
                begun = host._line()
                begun.__enter__()
                begun.__exit__(None, None, None)

    monkeypatch.setattr("loco.serving.host.httpx.Client", Client)
    with OllamaHost("http://127.0.0.1:9") as host:
        lines = [host._line() for _ in range(5)]
        for line in lines:
            line.__enter__()
        for line in lines[:3]:
            line.__exit__(None, None, None)
        ending += lines[3:]
    assert not ending
    assert all(client.is_closed for client in made)
