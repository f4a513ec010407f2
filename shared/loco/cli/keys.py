"""`loco keys`: API keys. Works on the server's machine, straight on its Redis."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from loco.cli.console import note, show, show_json, table
from loco.contracts.keys import KeyInfo, NewKey, Scope, lifetime_of
from loco.settings import Settings, read_up_file

if TYPE_CHECKING:
    from loco.ledger.keys import Keys

app = typer.Typer(
    help="API keys, made on the server's machine. A server that never had any answers itself only.",
    no_args_is_help=True,
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What the key is for, e.g. `laptop`.")],
    *,
    scope: Annotated[
        Scope,
        typer.Option(
            help="read: look; submit: and submit, change one's own jobs, promote; admin: everything."
        ),
    ] = Scope.SUBMIT,
    owner: Annotated[
        str | None, typer.Option(help="Whose jobs its jobs are; none: the name of the key.")
    ] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="TIME", help="How long it works, like 12h, 90d, 26w.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key. It is shown once: only its hash is kept."""
    lifetime = lifetime_of(expires) if expires is not None else None
    with _keys() as keys:
        info, plaintext = keys.create(name, scope=scope, owner=owner, lifetime=lifetime)
        _record(keys, "createKey", info)
    if as_json:
        show_json(NewKey(**info.model_dump(), key=plaintext))
        return
    typer.echo(plaintext)
    note(
        f"Key {info.id} ({info.name}, {info.scope}, of {info.owner}) is not shown again."
        " Use it: export LOCO_API_KEY=..."
    )


@app.command("list")
def list_keys(as_json: JsonOption = False) -> None:
    """List the keys by name (never the keys themselves)."""
    with _keys() as keys:
        known, closed = keys.list(), keys.closed()
    if as_json:
        show_json(known)
        return
    rows = table("id", "name", "owner", "scope", "created", "expires", "last used")
    for key in known:
        over = key.expires_at is not None and key.expires_at <= datetime.now(UTC)
        expires = _time(key.expires_at) + (" (over)" if over else "")
        created, used = _time(key.created_at), _time(key.last_used_at)
        rows.add_row(key.id, key.name, key.owner, key.scope, created, expires, used)
    if known:
        show(rows)
    elif closed:
        note("No keys: the server answers nobody. Make one, or see `loco keys open`.")
    else:
        note("No keys: the server answers programs of its own machine only.")


@app.command()
def revoke(
    key_id: Annotated[
        str, typer.Argument(metavar="ID", help="ID of the key, see `loco keys list`.")
    ],
) -> None:
    """Make a key worthless, at once. Without any the server answers nobody."""
    with _keys() as keys:
        info = keys.revoke(key_id)
        _record(keys, "revokeKey", info)
        left = keys.any()
    note(f"Key {info.id} ({info.name}) no longer opens anything.")
    if not left:
        note("It was the last one: the server answers nobody. Make one, or see `loco keys open`.")


@app.command("open")
def open_server(
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Have a server without keys answer every program and user of its machine again."""
    with _keys() as keys:
        if not yes:
            note("Every program and every user of the server's machine may then do everything.")
            typer.confirm("Open it?", abort=True, err=True)
        keys.open()
        keys.audit.record(action="openServer", target="/keys", outcome="ok")
    note("Open to programs of its own machine, until a key is made. It listens on loopback only.")


@app.command()
def audit(
    *,
    refused: Annotated[
        bool, typer.Option("--refused", help="What was refused (4xx), instead.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="So many at most.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """List who did what, newest first."""
    with _keys() as keys:
        events, _ = keys.audit.page(refused=refused, limit=limit)
    if as_json:
        show_json(events)
        return
    rows = table("at", "by", "owner", "from", "action", "target", "outcome")
    for event in events:
        outcome = event.outcome if event.status is None else f"{event.outcome} {event.status}"
        times = f" x{event.count}" if event.count > 1 else ""
        target = f"{event.target} {event.detail}".strip()
        by, address = event.by or "", event.address or "here"
        row = (by, event.owner or "", address, event.action, target, outcome + times)
        rows.add_row(_time(event.at), *row)
    show(rows) if events else note("Nothing yet.")


def _record(keys: "Keys", action: str, info: KeyInfo) -> None:
    detail = f"{info.name}, {info.scope}, of {info.owner}"
    keys.audit.record(action=action, target=f"/keys/{info.id}", detail=detail, outcome="ok")


def _time(at: datetime | None) -> str:
    return f"{at:%Y-%m-%d %H:%M}" if at else ""


@contextmanager
def _keys() -> Iterator["Keys"]:
    """The keys of the Redis that LOCO_REDIS_URL or the running `loco up` names.

    Before the first `loco up` the server it will bring runs for the length of the command: a host
    beyond loopback needs a key before it starts.
    """
    from loco.box import redis_server  # noqa: PLC0415 (a client elsewhere needs no Redis library)
    from loco.ledger.keys import Keys  # noqa: PLC0415

    settings = Settings.from_environment()
    url = settings.redis_url or read_up_file(settings.data_dir).get("redis_url")
    with ExitStack() as cleanup:
        if url is None:
            server = redis_server.start(settings.data_dir / "redis")
            cleanup.callback(server.stop)
            url = server.url
        keys = Keys.connect(str(url), namespace=settings.namespace)
        cleanup.callback(keys.close)
        yield keys
