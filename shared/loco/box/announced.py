"""A running `loco up` tells the commands of its user where it is: see `loco.client.running`."""

from pathlib import Path

from loco.box.private import private_folder
from loco.client.running import UP_FILE, Up, note_path, note_text, stale_notes
from loco.contracts.files import write_text


def announce(up: Up, data_dir: Path) -> None:
    """Says in the data folder where its services listen.

    Raises:
        OSError: it cannot be written.
    """
    _write(data_dir / UP_FILE, up.model_dump_json(indent=2) + "\n")


def announce_to_user(data_dir: Path) -> Path:
    """Says in the user's state folder that a server runs on a data folder; answers the file.

    Raises:
        OSError, InvalidRequest: there is no home, or what is there is another user's.
    """
    path = note_path(data_dir)
    private_folder(path.parent)
    for stale in stale_notes():
        stale.unlink(missing_ok=True)
    _write(path, note_text(data_dir))
    return path


def _write(path: Path, text: str) -> None:
    write_text(path, text)
    path.chmod(0o600)  # a Redis URL may carry a password
