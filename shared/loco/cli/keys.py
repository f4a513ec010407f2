"""`loco keys`: API keys. Works on the server's machine, straight on its Redis."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from loco.cli.console import note, show, show_json, table
from loco.settings import Settings, read_up_file

if TYPE_CHECKING:
    from loco.ledger.keys import Keys

app = typer.Typer(
    help="API keys, made on the server's machine. A server without any answers itself only.",
    no_args_is_help=True,
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What the key is for, e.g. `laptop`.")],
    as_json: JsonOption = False,
) -> None:
    """Make a key. It is shown once: only its hash is kept."""
    with _keys() as keys:
        info, plaintext = keys.create(name)
    if as_json:
        show_json({**info.model_dump(mode="json"), "key": plaintext})
        return
    typer.echo(plaintext)
    note(f"Key {info.id} ({info.name}) is not shown again. Use it: export LOCO_API_KEY=...")


@app.command("list")
def list_keys(as_json: JsonOption = False) -> None:
    """List the keys by name (never the keys themselves)."""
    with _keys() as keys:
        known = keys.list()
    if as_json:
        show_json(known)
        return
    rows = table("id", "name", "created")
    for key in known:
        rows.add_row(key.id, key.name, f"{key.created_at:%Y-%m-%d %H:%M} UTC")
    show(rows) if known else note("No keys: the server answers programs of its own machine only.")


@app.command()
def revoke(
    key_id: Annotated[
        str, typer.Argument(metavar="ID", help="ID of the key, see `loco keys list`.")
    ],
) -> None:
    """Make a key worthless, at once."""
    with _keys() as keys:
        info = keys.revoke(key_id)
    note(f"Key {info.id} ({info.name}) no longer opens anything.")


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
