"""The wheel of the client, built from the code of this server: the same files give the same bytes.

The form: https://packaging.python.org/en/latest/specifications/binary-distribution-format/
"""

import hashlib
import io
import zipfile
from base64 import urlsafe_b64encode
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

import loco
from loco.contracts.release import CLIENT, release
from loco_api.client.modules import Reach, file_of

#: The time that every file of an archive bears; the first that ZIP can say.
_TIME = (1980, 1, 1, 0, 0, 0)
_NAME = CLIENT.replace("-", "_")
FILENAME = f"{_NAME}-{release()}-py3-none-any.whl"

#: Of the archive at /client: pip takes an address that does not end in .whl for a source tree, and asks
#: the tree's own backend for a wheel. This one hands over the wheel that lies beside it and needs no
#: package index.
_PYPROJECT = """\
[build-system]
requires = []
build-backend = "handover"
backend-path = ["."]
"""
_HANDOVER = '''\
"""Build backend (PEP 517): hands over the wheel that lies here."""

import shutil
from pathlib import Path

_WHEEL = "{filename}"


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    """Puts the wheel where pip wants it; answers its name."""
    shutil.copyfile(Path(__file__).with_name(_WHEEL), Path(wheel_directory, _WHEEL))
    return _WHEEL
'''


class Archive(NamedTuple):
    """A file to download."""

    name: str
    content: bytes


@cache
def wheel() -> Archive:
    """The wheel: `loco` as far as a laptop needs it, the program `loco`, and what it depends on."""
    reach = Reach()
    root = Path(loco.__file__).parent.parent
    files = {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(file_of(module) for module in reach.modules)
    }
    files["loco/py.typed"] = b""
    info = f"{_NAME}-{release()}.dist-info"
    files[f"{info}/METADATA"] = _metadata(reach.packages).encode()
    files[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: locollm\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    files[f"{info}/entry_points.txt"] = b"[console_scripts]\nloco = loco.cli.main:main\n"
    files[f"{info}/RECORD"] = _record(files, f"{info}/RECORD").encode()
    return Archive(FILENAME, _zipped(files))


@cache
def source() -> Archive:
    """A source tree around the wheel, for `pip install http://box:8321/client`."""
    built = wheel()
    folder = f"{_NAME}-{release()}"
    return Archive(
        f"{folder}.zip",
        _zipped(
            {
                f"{folder}/pyproject.toml": _PYPROJECT.encode(),
                f"{folder}/handover.py": _HANDOVER.format(filename=built.name).encode(),
                f"{folder}/{built.name}": built.content,
            }
        ),
    )


def _metadata(packages: set[str]) -> str:
    """The wheel's METADATA; the versions it needs are those the whole of locollm needs.

    Raises:
        RuntimeError: locollm does not declare a package that the client imports.
    """
    declared = {}
    for line in metadata.requires("locollm") or ():
        requirement = Requirement(line)
        if requirement.marker is None:
            declared[requirement.name] = line
    if missing := packages - declared.keys():
        raise RuntimeError(f"locollm does not declare {sorted(missing)}, which its client imports.")
    head = {
        "Metadata-Version": "2.1",
        "Name": CLIENT,
        "Version": release(),
        "Summary": "The client and the command line of a locollm server.",
        "Requires-Python": metadata.metadata("locollm")["Requires-Python"],
    }
    lines = [f"{name}: {value}" for name, value in head.items()]
    lines += [f"Requires-Dist: {declared[name]}" for name in sorted(packages)]
    return "\n".join(lines) + "\n"


def _record(files: dict[str, bytes], itself: str) -> str:
    rows = []
    for name, content in files.items():
        digest = urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        rows.append(f"{name},sha256={digest},{len(content)}")
    return "\n".join([*rows, f"{itself},,"]) + "\n"


def _zipped(files: dict[str, bytes]) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, _TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            packed.writestr(entry, content)
    return archive.getvalue()
