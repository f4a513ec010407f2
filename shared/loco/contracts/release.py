"""Which release this is: of the whole of locollm, or of the client alone."""

from importlib import metadata

#: The client alone, as a server builds and serves it (`loco_api.client`).
CLIENT = "locollm-client"
_WHOLE = "locollm"


def release() -> str:
    """The version of what is installed here."""
    return metadata.version(CLIENT if is_client_alone() else _WHOLE)


def is_client_alone() -> bool:
    """Whether what a server needs is not installed here."""
    try:
        metadata.version(_WHOLE)
    except metadata.PackageNotFoundError:
        return True
    return False
