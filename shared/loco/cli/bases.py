"""`loco bases`: the base models a recipe may name, and which of them fit a card."""

from typing import Annotated

import typer
from rich.text import Text

from loco.cli.console import client, note, show, show_json
from loco.cli.listing import Listing
from loco.contracts.errors import InvalidRequest
from loco.contracts.plans import Device
from loco.contracts.previews import BaseFit


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(bases)


def bases(
    context: typer.Context,
    *,
    gpu_memory: Annotated[
        float | None,
        typer.Option(help="Check a GPU with this much memory (GB) instead of the worker's."),
    ] = None,
    gpu_name: Annotated[str | None, typer.Option(help='Name of that GPU, like "RTX 3070".')] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")] = False,
) -> None:
    """List the base models and which of them fit this card."""
    if gpu_name is not None and gpu_memory is None:
        raise InvalidRequest(
            "--gpu-name needs --gpu-memory: cards with the same name come with different "
            "amounts of memory.",
            param="--gpu-memory",
            hint="Add the memory in GB, like --gpu-memory 8.",
        )
    with client(context) as loco:
        found = loco.bases(gpu_memory=gpu_memory, gpu_name=gpu_name)
    if as_json:
        show_json(found)
        return
    device = Device.model_validate(found["device"]) if found["device"] else None
    rows = Listing(
        *("base model", "size", _fits(device), "smallest card", "download", "license"),
        right=_RIGHT,
        spare=("size", "smallest card"),
        below="license",
    )
    for entry in found["data"]:
        rows.add_row(*_row(BaseFit.model_validate(entry)))
    show(rows)
    if device is None:
        note(
            "No worker reports a device to train on. Start one with `loco up`, or give "
            "--gpu-memory."
        )
    else:
        note(
            f"{_where(device, asked=gpu_memory is not None)} Smallest card: the smallest GPU that "
            "can train it. Computed for a recipe with default settings. For yours: `loco plan "
            "ADAPTER --base-model NAME`."
        )


_RIGHT = ("size", "smallest card", "download")


def _fits(device: Device | None) -> str:
    """The heading over whether a base fits: it says what it fits."""
    if device is None:
        return "fits"
    return "on this card" if device.is_gpu else "on this CPU"


def _where(device: Device, *, asked: bool) -> str:
    """What "this card" or "this CPU" is: seldom the machine on which one reads it."""
    memory = f"{device.memory_gb:.4g} GB"
    if asked:
        return f"On this card: whether a {device.name} with {memory} can train it."
    if device.is_gpu:
        return f"On this card: whether the server's {device.name} with {memory} can train it."
    return (
        f"On this CPU: whether the server, which trains without a GPU and has {memory} of RAM, can "
        "train it. A GPU needs less memory, because it can keep the base in 4 bits."
    )


def _row(base: BaseFit) -> tuple[str | Text, ...]:
    fits: dict[bool | None, str | Text] = {
        True: Text("yes", style="green"),
        False: Text("no", style="red"),
        None: "",
    }
    return (
        base.name,
        f"{base.parameters_billion:g} B",
        fits[base.fits],
        f"~{base.smallest_card_gb} GB" if base.smallest_card_gb else "",
        _download(base),
        Text(base.error.message, style="red") if base.error else base.license or "",
    )


def _download(base: BaseFit) -> str:
    if base.download_gb is None:
        return ""
    return f"~{base.download_gb:.1f} GB" if base.download_gb else "none"
