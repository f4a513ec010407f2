"""How the client talks HTTP: addresses, keys, repeats, and errors as the server raised them.

What may be repeated is repeated: a request that never reached a server, an answer that was cut
off, a 429 once its Retry-After is over, and a 502, 503 or 504, with growing pauses. What may not (a
POST without an idempotency key) is repeated only when no connection came about at all.
"""

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import httpx
from pydantic import BaseModel, ValidationError

from loco.contracts.addresses import hostname, is_loopback
from loco.contracts.errors import (
    InvalidRequest,
    LocoError,
    NotFound,
    ServerUnreachable,
    from_payload,
)
from loco.contracts.release import is_client_alone

#: Pauses between repeats, in seconds. Their sum is what a user waits when nothing answers.
PAUSES = (0.1, 0.3, 0.9)

#: Seconds within which a server takes a connection; a machine that is off never does.
CONNECT_SECONDS = 5.0

#: Answers of a proxy or of a server that is starting: the same request may work in a moment.
PASSING = frozenset({502, 503, 504})

#: A server's Retry-After is followed up to so many seconds; where the key asks too often, longer.
LONGEST_RETRY_AFTER = 5.0
LONGEST_TURN = 60.0

TOO_MANY = HTTPStatus.TOO_MANY_REQUESTS

Params = Mapping[str, str | int | Sequence[str] | None]

#: Half a character: Python makes it of a byte of the command line that is no UTF-8.
_SURROGATE = re.compile("[\ud800-\udfff]")

_ModelT = TypeVar("_ModelT", bound=BaseModel)


class Transport:
    """One server and key, over one pool of connections."""

    def __init__(
        self,
        server: str,
        api_key: str | None,
        *,
        timeout: float,
        pauses: tuple[float, ...] = PAUSES,
    ) -> None:
        self.server = checked_server(server)
        self._pauses = pauses
        self._timeout = httpx.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS))
        headers = {"Accept": "application/json", "User-Agent": "loco-client"}
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        self._http = httpx.Client(
            base_url=self.server,
            headers=headers,
            timeout=self._timeout,
            # The key goes to the configured server only, wherever an answer points.
            follow_redirects=False,
            # A proxy of the environment cannot reach this machine's own loopback.
            trust_env=not is_loopback(hostname(self.server)),
        )

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def get(self, path: str, **params: str | int | None) -> Any:
        """The decoded JSON of a GET."""
        return self.request("GET", path, params=params, repeatable=True)

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        repeatable: bool,
        answers: frozenset[int] = frozenset(),
        read_timeout: float | None = None,
        content: bytes | None = None,
    ) -> Any:
        """The decoded JSON of an answer.

        Args:
            method: HTTP method.
            path: path below the server's address, already quoted (see `path_of`).
            params: query; None values are left out.
            body: sent as JSON when not None.
            headers: further headers.
            repeatable: whether sending it twice does what sending it once does.
            answers: statuses of 400 and more that are answers here, not errors.
            read_timeout: seconds to wait for the answer; none: as for every other.
            content: sent as it is when not None.

        Raises:
            ServerUnreachable: nothing answered, or it stopped answering.
            LocoError: the class the server raised.
        """
        timeout = self._patient(read_timeout)
        for pause in (*self._pauses, None):
            try:
                response = self._http.request(
                    method,
                    path,
                    params={k: v for k, v in (params or {}).items() if v is not None},
                    json=body,
                    content=content,
                    headers=headers,
                    timeout=timeout,
                )
            except httpx.HTTPError as error:
                absent = isinstance(error, httpx.ConnectTimeout)  # waited for long enough
                may_repeat = repeatable or isinstance(error, httpx.ConnectError)
                if pause is None or absent or not may_repeat:
                    raise self.unreachable(error) from error
                time.sleep(pause)
                continue
            status = response.status_code
            if status in answers:
                return self._json(response)
            if pause is not None and repeatable and status in (*PASSING, TOO_MANY):
                time.sleep(max(pause, _retry_after(response)))
                continue
            return self._decoded(response)
        raise AssertionError("the last round returns or raises")

    def head(self, path: str) -> Mapping[str, str]:
        """The headers of a HEAD.

        Raises:
            ServerUnreachable: nothing answers.
            LocoError: the class of its status; a HEAD has no body that could say more.
        """
        for pause in (*PAUSES, None):
            try:
                response = self._http.head(path)
            except httpx.HTTPError as error:
                if pause is None:
                    raise self.unreachable(error) from error
                time.sleep(pause)
                continue
            if response.is_success:
                return response.headers
            if response.status_code == HTTPStatus.NOT_FOUND:
                raise NotFound(f"There is no {path}.")
            if pause is None or response.status_code not in (*PASSING, TOO_MANY):
                raise self._error(response)
            time.sleep(max(pause, _retry_after(response)))
        raise AssertionError("the last round returns or raises")

    @contextmanager
    def stream(
        self,
        path: str,
        *,
        headers: Mapping[str, str],
        read_timeout: float | None = None,
        method: str = "GET",
        body: Any = None,
    ) -> Iterator[httpx.Response]:
        """An answer whose body is read piece by piece. Never repeated here: the caller knows how.

        Args:
            path: as in `request`.
            headers: further headers.
            read_timeout: seconds without a byte before it counts as broken.
            method: HTTP method.
            body: sent as JSON when not None.

        Raises:
            ServerUnreachable: nothing answered, or the stream broke while it was read.
            LocoError: the class the server raised.
        """
        timeout = self._patient(read_timeout)
        try:
            for pause in (*self._pauses, None):
                with self._http.stream(
                    method, path, json=body, headers=headers, timeout=timeout
                ) as response:
                    if pause is not None and response.status_code == TOO_MANY:
                        time.sleep(max(pause, _retry_after(response)))
                        continue
                    if not response.is_success:
                        response.read()
                        raise self._error(response)
                    yield response
                    return
        except httpx.HTTPError as error:
            raise self.unreachable(error) from error

    def _patient(self, read_timeout: float | None) -> httpx.Timeout:
        limits = self._timeout.as_dict()
        return httpx.Timeout(**{**limits, "read": read_timeout or limits["read"]})

    def unreachable(self, error: httpx.HTTPError) -> ServerUnreachable:
        """A transport error in words."""
        reason = str(error) or type(error).__name__
        hint = (
            self._where_else(reason)
            if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
            else "Look at the server's log. The server may be restarting."
        )
        return ServerUnreachable(f"No answer from {self.server}: {reason}.", hint=hint)

    def _where_else(self, reason: str) -> str:
        """What to do where no connection came about."""
        if "CERTIFICATE_VERIFY_FAILED" in reason:
            return (
                "This machine does not trust the server's certificate. Ask whoever runs the server."
            )
        if "[SSL: " in reason:
            plain = self.server.replace("https://", "http://", 1)
            return f"The server may not speak HTTPS. Try {plain} as LOCO_SERVER (--server)."
        if not is_loopback(hostname(self.server)):
            return "Is the address right (LOCO_SERVER, --server)? Ask whoever runs the server."
        if is_client_alone():
            return (
                "Point LOCO_SERVER (--server) at the machine where the server runs, like "
                "http://neurocore:8321."
            )
        return (
            "Start it with `loco up`, or point LOCO_SERVER (--server) at the machine where it runs."
        )

    def _decoded(self, response: httpx.Response) -> Any:
        if not response.is_success:
            raise self._error(response)
        return self._json(response)

    def _json(self, response: httpx.Response) -> Any:
        try:
            return response.json()
        except ValueError as error:
            raise self._foreign(response) from error

    def _error(self, response: httpx.Response) -> LocoError:
        if response.is_redirect:
            return LocoError(
                f"{self.server} redirects to {response.headers.get('Location')}.",
                hint="Set LOCO_SERVER (--server) to the address it redirects to, if you trust it.",
            )
        try:
            payload = json.loads(response.content)
        except ValueError:
            payload = None
        if not isinstance(payload, dict) or not isinstance(payload.get("error"), dict):
            return self._foreign(response)
        error = from_payload(payload, fallback=f"HTTP {response.status_code}")
        if response.status_code == HTTPStatus.NOT_FOUND and type(error) is LocoError:
            return NotFound(error.message, param=error.param, hint=error.hint)
        if response.status_code in PASSING and type(error) is LocoError:
            # a code this version does not know: the status still says that it passes
            return ServerUnreachable(error.message, hint=error.hint)
        return error

    def _foreign(self, response: httpx.Response) -> LocoError:
        """What answers is not locollm (or something in between answers for it)."""
        request = response.request
        message = (
            f"{request.method} {request.url}: HTTP {response.status_code}, but not from locollm."
        )
        hint = "Check LOCO_SERVER (--server). Another program or a proxy answers there."
        if response.status_code in PASSING:
            return ServerUnreachable(message, hint=hint)
        return LocoError(message, hint=hint)


