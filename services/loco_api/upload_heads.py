"""What the head and query of an upload say about it."""

import base64
import binascii
import re

from fastapi import Request

from loco.contracts.errors import InvalidRequest


def length_of(request: Request, announced: int | None, *, complete: bool) -> int | None:
    """Bytes of the whole file, where the head says so."""
    declared = request.headers.get("content-length", "")
    sent = int(declared) if complete and re.fullmatch("[0-9]{1,18}", declared) else None
    if announced is not None and sent is not None and announced != sent:
        raise InvalidRequest(
            f"Upload-Length says {announced:,} bytes, but Content-Length says {sent:,}, and "
            "this is the last part.",
            param="Upload-Length",
            hint="Make them equal, or send Upload-Complete: ?0.",
        )
    return sent if announced is None else announced


def mapping_of(pairs: list[str]) -> dict[str, str]:
    """Field to column, of FIELD=COLUMN words."""
    mapping: dict[str, str] = {}
    for pair in pairs:
        field, equals, column = pair.partition("=")
        if not equals or not field.strip() or not column.strip() or field.strip() in mapping:
            raise InvalidRequest(
                f"map: {pair!r:.120} is not FIELD=COLUMN, or names a field twice.",
                param="map",
                hint="Write it like map=question=Frage.",
            )
        mapping[field.strip()] = column.strip()
    return mapping


def sha256_of(header: str | None) -> str | None:
    """The digest of a Repr-Digest field, hexadecimal; none: it has none we know."""
    found = re.search(r"(?:\A|[,\s])sha-256=:([A-Za-z0-9+/=]{44}):", header or "")
    if found is None:
        return None
    try:
        return base64.b64decode(found[1], validate=True).hex()
    except binascii.Error as error:
        raise InvalidRequest(
            f"Repr-Digest: {found[1]} is not base64.", param="Repr-Digest", hint="See RFC 9530."
        ) from error
