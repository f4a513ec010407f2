"""`loco keys`: API keys, on the server's machine or with an admin key over its API."""

from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Annotated

import typer

from loco.cli.console import Target, note, show, show_json
from loco.cli.key_places import KeyPlace, key_place
from loco.cli.listing import Listing
from loco.contracts.keys import Scope, lifetime_of

app = typer.Typer(
    help="API keys. Make them on the server's machine, or from anywhere with an admin key "
    "(--server). A server that never had a key answers only its own machine.",
    no_args_is_help=True,
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


@app.command()
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="What the key is for, e.g. `laptop`.")],
    *,
    scope: Annotated[
        Scope,
        typer.Option(
            help="read: look only. submit: also submit, change your own jobs, promote. admin: "
            "everything."
        ),
    ] = Scope.SUBMIT,
    owner: Annotated[
        str | None,
        typer.Option(help="Who owns the jobs of this key. Default: the name of the key."),
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="How long the key works, like 12h, 90d, 26w. Default: until you revoke it.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key. It is shown only once; the server keeps only its hash."""
    if expires is not None:
        lifetime_of(expires)  # a wrong one is said before any server is looked for
    with _place(context) as keys:
        made = keys.create(name, scope=scope, owner=owner, expires=expires)
        where = keys.name
    if as_json:
        show_json(made)
    else:
        typer.echo(made.key)
    note(f"Key {made.id} ({made.name}, {made.scope}, of {made.owner}), for {where}.")
    if not as_json:
        note("The key is not shown again. Use it: export LOCO_API_KEY=...")


@app.command("list")
def list_keys(context: typer.Context, as_json: JsonOption = False) -> None:
    """List the keys by name (never the keys themselves)."""
    with _place(context) as keys:
        known, closed = keys.known()
    if as_json:
        show_json(known)
        return
    rows = Listing(
        *("id", "name", "owner", "scope", "created", "expires", "last used"),
        spare=("created", "owner", "last used", "expires"),
    )
    for key in known:
        over = key.expires_at is not None and key.expires_at <= datetime.now(UTC)
        expires = _time(key.expires_at) + (" (over)" if over else "")
        created, used = _time(key.created_at), _time(key.last_used_at)
        rows.add_row(key.id, key.name, key.owner, key.scope, created, expires, used)
    if known:
        show(rows)
    elif closed:
        note("No keys: the server answers nobody. Make a key, or see `loco keys open`.")
    else:
        note("No keys: the server answers only programs on its own machine.")


@app.command()
def revoke(
    context: typer.Context,
    key_id: Annotated[
        str, typer.Argument(metavar="ID", help="ID of the key, see `loco keys list`.")
    ],
) -> None:
    """Revoke a key at once. A server whose last key was revoked answers nobody."""
    with _place(context) as keys:
        info, left = keys.revoke(key_id)
    note(f"Key {info.id} ({info.name}) no longer works.")
    if not left:
        note(
            "It was the last key, so the server now answers nobody. Make a key, or see `loco "
            "keys open`."
        )


@app.command("open")
def open_server(
    context: typer.Context,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
) -> None:
    """Open a server without keys to every program and user on its machine again."""
    with _place(context) as keys:
        if not yes:
            note("After this, every program and user on the server's machine may do everything.")
            typer.confirm(f"Open {keys.name}?", abort=True, err=True)
        keys.open()
    note(
        "The server is now open to programs on its own machine, until a key is made. It listens "
        "on loopback only."
    )


@app.command()
def audit(
    context: typer.Context,
    *,
    refused: Annotated[
        bool, typer.Option("--refused", help="Show refused requests (4xx) instead.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Show at most this many.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """List who did what, newest first."""
    with _place(context) as keys:
        events = keys.audit(refused=refused, limit=limit)
    if as_json:
        show_json(events)
        return
    rows = Listing(
        *("at", "by", "owner", "from", "action", "target", "outcome"),
        spare=("owner", "from", "outcome"),
        below="target",
    )
    for event in events:
        outcome = event.outcome if event.status is None else f"{event.outcome} {event.status}"
        times = f" x{event.count}" if event.count > 1 else ""
        target = f"{event.target} {event.detail}".strip()
        by, address = event.by or "", event.address or "here"
        row = (by, event.owner or "", address, event.action, target, outcome + times)
        rows.add_row(_time(event.at), *row)
    show(rows) if events else note("Nothing yet.")


def _time(at: datetime | None) -> str:
    return f"{at:%Y-%m-%d %H:%M}" if at else ""


def _place(context: typer.Context) -> AbstractContextManager[KeyPlace]:
    source = context.find_root().get_parameter_source("server")
    target = context.obj if isinstance(context.obj, Target) else Target()
    return key_place(target, on_the_line=source is not None and source.name == "COMMANDLINE")
