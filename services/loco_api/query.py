"""Query parameters that a route does not take are refused: one that was misspelt would be left out in silence.

A route whose parameter is called `NAME[*]` takes `NAME[ANYTHING]`.
"""

from collections.abc import Iterator
from difflib import get_close_matches

from fastapi import Depends, Request
from fastapi.dependencies.models import Dependant

from loco.contracts.errors import InvalidRequest


def refuse_unknown(request: Request) -> None:
    """Raises `InvalidRequest` for the first query parameter that the route does not have."""
    known = sorted(_names(request.scope["route"].dependant))
    for name in request.query_params:
        if name not in known and f"{name.partition('[')[0]}[*]" not in known:
            near = get_close_matches(name, known, 1)
            takes = (
                f"This route takes {', '.join(known)}."
                if known
                else "This route takes no query parameters."
            )
            raise InvalidRequest(
                f"This route has no query parameter {name!r}.",
                param=name,
                hint=f"Did you mean {near[0]}?" if near else takes,
            )


def _names(dependant: Dependant) -> Iterator[str]:
    yield from (parameter.alias for parameter in dependant.query_params)
    for needed in dependant.dependencies:
        yield from _names(needed)


KNOWN_QUERY = Depends(refuse_unknown)
