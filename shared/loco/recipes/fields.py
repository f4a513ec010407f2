"""The fields that recipes and requests may set, by their dotted names."""

from functools import cache

from loco.contracts.fields import field_paths
from loco.contracts.requests import JobRequest
from loco.contracts.specs import STAGE_SPECS
from loco.contracts.stages import Stage

#: Fields of a stage that are set at the top of recipe, profile or request.
FROM_THE_TOP = ("base_model", "model_name")
#: The problems no row may overlap: those of eval.sets.
_FOLLOWS = (*(f"{stage}.{name}" for stage in Stage for name in FROM_THE_TOP), "prepare.eval_sets")


@cache
def settable() -> tuple[str, ...]:
    """Fields of a request, and those of each stage with its name in front: `train.lora.r`."""
    fields = [
        f"{stage}.{path}" for stage, spec in STAGE_SPECS.items() for path in field_paths(spec)
    ]
    follows = tuple(f"{name}." for name in _FOLLOWS)
    kept = [f for f in fields if f not in _FOLLOWS and not f.startswith(follows)]
    return (*field_paths(JobRequest), *kept)
