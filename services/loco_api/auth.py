"""Who may use the API, decided before anything of a request's body is read.

Once an API key was made, every path but the open ones needs `Authorization: Bearer KEY`, and each
route a scope. Before, the server is bound to loopback (`__main__` refuses anything else) and
answers programs of this machine only: not web pages, which reach loopback by a name that points
there (DNS rebinding) or by a plain cross-site request, and not what a proxy passes on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer, SecurityScopes
from fastapi.security.utils import get_authorization_scheme_param
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as Connection

from loco.contracts.addresses import hostname, is_loopback
from loco.contracts.errors import Forbidden, LocoError, TooManyRequests, Unauthorized
from loco.contracts.jobs import Job
from loco.contracts.keys import LOCAL, Scope
from loco.contracts.sweeps import SweepSummary
from loco_api.client.routes import WHEEL
from loco_api.context import Context
from loco_api.errors import answer_to
from loco_api.rates import Rate, network_of
from loco_api.trail import Trail

#: Need no key: probes of container engines and load balancers carry none, pip neither; the document
#: and the client's code are public.
OPEN = frozenset(
    {
        *("/healthz", "/readyz", "/version", "/openapi.json", "/docs", "/docs/oauth2-redirect"),
        *("/client", WHEEL),
    }
)
#: Methods that change nothing.
_SAFE = ("GET", "HEAD", "OPTIONS")
#: Operations that change nothing though their method could, or go on with what was told already (an
#: upload in a hundred pieces): the audit trail has none of them.
_UNTOLD = frozenset({"planJob", "continueUpload", "createChatCompletion", "createEmbedding"})
#: A body refused unread ends the connection, unless it is so short (bytes) that the server skips it.
_SKIPPED = 65536
#: What proxies say about the request they pass on.
_PROXIED = ("forwarded", "via", "x-real-ip", "x-client-ip", "x-cluster-client-ip", "true-client-ip")
_PROXIED_PREFIXES = (
    "x-forwarded",
    "x-original-",
    "cf-",
    "fastly-",
    "x-envoy-",
    "x-arr-",
    "x-amzn-",
)

_BEARER = HTTPBearer(
    scheme_name="apiKey",
    bearerFormat="API key from `loco keys create`",
    description="Needed on every route except /healthz, /readyz and /version, once a key "
    "exists. Each route lists the scopes that its key needs. `admin` includes "
    "`submit`, and `submit` includes `read`.",
    auto_error=False,
)


@dataclass
class Caller:
    """Who asks.

    Attributes:
        name: of the API key; `local` where none is needed.
        owner: whose jobs theirs are.
        scope: what they may do.
        address: where the request came from.
        welcome: whether the key still opens; looks into the ledger, so not for the event loop.
        key_id: of the API key, if one came.
        detail: what the audit trail says besides.
    """

    name: str
    owner: str
    scope: Scope
    address: str
    welcome: Callable[[], bool]
    key_id: str | None = None
    detail: str = ""

    def check_may_change(self, job: Job | SweepSummary) -> None:
        """Raises Forbidden unless the job or sweep is the caller's own, or the key an admin's."""
        if job.owner != self.owner and not self.scope.includes(Scope.ADMIN):
            whose = f"is {job.owner!r}'s" if job.owner else "has no owner"
            able = "its owner, or somebody with an admin key"
            if job.owner in (None, LOCAL):
                able = "somebody with an admin key"
            if job.owner == LOCAL:  # made without a key
                able += f", or for a key of `loco keys create NAME --owner {LOCAL}`"
            noun = job.object
            again = " `POST /jobs/{id}/replay` runs it again as your own."
            raise Forbidden(
                f"{noun.capitalize()} {job.id} {whose}; this key belongs to {self.owner!r}.",
                param=f"{noun}_id",
                hint=f"Ask {able}.{again if noun == 'job' else ''}",
            )

    def reads_uploads_of(self, job: Job) -> bool:
        """Whether the uploaded rows that a job reads are the caller's, or the key an admin's."""
        return job.owner == self.owner or self.scope.includes(Scope.ADMIN)

    def check_is_admin(self, why: str) -> None:
        """Raises Forbidden, with the reason, unless the key has scope admin."""
        if not self.scope.includes(Scope.ADMIN):
            raise _too_narrow(Scope.ADMIN, self.scope, f" ({why})")


class Authentication:
    """Lets requests in, or refuses them by their headers alone; writes the audit trail."""

    def __init__(self, app: ASGIApp, context: Context, trail: Trail) -> None:
        self._app = app
        self._context = context
        self._trail = trail
        self._requests = Rate(context.settings.requests_per_minute)
        self._refusals = Rate(context.settings.refusals_per_minute)

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers 401, 403, 429 or 503."""
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self._app(scope, receive, send)
            return
        try:
            caller = await self._admit(scope)
        except LocoError as error:
            if _is_long(scope):
                error.headers["Connection"] = "close"
            await answer_to(error, scope["path"])(scope, receive, send)
            return
        scope.setdefault("state", {})["caller"] = caller
        if scope["method"] in _SAFE:
            await self._app(scope, receive, send)
        else:
            await self._change(scope, receive, send, caller)

    async def _admit(self, scope: Connection) -> Caller:
        address = _address(scope)
        try:
            caller = await run_in_threadpool(identify, self._context, scope, address)
        except (Unauthorized, Forbidden) as error:
            await self._trail.refused(address, scope["path"], error.status)
            if wait := self._refusals.take(network_of(address)):
                raise _too_many(
                    "refused requests from this address", self._refusals, wait
                ) from error
            raise
        if caller.key_id and (wait := self._requests.take(caller.key_id)):
            raise _too_many("requests with this key", self._requests, wait)
        return caller

    async def _change(
        self, scope: Connection, receive: Receive, send: Send, caller: Caller
    ) -> None:
        """Has a change recorded before its answer leaves, done or refused."""

        async def record(status: int, path: str | None = None) -> None:
            if _action(scope) in _UNTOLD:
                return
            await self._trail.done(
                path=path or scope["path"],
                status=status,
                action=_action(scope),
                detail=caller.detail,
                key=caller.key_id,
                by=caller.name,
                owner=caller.owner,
                address=caller.address,
            )

        async def recorded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = Headers(raw=message.get("headers", []))
                await record(message["status"], headers.get("location"))
            await send(message)

        try:
            await self._app(scope, receive, recorded)
        except Exception:
            await record(500)
            raise


