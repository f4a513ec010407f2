"""`loco keys`: API keys. Works on the server's machine, straight on its Redis."""

from typing import TYPE_CHECKING, Annotated

import typer

from loco.cli_console import note, show, show_json, table
from loco.client import read_up_file
from loco.errors import RedisUnavailable
from loco.settings import Settings

if TYPE_CHECKING:
    from loco.keys import Keys

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
    info, plaintext = _keys().create(name)
    if as_json:
        show_json({**info.model_dump(mode="json"), "key": plaintext})
        return
    typer.echo(plaintext)
    note(f"Key {info.id} ({info.name}) is not shown again. Use it: export LOCO_API_KEY=...")


@app.command("list")
def list_keys(as_json: JsonOption = False) -> None:
    """List the keys by name (never the keys themselves)."""
    keys = _keys().list()
    if as_json:
        show_json(keys)
        return
    rows = table("id", "name", "created")
    for key in keys:
        rows.add_row(key.id, key.name, f"{key.created_at:%Y-%m-%d %H:%M} UTC")
    show(rows) if keys else note("No keys: the server answers programs of its own machine only.")


@app.command()
def revoke(
    key_id: Annotated[
        str, typer.Argument(metavar="ID", help="ID of the key, see `loco keys list`.")
    ],
) -> None:
    """Make a key worthless, at once."""
    info = _keys().revoke(key_id)
    note(f"Key {info.id} ({info.name}) no longer opens anything.")


def _keys() -> "Keys":
    """The keys of the Redis that LOCO_REDIS_URL or the running `loco up` names."""
    from loco.keys import Keys  # noqa: PLC0415 (a client elsewhere needs no Redis library)

    settings = Settings.from_environment()
    url = settings.redis_url or read_up_file(settings.data_dir).get("redis_url")
    if url is None:
        raise RedisUnavailable(
            f"No running `loco up` of {settings.data_dir}, and LOCO_REDIS_URL is not set.",
            hint="Run this on the server's machine, in the folder where `loco up` runs.",
        )
    return Keys.connect(str(url), namespace=settings.namespace)
