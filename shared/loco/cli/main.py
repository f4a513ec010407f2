"""The command line, the same on the laptop and on the GPU box: `loco --help`.

Exit codes: 0 done, 1 the job or the server failed, 2 the request or a setting is wrong, 130 Ctrl-C.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from loco.cli import (
    adapters,
    admin,
    artifacts,
    bases,
    chat,
    check,
    compare,
    data,
    evaluate,
    jobs,
    keys,
    logs,
    new,
    plan,
    remove,
    sweeps,
    versions,
)
from loco.cli.console import Target, note, on_the_server, show, show_error
from loco.cli.interrupts import interrupts_kept
from loco.client.target import key_of
from loco.contracts.errors import InvalidRequest, LocoError
from loco.contracts.release import is_client_alone, release

INTERRUPTED = 130

_GLOBAL_OPTIONS = ("--server", "--api-key", "--api-key-file")

app = typer.Typer(
    name="loco",
    help="Builds LoRA adapters for small language models and puts them to work.",
    epilog="You can put --server, --api-key and --api-key-file anywhere on the line.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
new.add_to(app)
check.add_to(app)
plan.add_to(app)
bases.add_to(app)
jobs.add_to(app)
artifacts.add_to(app)
sweeps.add_to(app)
logs.add_to(app)
remove.add_to(app)
evaluate.add_to(app)
versions.add_to(app)
compare.add_to(app)
chat.add_to(app)
admin.add_to(app)
app.add_typer(adapters.app, name="adapters")
app.add_typer(data.app, name="data")
app.add_typer(keys.app, name="keys")


def _version(asked: bool) -> None:
    if asked:
        show(f"loco {release()}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    server: Annotated[
        str | None,
        typer.Option(
            envvar="LOCO_SERVER",
            help="Address of the server. Default: the `loco up` of this folder, else this machine.",
        ),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            help="API key, see `loco keys`. Other users of this machine can see it here: "
            "LOCO_API_KEY or a file is safer."
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="File that holds the API key (LOCO_API_KEY_FILE).")
    ] = None,
    _version_asked: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print this program's version."
        ),
    ] = False,
) -> None:
    """Builds LoRA adapters for small language models and puts them to work."""
    if api_key is not None:
        note(
            "Other users of this machine can see --api-key. Use LOCO_API_KEY or --api-key-file "
            "instead."
        )
    elif api_key_file is not None:
        api_key = key_of(api_key_file)
    context.obj = Target(server, api_key)


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    # A terminal that cannot show a bar or a dash gets a question mark instead of a crash.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        with interrupts_kept():
            code = app(args=global_options_first(given), prog_name="loco", standalone_mode=False)
    except LocoError as error:
        show_error(error)
        return 2 if error.user_fault else 1
    except typer.TyperException as error:
        # `loco` alone has printed the help and raises with nothing to say
        if error.format_message():
            show_error(_usage(error))
        return error.exit_code
    except ImportError:  # of a module that the client lacks
        if not is_client_alone():
            raise
        show_error(on_the_server())
        return 2
    except typer.Abort:
        return INTERRUPTED
    return code if isinstance(code, int) else 0


def global_options_first(arguments: list[str]) -> list[str]:
    """`loco jobs --server X` as `loco --server X jobs`, which is how the parser wants it."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    front: list[str] = []
    rest: list[str] = []
    words = iter(arguments[:end])
    for word in words:
        if word in _GLOBAL_OPTIONS:
            front += [word, *([value] if (value := next(words, None)) is not None else [])]
        elif word.startswith(tuple(f"{option}=" for option in _GLOBAL_OPTIONS)):
            front.append(word)
        else:
            rest.append(word)
    return front + rest + arguments[end:]


def _usage(error: typer.TyperException) -> LocoError:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "loco"
    return InvalidRequest(error.format_message(), hint=f"See `{command} --help`.")


if __name__ == "__main__":
    sys.exit(main())