def identify(context: Context, scope: Connection, address: str) -> Caller:
    """Who asks, by the headers of a request.

    Raises:
        Unauthorized: a key was made once, and no valid one came with the request.
        Forbidden: none was made, and the request does not come from a program of this machine.
        RedisUnavailable: the keys cannot be read; nothing is let through then.
    """
    keys, headers = context.keys, Headers(scope=scope)
    scheme, text = get_authorization_scheme_param(headers.get("authorization"))
    if scheme.lower() == "bearer" and (key := keys.verify(text)):
        return Caller(
            name=key.name,
            owner=key.owner,
            scope=key.scope,
            address=address,
            welcome=lambda: keys.verify(text) is not None,
            key_id=key.id,
        )
    if keys.closed() or not is_loopback(context.settings.host):
        raise _unauthorized(wrong="authorization" in headers)
    check_local(headers)
    return Caller(
        name=LOCAL,
        owner=LOCAL,
        scope=Scope.ADMIN,
        address=address,
        welcome=lambda: not keys.closed(),
    )


async def authorize(
    request: Request,
    needed: SecurityScopes,
    _: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)],
) -> None:
    """Checks that the caller's scope is what the route needs; a change needs `submit` at least.

    Raises:
        Forbidden: it is not.
    """
    scopes = [Scope(scope) for scope in needed.scopes]
    if request.method not in _SAFE:
        scopes.append(Scope.SUBMIT)
    for scope in scopes:
        if not caller(request).scope.includes(scope):
            raise _too_narrow(scope, caller(request).scope)