def understood(model: type[_ModelT], answer: Any) -> _ModelT:
    """A server's answer as this version knows it: fields that a newer one added are left out.

    Raises:
        LocoError: it is something else.
    """
    try:
        return model.model_validate(answer, extra="ignore")
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise LocoError(
            f"The server's answer is not a {model.__name__}: {place}: {first['msg']}.",
            hint="Client and server may be different releases. `loco version` shows both.",
        ) from error


def path_of(*segments: str) -> str:
    """A URL path of segments from users: each is quoted, so none can leave its place.

    Raises:
        InvalidRequest: a segment is empty, a dot segment, or no text that UTF-8 can carry.
    """
    for segment in segments:
        if segment in ("", ".", "..") or _SURROGATE.search(segment):
            raise InvalidRequest(f"{segment!r} is not a name or an ID.")
    return "/" + "/".join(quote(segment, safe="") for segment in segments)


def checked_server(server: str) -> str:
    """The base URL of a server, without a trailing slash.

    Raises:
        InvalidRequest: not an http or https URL.
    """
    try:
        parts = urlsplit(server if "://" in server else f"http://{server}")
        # no blanks, and no password in an address
        plain = not re.search(r"[\s@]", server) and not _SURROGATE.search(server)
        if plain and parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return parts.geturl().rstrip("/")
    except ValueError:
        pass
    raise InvalidRequest(
        f"{server!r} is not the address of a server.",
        param="server",
        hint="Write LOCO_SERVER (--server) like http://neurocore:8321.",
    )


def _retry_after(response: httpx.Response) -> float:
    value = response.headers.get("Retry-After", "")
    longest = LONGEST_TURN if response.status_code == TOO_MANY else LONGEST_RETRY_AFTER
    return min(float(value), longest) if re.fullmatch("[0-9]{1,9}", value) else 0.0
