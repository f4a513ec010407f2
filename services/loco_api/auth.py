"""Who may use the API.

Once an API key exists, every route but the open ones needs `Authorization: Bearer KEY`. While none
exists, the server is bound to loopback (`__main__` refuses anything else) and answers programs
of this machine only: not web pages, which reach loopback by a name that points there (DNS
rebinding) or by a plain cross-site request.
"""

from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from loco.contracts.addresses import hostname, is_loopback
from loco.contracts.errors import Forbidden, Unauthorized
from loco_api.context import Here

_BEARER = HTTPBearer(
    scheme_name="apiKey",
    bearerFormat="API key of `loco keys create`",
    description="Needed on every route but /healthz, /readyz and /version once a key exists.",
    auto_error=False,
)


def authorize(
    request: Request,
    here: Here,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)],
) -> None:
    """Lets a request through or says why not.

    Raises:
        Unauthorized: keys exist and none of them came with the request.
        Forbidden: no key exists and the request does not come from a program of this machine.
        RedisUnavailable: the keys cannot be read; nothing is let through then.
    """
    if credentials is not None and (key := here.keys.verify(credentials.credentials)):
        request.state.caller = key.name
        return
    if here.keys.any():
        raise _unauthorized(wrong=credentials is not None)
    if not is_loopback(here.settings.host):
        raise _unauthorized(wrong=credentials is not None)
    check_local(request.headers.get("host", ""), request.headers.get("origin"))


def caller(request: Request) -> str:
    """Who asks, for audit trails: the name of the API key, or `local` where none is needed."""
    return str(getattr(request.state, "caller", "local"))


Caller = Annotated[str, Depends(caller)]


def check_local(host: str, origin: str | None) -> None:
    """Refuses what a web page may send to a server on loopback.

    Args:
        host: the Host header.
        origin: the Origin header; browsers send it with every request a page may abuse.
    """
    for header, url in (("Host", f"//{host}"), ("Origin", origin)):
        if url is not None and not is_loopback(hostname(url)):
            raise Forbidden(
                f"{header} {url.removeprefix('//')!r:.100} is not this machine's loopback address.",
                param=header,
                hint="Use http://127.0.0.1, or create a key with `loco keys create` and send it.",
            )


def _unauthorized(*, wrong: bool) -> Unauthorized:
    error = Unauthorized(
        "The API key is not valid here." if wrong else "This server asks for an API key.",
        param="Authorization",
        hint="Send `Authorization: Bearer KEY` (LOCO_API_KEY); `loco keys create` on the server"
        " makes a key.",
    )
    error.headers = {"WWW-Authenticate": "Bearer" + (' error="invalid_token"' if wrong else "")}
    return error
