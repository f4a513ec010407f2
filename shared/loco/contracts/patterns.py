r"""Regular expressions that users write, kept from costing more than a blink.

Python's `re` takes exponential time on some patterns and has no time limit. RE2 takes time linear in
the text, whatever the pattern, so its verdict does not depend on how busy the machine is either. Its
syntax (https://github.com/google/re2/wiki/Syntax) is Perl's without backreferences and lookaround;
`\d`, `\w` and `\b` mean ASCII, `\p{L}` any letter.
"""

from functools import lru_cache
from typing import Protocol, cast

#: Longest pattern in characters.
LONGEST_PATTERN = 1000
#: RE2 unrolls `a{1000}`: its time a character grows with the instructions of the program.
LARGEST_PROGRAM = 10_000
#: Instructions times bytes of a text that a search may cost: under a second on one slow core.
LARGEST_SEARCH = 50_000_000


class Found(Protocol):
    """A match."""

    def group(self) -> str:
        """The text that matched."""
        ...


class Pattern(Protocol):
    """A compiled pattern, as far as it is used here."""

    #: Instructions of the compiled program.
    programsize: int

    def search(self, text: str) -> Found | None:
        """A match anywhere in the text."""
        ...

    def fullmatch(self, text: str) -> Found | None:
        """A match of the whole text."""
        ...


@lru_cache(maxsize=1024)
def compiled(pattern: str, *, ignore_case: bool = False) -> Pattern:
    """A pattern ready for use.

    Raises:
        ValueError: it is no pattern, or one whose program is too large; says what to change.
    """
    import re2  # noqa: PLC0415 20 ms that only those pay who have a pattern

    options = re2.Options()
    options.log_errors = False
    options.case_sensitive = not ignore_case
    try:
        program = re2.compile(pattern, options)
    except re2.error as error:
        said = error.args[0].decode(errors="replace") if error.args else "unreadable"
        raise ValueError(
            f"{said}; patterns are RE2's: no lookaround, no backreferences, at most 1000 repeats"
        ) from error
    except UnicodeEncodeError as error:
        raise ValueError("half a surrogate pair is not a character") from error
    if program.programsize > LARGEST_PROGRAM:
        raise ValueError(
            f"compiles to {program.programsize:,} instructions, but {LARGEST_PROGRAM:,} are "
            "allowed. Repeat less, or write `+` instead of a counted repetition"
        )
    return cast("Pattern", program)


def affordable(pattern: Pattern, text: str) -> bool:
    """Whether a search of this text stays under `LARGEST_SEARCH`."""
    return pattern.programsize * len(text.encode()) <= LARGEST_SEARCH
