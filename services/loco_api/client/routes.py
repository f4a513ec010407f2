"""GET /client: the client alone, for `pip install http://box:8321/client`. Public code, so no key."""

from fastapi import APIRouter, Response

from loco_api.client.wheel import FILENAME, Archive, source, wheel

#: Where the wheel lies, by the name that pip and uv read its version from.
WHEEL = f"/client/{FILENAME}"

router = APIRouter()


@router.get("/client", include_in_schema=False)
def get_client() -> Response:
    """A source tree that holds the wheel: pip asks it for the wheel and builds nothing."""
    return _sent(source(), "application/zip")


@router.get(WHEEL, include_in_schema=False)
def get_wheel() -> Response:
    """The wheel itself."""
    return _sent(wheel(), "application/octet-stream")


def _sent(archive: Archive, kind: str) -> Response:
    shown = {"Content-Disposition": f'attachment; filename="{archive.name}"'}
    return Response(archive.content, media_type=kind, headers=shown)
