"""YAML files of the adapters folder, read and validated with errors that name the file and field."""

import re
from collections.abc import Iterable, Iterator
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from loco.contracts.base import Contract
from loco.contracts.errors import InvalidRequest, invalid
from loco.contracts.fields import field_paths

#: libyaml where PyYAML was built with it: the pure Python parser takes most of a submit's time.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
#: A recipe has some kilobytes.
LARGEST_BYTES = 256 * 1024
#: Mappings and lists inside each other; a recipe has five.
DEEPEST = 32
#: Values, those of an alias counted wherever it stands; a recipe has some hundred.
MOST_VALUES = 20_000
#: What YAML 1.1 may take for a number, of more characters than one has reason to have.
_LONG_NUMBER = re.compile(r"[-+.]?[0-9][-+.:_xo0-9a-fA-F]{200,}")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping a YAML file holds; a file that has not changed is not read again.

    Raises:
        InvalidRequest: it is missing, too large, no valid YAML, or no mapping.
    """
    try:
        found = path.stat()
        state = (path, found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino)
        document = _read(*state)
    except FileNotFoundError as error:
        raise InvalidRequest(
            f"There is no {path.name} in {path.parent}.",
            hint="Point LOCO_ADAPTERS_DIR at a folder like the repository's adapters/.",
        ) from error
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}.") from error
    if not isinstance(document, dict):
        raise InvalidRequest(f"{path}: the top level must be a mapping.")
    return deepcopy(document)


@lru_cache(maxsize=256)
def _read(path: Path, *state: int) -> Any:
    """What a file holds; `state` tells one content of it from another."""
    size = state[2]
    if size > LARGEST_BYTES:
        raise InvalidRequest(
            f"{path} has {size:,} bytes. {LARGEST_BYTES:,} are allowed.",
            hint="Put rows into a JSONL file that the recipe names.",
        )
    try:
        return parsed_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise not_yaml(error, where=str(path)) from error


def not_yaml(
    error: yaml.YAMLError | UnicodeDecodeError, *, where: str, param: str | None = None
) -> InvalidRequest:
    """What YAML cannot read, with its line.

    Args:
        error: of `parsed_yaml`.
        where: the file.
        param: the field or option that gave it.
    """
    wrong, hint = str(error), "It must be UTF-8 text, without control characters."
    if isinstance(error, yaml.reader.ReaderError):
        wrong = f"{error.reason} at character {error.position + 1}"
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    if isinstance(error, yaml.MarkedYAMLError) and mark is not None:
        wrong = error.problem or error.context or "unexpected text"
        # the parser stops where it cannot continue, which may be after the fault
        return InvalidRequest(
            f"{where}, line {mark.line + 1}: not valid YAML: {wrong}.",
            param=param,
            hint=f"Look at line {mark.line + 1} and the line before it. Put text with `: `, ` #`, "
            "brackets or quotes in quotes, and indent with spaces.",
        )
    return InvalidRequest(f"{where}: not valid YAML: {wrong}.", param=param, hint=hint)


def parsed_yaml(text: str, *, most: int = MOST_VALUES) -> Any:
    """What a YAML text says.

    It is weighed before it is built: ten lines of aliases to aliases stand for 10^9 values, and libyaml
    crashes on a list in a list 100,000 deep.

    Args:
        text: one document.
        most: values it may have, those of an alias counted wherever it stands.

    Raises:
        yaml.YAMLError: it is none, deeper or larger than anything here has reason to be, or has a value
            that is none of its kind.
    """
    _weigh(yaml.parse(text, Loader=_LOADER), most)
    try:
        return yaml.load(text, Loader=_LOADER)  # noqa: S506 (a safe loader)
    except (ValueError, LookupError, ArithmeticError, AttributeError) as error:
        # what PyYAML's constructors let through: a date that is none, `!!bool perhaps`
        raise yaml.YAMLError(f"a value cannot be read: {error}") from error


def _weigh(events: Iterator[yaml.Event], most: int) -> None:
    """Refuses what is too deep or too much, names itself, or has a key twice."""
    total = 0
    sizes: dict[str, int] = {}  # values of what has an anchor
    texts: dict[str, str] = {}  # of single values that have one
    opened: list[_Open] = []
    for event in events:
        if isinstance(event, yaml.CollectionEndEvent):
            ended = opened.pop()
            if ended.anchor:
                sizes[ended.anchor] = total - ended.before
        if not isinstance(event, yaml.NodeEvent):
            continue
        if isinstance(event, yaml.ScalarEvent) and _is_long_number(event):
            raise _refusal(event, f"a number of {len(event.value):,} characters")
        text = texts.get(event.anchor or "") if isinstance(event, yaml.AliasEvent) else None
        if isinstance(event, yaml.ScalarEvent):
            text = event.value
        if opened and opened[-1].repeats(text):
            raise _refusal(event, "the key appears twice")
        if isinstance(event, yaml.CollectionStartEvent):
            texts.pop(event.anchor or "", None)  # an anchor may be used anew
            opened.append(
                _Open(event.anchor, total, is_mapping=isinstance(event, yaml.MappingStartEvent))
            )
        elif isinstance(event, yaml.ScalarEvent) and event.anchor:
            sizes[event.anchor], texts[event.anchor] = 1, event.value
        size = sizes.get(event.anchor or "") if isinstance(event, yaml.AliasEvent) else 1
        if size is None:
            raise _refusal(event, f"alias *{event.anchor} has no anchor before it")
        total += size
        if total > most:
            raise _refusal(event, f"more than {most:,} values, counting every use of an alias")
        if len(opened) > DEEPEST:
            raise _refusal(event, f"nested more than {DEEPEST} levels deep")


def _is_long_number(event: yaml.ScalarEvent) -> bool:
    """Whether it may take long to build: `1:1:...` counts by sixty, in time that grows with the square."""
    quoted = event.implicit[1]
    return not quoted and _LONG_NUMBER.fullmatch(event.value) is not None


class _Open:
    """A mapping or list whose end has not come.

    Attributes:
        anchor: its name for aliases.
        before: values before it.
    """

    def __init__(self, anchor: str | None, before: int, *, is_mapping: bool) -> None:
        self.anchor = anchor
        self.before = before
        self._keys: set[str] = set()
        self._is_mapping = is_mapping
        self._is_key = False

    def repeats(self, text: str | None) -> bool:
        """Takes the text of the next entry, none of a mapping or list; True: a key that is there already."""
        self._is_key = self._is_mapping and not self._is_key
        if not self._is_key or text is None or text == "<<":
            return False
        known = text in self._keys
        self._keys.add(text)
        return known


class _Refused(yaml.MarkedYAMLError):
    """What YAML allows, and this program does not."""

    def __str__(self) -> str:
        place = self.problem_mark
        return f"{self.problem}{f', line {place.line + 1}' if place else ''}"


def _refusal(event: yaml.Event, problem: str) -> yaml.YAMLError:
    mark: Any = event.start_mark  # libyaml's own class, with the same fields
    return _Refused(problem=problem, problem_mark=mark)


_ModelT = TypeVar("_ModelT", bound=Contract)


def validated(
    model: type[_ModelT], document: Any, *, where: str, known: Iterable[str] | None = None
) -> _ModelT:
    """A document as a model.

    Args:
        model: the contract it has to fulfil.
        document: what was read.
        where: named in front of the field at fault.
        known: the fields it may have; none: those of the model.

    Raises:
        InvalidRequest: `param` names the field at fault, and the hint the one that was meant.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        fields = field_paths(model) if known is None else known
        raise invalid(error, document, where=where, known=fields) from error
