"""Which bases of the catalog fit a card: `GET /bases` and `loco bases` show it.

What fits is the planner's word for the defaults of a recipe (LoRA r 16 on q, k, v and o, rows filled to
1,024 tokens), not a figure somebody wrote down: `loco plan NAME --base-model BASE` says it for a recipe.
"""

from functools import lru_cache
from typing import Any

from loco.contracts.errors import InvalidRequest, OutOfMemory
from loco.contracts.plans import Device, Lengths, Plan, Shape
from loco.contracts.previews import AskedDevice, BaseFit
from loco.contracts.specs import BaseModelSpec, TrainSpec
from loco.ledger.reader import LedgerReader
from loco.planning.facts import device_of, engine_for, shape_of
from loco.planning.needs import fetched
from loco.planning.planner import make_plan
from loco.recipes.catalog import load_catalog
from loco.settings import Settings

#: Memory that NVIDIA cards are sold with, 10^9 bytes.
CARDS_GB = (4, 6, 8, 10, 11, 12, 16, 20, 24, 32, 40, 48, 80, 96, 141, 180)
_LONGEST = TrainSpec.model_fields["max_length"].default
_FULL = Lengths(
    rows=200,
    tokens=200 * _LONGEST,
    answer_tokens=120 * _LONGEST,
    p50=_LONGEST,
    p95=_LONGEST,
    longest=_LONGEST,
)


def bases(
    ledger: LedgerReader, settings: Settings, asked: AskedDevice | None
) -> tuple[list[BaseFit], Device | None]:
    """The catalog, smallest first, and the device that `fits` speaks of.

    Args:
        ledger: its workers say what they train on.
        settings: adapters and models folders.
        asked: a device to plan for; none: that of the newest worker, if one runs.

    Raises:
        InvalidRequest: an entry of the catalog is wrong.
        Busy: it takes longer than who asks has said (`deadline`).
    """
    device = _device(ledger, asked)
    found = [_fit(base, settings, device) for base in load_catalog(settings.adapters_dir).values()]
    return sorted(found, key=lambda fit: (fit.parameters_billion, fit.name)), device


def _device(ledger: LedgerReader, asked: AskedDevice | None) -> Device | None:
    workers = [worker for worker in ledger.workers() if worker.hardware is not None]
    if asked is None and not workers:
        return None
    try:
        return device_of(asked, workers)[0]
    except InvalidRequest:  # only workers that do not train
        return None


def _fit(base: BaseModelSpec, settings: Settings, device: Device | None) -> BaseFit:
    known: dict[str, Any] = {
        "name": base.name,
        "parameters_billion": base.parameters_billion,
        "license": base.license,
        "ollama": base.ollama,
    }
    # without its config, which is no value that can be remembered and is in the shape
    plain = base.model_copy(update={"config": None})
    known["entry"] = plain
    try:
        shape = shape_of(base, settings.models_dir)
    except InvalidRequest as error:
        return BaseFit(**known, error=error.body)
    plan = _planned(plain, shape, device) if device else None
    four_bit = plan.precision == "4bit" if plan else True
    missing = fetched(base, shape, settings.models_dir, four_bit=four_bit)
    return BaseFit(
        **known,
        architecture=shape.model_type,
        smallest_card_gb=_smallest(plain, shape),
        fits=None if device is None else plan is not None,
        memory_gb=plan.memory_gb if plan else None,
        download_gb=round(sum(missing.values()) / 1e9, 2),
    )


def _smallest(base: BaseModelSpec, shape: Shape) -> int | None:
    """The smallest card that is sold on which a plan fits; one that fits a card fits all larger ones."""
    low, high = 0, len(CARDS_GB)
    while low < high:
        middle = (low + high) // 2
        card, _ = device_of(AskedDevice(memory_gb=CARDS_GB[middle]), [])
        if _planned(base, shape, card) is None:
            low = middle + 1
        else:
            high = middle
    return CARDS_GB[low] if low < len(CARDS_GB) else None


@lru_cache(maxsize=2000)
def _planned(base: BaseModelSpec, shape: Shape, device: Device) -> Plan | None:
    """How the base would be trained there; None: it does not fit."""
    spec = TrainSpec(base_model=base)
    try:
        return make_plan(spec, shape, _FULL, device, engine=engine_for(spec, device))
    except OutOfMemory:
        return None