async def count_submit(request: Request) -> None:
    """Counts a request that makes work.

    Raises:
        TooManyRequests: the key has made as much as it may.
    """
    rate: Rate = request.app.state.submits
    who = caller(request).key_id
    if who and (wait := rate.take(who)):
        raise _too_many("jobs and plans with this key", rate, wait)


def caller(request: Request) -> Caller:
    """Who asks."""
    found = request.state.caller
    assert isinstance(found, Caller)
    return found


Who = Annotated[Caller, Depends(caller)]
READ = Security(authorize, scopes=[Scope.READ.value])
SUBMIT = Security(authorize, scopes=[Scope.SUBMIT.value])
ADMIN = Security(authorize, scopes=[Scope.ADMIN.value])
#: Of routes that make work for the machine.
COUNTED = Depends(count_submit)


def check_local(headers: Headers) -> None:
    """Refuses what a web page or a proxy may send to a server on loopback.

    Browsers send Origin and Sec-Fetch-Site with every request that a page may abuse.
    """
    for name, url in (("Host", f"//{headers.get('host', '')}"), ("Origin", headers.get("origin"))):
        if url is not None and not is_loopback(hostname(url)):
            shown = url.removeprefix("//")
            raise _foreign(f"{name} {shown!r:.100} is not this machine's loopback address.", name)
    if headers.get("sec-fetch-site", "none") == "cross-site":
        raise _foreign(
            "Sec-Fetch-Site: the request comes from another site's page.", "Sec-Fetch-Site"
        )
    for name in headers:
        if name in _PROXIED or name.startswith(_PROXIED_PREFIXES):
            raise _foreign(
                f"{name}: a proxy sent this request, so it may come from anywhere.", name
            )


def _foreign(message: str, header: str) -> Forbidden:
    return Forbidden(
        message,
        param=header,
        hint="Use http://127.0.0.1, or create a key with `loco keys create` and send it.",
    )


def _too_narrow(needed: Scope, given: Scope, why: str = "") -> Forbidden:
    return Forbidden(
        f"This needs a key with scope {needed}{why}. Yours has {given}.",
        param="Authorization",
        hint=f"Ask for one: `loco keys create NAME --scope {needed}` on the server.",
    )


def _unauthorized(*, wrong: bool) -> Unauthorized:
    error = Unauthorized(
        "This API key is not valid here." if wrong else "This server needs an API key.",
        param="Authorization",
        hint="Set LOCO_API_KEY to a valid key, or send `Authorization: Bearer KEY`. On the server "
        "`loco keys list` shows the keys and when they expire, and `loco keys create` makes one.",
    )
    error.headers = {"WWW-Authenticate": "Bearer" + (' error="invalid_token"' if wrong else "")}
    return error


def _too_many(what: str, rate: Rate, wait: int) -> TooManyRequests:
    error = TooManyRequests(
        f"More than {rate.per_minute} {what} per minute.", hint=f"Try again in {wait} s."
    )
    error.headers = {"Retry-After": str(wait)}
    return error


def _address(scope: Connection) -> str:
    client = scope.get("client")
    return str(client[0])[:64] if client else "unknown"


def _action(scope: Connection) -> str:
    """The operation's ID; its method where no route takes it."""
    return str(getattr(scope.get("route"), "operation_id", None) or scope["method"].lower())


def _is_long(scope: Connection) -> bool:
    """Whether a body comes that the server would have to read to go on with the connection."""
    headers = Headers(scope=scope)
    length = headers.get("content-length", "0")
    return "transfer-encoding" in headers or not length.isdecimal() or int(length) > _SKIPPED
