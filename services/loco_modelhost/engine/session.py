"""One generation, as both sides know it: the process that serves and the one that computes."""

from dataclasses import dataclass, field
from threading import Event

from loco_modelhost.requests.options import Options

OVERFLOW = (
    "the prompt is longer than the context length currently available to the model; shorten the "
    "prompt, adjust the context length in settings, or use a model with a longer context length"
)


class EngineError(Exception):
    """llama.cpp could not load or run the model; its own log on standard error says more."""


@dataclass
class Tally:
    """What a finished generation counted. Durations in nanoseconds."""

    prompt_tokens: int = 0
    prompt_ns: int = 0
    generated_tokens: int = 0
    generated_ns: int = 0
    done_reason: str = "stop"


@dataclass
class Session:
    """One generation: iterate `pieces`, then read `tally`."""

    tokens: list[int]
    options: Options
    context_length: int
    grammar: str | None = None
    cancelled: Event = field(default_factory=Event)
    tally: Tally = field(default_factory=Tally)


@dataclass(frozen=True)
class Facts:
    """What a prompt has to know of the tokenizer.

    Attributes:
        adds_bos: it puts BOS before every prompt by itself.
        bos: text of the BOS token; empty: there is none.
        eos: text of the EOS token.
    """

    adds_bos: bool
    bos: str
    eos: str


@dataclass(frozen=True)
class Tokens:
    """A text as tokens.

    Attributes:
        count: of the whole text.
        ids: the tokens, cut where a cut was asked for.
    """

    count: int
    ids: list[int]
