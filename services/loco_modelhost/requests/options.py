"""Options of a generation: Ollama's names, types and defaults (api.DefaultOptions)."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

from loco_modelhost.requests.refusals import Refusal

#: Ollama's default context on a machine with little or no GPU memory, in tokens.
DEFAULT_CONTEXT = 4096
#: Of any number: every float holds the whole numbers up to here.
_LARGEST = 2**53
_MOST_STOPS, _LONGEST_STOP = 100, 1000
_GO_NUMBERS: Mapping[object, str] = {int: "integer", float: "float32"}


@dataclass(frozen=True)
class Options:
    """Sampling and limits. Unknown names are ignored, as Ollama does."""

    num_ctx: int = DEFAULT_CONTEXT
    num_predict: int = -1
    num_keep: int = 4
    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.9
    min_p: float = 0.0
    typical_p: float = 1.0
    repeat_last_n: int = 64
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = -1
    stop: tuple[str, ...] = ()

    def updated(self, values: Mapping[str, Any]) -> Self:
        """These options with some replaced.

        Raises:
            Refusal: a value has the wrong type (500, as Ollama answers).
        """
        kinds = {f.name: f.type for f in fields(self)}
        changes = {
            name: _checked(name, kinds[name], value)
            for name, value in values.items()
            if name in kinds and value is not None
        }
        return replace(self, **changes)

    @property
    def penalizes(self) -> bool:
        """Whether any penalty is set."""
        return self.repeat_last_n != 0 and (
            self.repeat_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0
        )


def _checked(name: str, kind: object, value: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind in (int, float):
        if not number:
            raise Refusal(500, f'option "{name}" must be of type {_GO_NUMBERS[kind]}')
        if not abs(value) <= _LARGEST:  # NaN, too
            raise Refusal(400, f'option "{name}" must be between -{_LARGEST} and {_LARGEST}')
        if name == "num_ctx" and value < 1:
            raise Refusal(400, 'option "num_ctx" must be above 0: leave it out for the default')
        return int(value) if kind is int else float(value)
    if not isinstance(value, list):
        raise Refusal(500, f'option "{name}" must be of type array')
    if not all(isinstance(item, str) for item in value):
        raise Refusal(500, f'option "{name}" must be of an array of strings')
    if len(value) > _MOST_STOPS or any(len(item) > _LONGEST_STOP for item in value):
        raise Refusal(
            400, f'option "{name}" may have {_MOST_STOPS} strings of {_LONGEST_STOP} characters'
        )
    return tuple(value)
