"""An Ollama server, here or remote: the `ollama` client, and raw HTTP for what the client can't do.

Raw are: asking for a blob before sending it (the client always sends), progress of the upload, the
fields `truncate` and `_debug_render_only`, and the fields of /api/show that the client drops.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

import httpx
import ollama

from loco.contracts.errors import OllamaRefused, OllamaUnavailable

#: Loading a model of several gigabytes happens inside a request.
_SECONDS = 600.0
_CONNECT_SECONDS = 10.0
#: It is done at once, or not worth waiting for.
_UNLOAD_SECONDS = 10.0
_CHUNK_BYTES = 1 << 20
#: Pauses before a busy server (503) is asked again, in seconds.
_BUSY_PAUSES = (1, 2, 4, 8)
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


class Answer(NamedTuple):
    """What a model answered."""

    text: str
    thinking: str
    #: `stop` when the model ended by itself, `length` when it was cut at num_predict.
    done_reason: str
    #: Generated tokens.
    tokens: int
    prompt_tokens: int
    #: Wall-clock seconds of the request, those it waited in the server's queue among them.
    seconds: float
    #: Seconds the server computed, by its own account: prompt and answer, no loading, no waiting.
    computed: float = 0.0


class Waiting(NamedTuple):
    """How many chats wait for a server together, and the field that says so."""

    at_once: int
    #: E.g. `eval.parallel`.
    field: str


class OllamaHost:
    """An Ollama server.

    Every call raises OllamaUnavailable when nothing answers there (or it stays busy) and
    OllamaRefused when it answers with an error.

    Args:
        url: base URL, e.g. `http://127.0.0.1:11434`.
        seconds: patience with each answer; loading a model happens inside a request.
    """

    def __init__(self, url: str, *, seconds: float = _SECONDS) -> None:
        timeout = _patience(seconds)
        self.url = url.rstrip("/")
        self.seconds = seconds
        # a proxy must not be asked for this machine's own addresses
        trust_env = urlsplit(self.url).hostname not in _LOOPBACK
        tls = httpx.create_ssl_context(trust_env=trust_env)  # 40 ms: once, not once a client
        self._new_client = partial(
            httpx.Client,
            base_url=self.url,
            timeout=timeout,
            trust_env=trust_env,
            verify=tls,
            # servers close idle connections after 5 seconds or more: ours must be gone before
            limits=httpx.Limits(keepalive_expiry=2.0),
        )
        self._http = self._new_client()
        #: Clients of chats that nobody uses now.
        self._idle: deque[httpx.Client] = deque()
        self._closed = False
        self._client = ollama.Client(host=self.url, timeout=timeout, trust_env=trust_env)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self._http.close()
        self._close_idle()
        self._client.close()  # type: ignore[no-untyped-call]

    def version(self) -> str:
        """The server's version."""
        with self._speaking("say its version"):
            return str(_json(self._http.get("/api/version")).get("version", "unknown"))

    def digests(self) -> dict[str, str]:
        """Full model name (with tag) to digest, of all models there."""
        with self._speaking("list its models"):
            return {m.model: m.digest or "" for m in self._client.list().models if m.model}

    def has_blob(self, digest: str) -> bool:
        """Whether the server has the blob `sha256:…`."""
        with self._speaking(f"look for blob {digest}"):
            response = self._http.head(f"/api/blobs/{digest}")
            if response.status_code == httpx.codes.NOT_FOUND:
                return False
            response.raise_for_status()
            return True

    def upload(self, path: Path, digest: str, sent: Callable[[int], None]) -> None:
        """Sends a file as the blob `sha256:…`.

        Args:
            path: the file.
            digest: of its content; the server checks it.
            sent: called with the number of bytes sent so far; what it raises ends the upload.
        """
        # a length, not chunks: proxies in front of a remote server often refuse those
        headers = {"content-length": str(path.stat().st_size)}
        with self._speaking(f"take blob {digest}"):
            response = self._http.post(
                f"/api/blobs/{digest}", content=_chunks(path, sent), headers=headers
            )
            response.raise_for_status()

    def create(
        self,
        model: str,
        *,
        files: Mapping[str, str] | None = None,
        base: str | None = None,
        adapters: Mapping[str, str] | None = None,
        system: str | None,
        parameters: Mapping[str, Any],
        status: Callable[[str], None],
    ) -> None:
        """Creates a model from blobs, or from an adapter on a model that is there.

        Args:
            model: its name.
            files: file name to blob digest; none: the model stands on `base`.
            base: a model there; one that is not may be pulled by the server.
            adapters: file name to blob digest of what is put on it.
            system: system prompt; none: the template's own.
            parameters: options of the Modelfile, e.g. `stop`.
            status: called with each line the server says meanwhile.
        """
        with self._speaking(f"create {model}"):
            for response in self._client.create(
                model,
                files=dict(files) if files else None,
                from_=base,
                adapters=dict(adapters) if adapters else None,
                system=system,
                parameters=dict(parameters),
                stream=True,
            ):
                status(response.status or "")

    def pull(self, model: str, progress: Callable[[str, int, int], None]) -> None:
        """Has the server fetch a model from its library.

        Args:
            model: its name.
            progress: called with status, bytes done and bytes in all (0: not known yet).
        """
        with self._speaking(f"pull {model}"):
            for response in self._client.pull(model, stream=True):
                progress(response.status or "", response.completed or 0, response.total or 0)

    def sizes(self) -> dict[str, int]:
        """Full model name (with tag) to the bytes it takes there, of all models."""
        with self._speaking("list its models"):
            return {m.model: int(m.size or 0) for m in self._client.list().models if m.model}

    def modified(self) -> dict[str, datetime | None]:
        """Full model name (with tag) to when it was changed last, of all models there."""
        with self._speaking("list its models"):
            return {m.model: m.modified_at for m in self._client.list().models if m.model}

    def delete(self, model: str) -> None:
        """Removes a name, and what only it used."""
        with self._speaking(f"delete {model}"):
            self._client.delete(model)

    def show(self, model: str, *, verbose: bool = False) -> dict[str, Any]:
        """Template, parameters, system, modelfile, capabilities, tensors of a model.

        Args:
            model: its name.
            verbose: with the vocabulary, megabytes of it.
        """
        body = {"model": model, **({"verbose": True} if verbose else {})}
        with self._speaking(f"show {model}"):
            return _json(self._http.post("/api/show", json=body))

    def copy(self, source: str, destination: str) -> None:
        """Points a name at an existing model."""
        with self._speaking(f"copy {source} to {destination}"):
            self._client.copy(source, destination)

    def converse(
        self,
        model: str,
        messages: Sequence[Mapping[str, str]],
        options: Mapping[str, Any],
        *,
        think: bool | None = False,
        waiting: Waiting | None = None,
    ) -> Answer:
        """The next turn of a conversation, whose prompt is not cut.

        Args:
            model: who answers.
            messages: `role` and `content` of the turns so far.
            options: as of /api/chat.
            think: as most clients send it: not at all (None), or as true or false.
            waiting: the other chats that the server may answer first: patience grows with them.
        """
        started = time.monotonic()
        body = self._chat(model, messages, options, think, waiting)
        message = body.get("message", {})
        return Answer(
            text=message.get("content", ""),
            thinking=message.get("thinking") or "",
            done_reason=body.get("done_reason", ""),
            tokens=body.get("eval_count", 0),
            prompt_tokens=body.get("prompt_eval_count", 0),
            seconds=round(time.monotonic() - started, 3),
            computed=round(_nanoseconds(body) / 1e9, 3),
        )

    def unload(self, model: str) -> None:
        """Frees the memory that a model takes there, without waiting for it to be idle long."""
        request = {"model": model, "messages": [], "stream": False, "keep_alive": 0}
        with self._speaking(f"unload {model}"):
            _json(self._http.post("/api/chat", json=request, timeout=_UNLOAD_SECONDS))

    def rendered(
        self, model: str, messages: Sequence[Mapping[str, str]], *, think: bool | None = False
    ) -> str | None:
        """The text a conversation becomes before the model sees it; None: the server can't say."""
        # num_predict: a server that does not know the field generates, which must stay short
        body = self._chat(model, messages, {"num_predict": 1}, think, None, _debug_render_only=True)
        text = (body.get("_debug_info") or {}).get("rendered_template")
        return str(text) if text is not None else None

    def _chat(
        self,
        model: str,
        messages: Sequence[Mapping[str, str]],
        options: Mapping[str, Any],
        think: bool | None,
        waiting: Waiting | None,
        **more: Any,
    ) -> dict[str, Any]:
        request = {
            "model": model,
            "messages": [dict(message) for message in messages],
            "stream": False,
            **({} if think is None else {"think": think}),
            "truncate": False,
            "options": dict(options),
            **more,
        }
        # a server that answers one at a time answers the newest last
        timeout = _patience(self.seconds * (waiting.at_once if waiting else 1))
        with self._speaking(f"answer with {model}", waiting), self._line() as client:
            for pause in (*_BUSY_PAUSES, None):
                response = client.post("/api/chat", json=request, timeout=timeout)
                if response.status_code != httpx.codes.SERVICE_UNAVAILABLE or pause is None:
                    break
                time.sleep(pause)
            return _json(response)

    @contextmanager
    def _line(self) -> Iterator[httpx.Client]:
        """A client that is the caller's alone meanwhile.

        One client for hundreds of threads looks through all its connections for every request, holds no
        more than 100, and may close one that another thread was just given (httpcore 1.0, measured
        with 384 threads: "Bad file descriptor").
        """
        try:
            client = self._idle.pop()
        except IndexError:
            client = self._new_client()
        try:
            yield client
        finally:
            self._idle.append(client)
            if self._closed:
                self._close_idle()

    def _close_idle(self) -> None:
        """Closes one after another: other threads give theirs back meanwhile."""
        with suppress(IndexError):
            while True:
                self._idle.pop().close()

    @contextmanager
    def _speaking(self, doing: str, waiting: Waiting | None = None) -> Iterator[None]:
        """Turns the errors of both clients into ours."""
        started = time.monotonic()
        try:
            yield
        except httpx.ReadTimeout as error:
            raise self.slow(doing, time.monotonic() - started, waiting) from error
        except (httpx.TransportError, ConnectionError) as error:
            raise self._unavailable(f"No Ollama answers at {self.url}: {error}") from error
        except httpx.HTTPStatusError as error:
            raise self._refused(doing, error.response.status_code, _said(error.response)) from error
        except ollama.ResponseError as error:
            raise self._refused(doing, error.status_code, error.error) from error

    def slow(self, doing: str, seconds: float, waiting: Waiting | None = None) -> OllamaUnavailable:
        """The error of a server that took a request and says nothing.

        Args:
            doing: what it should do, as in "did not …".
            seconds: for so long.
            waiting: what else it was asked at the same time.
        """
        hint = (
            "Ollama answers, but is stuck or slow. Its own log and `ollama ps` show what it does."
        )
        if waiting is not None and waiting.at_once > 1:
            hint += (
                f" Fewer questions at once may help: set {waiting.field} below {waiting.at_once}."
            )
        return OllamaUnavailable(
            f"Ollama at {self.url} did not {doing} within {seconds:.0f} s",
            param=waiting.field if waiting else None,
            hint=hint,
        )

    def _refused(self, doing: str, status: int, said: str) -> OllamaUnavailable | OllamaRefused:
        if status == httpx.codes.SERVICE_UNAVAILABLE:
            return self._unavailable(f"Ollama at {self.url} is busy: {said}")
        return OllamaRefused(
            f"Ollama at {self.url} did not {doing}: {said}",
            hint="Ollama's own log says more. `loco doctor` checks Ollama.",
        )

    def _unavailable(self, message: str) -> OllamaUnavailable:
        return OllamaUnavailable(
            message,
            hint="Start it (`ollama serve`), or point OLLAMA_HOST at one that runs. `loco up` "
            "starts a stand-in if none answers.",
        )


def full_name(model: str) -> str:
    """A model name with its tag, as the server lists it."""
    return model if ":" in model.rpartition("/")[2] else f"{model}:latest"


def _patience(seconds: float) -> httpx.Timeout:
    return httpx.Timeout(seconds, connect=min(seconds, _CONNECT_SECONDS))


def _json(response: httpx.Response) -> dict[str, Any]:
    response.raise_for_status()
    body: dict[str, Any] = response.json()
    return body


def _nanoseconds(body: Mapping[str, Any]) -> int:
    return sum(int(body.get(f"{part}_duration", 0)) for part in ("prompt_eval", "eval"))


def _said(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code}: {response.text[:200]}"


def _chunks(path: Path, sent: Callable[[int], None]) -> Iterator[bytes]:
    done = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
            done += len(chunk)
            sent(done)
