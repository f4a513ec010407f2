"""Blobs and manifests on disk, laid out like Ollama's own models folder.

    blobs/sha256-<hex>                                    content, named by its digest
    manifests/<host>/<namespace>/<model>/<tag>            which blobs make a model

A file appears under its final name only when it is whole (temporary file, fsync, rename).
"""

import hashlib
import json
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from loco_modelhost.requests.names import ModelName
from loco_modelhost.requests.refusals import INVALID_DIGEST, Refusal

MODEL_LAYER = "application/vnd.ollama.image.model"
ADAPTER_LAYER = "application/vnd.ollama.image.adapter"
TEMPLATE_LAYER = "application/vnd.ollama.image.template"
SYSTEM_LAYER = "application/vnd.ollama.image.system"
PARAMETERS_LAYER = "application/vnd.ollama.image.params"
MESSAGES_LAYER = "application/vnd.ollama.image.messages"
LICENSE_LAYER = "application/vnd.ollama.image.license"
CONFIG_LAYER = "application/vnd.docker.container.image.v1+json"

_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_DIGEST = re.compile(r"sha256[:-][0-9a-fA-F]{64}")

#: A blob no manifest names may belong to a create that is about to come; so old ones are removed.
UNUSED_BLOB_SECONDS = 3600


@dataclass(frozen=True)
class Layer:
    """One blob of a model, and what it holds."""

    media_type: str
    digest: str
    size: int
    source: str = ""  # the name of the model it was taken from

    def entry(self) -> dict[str, object]:
        """The layer as a manifest holds it."""
        entry: dict[str, object] = {
            "mediaType": self.media_type,
            "digest": self.digest,
            "size": self.size,
        }
        return entry | ({"from": self.source} if self.source else {})


@dataclass(frozen=True)
class Config:
    """The facts about a model that listings show without opening its GGUF."""

    model_format: str
    model_family: str
    model_families: tuple[str, ...]
    model_type: str
    file_type: str
    architecture: str = "amd64"
    os: str = "linux"


@dataclass(frozen=True)
class Manifest:
    """A stored model.

    Attributes:
        digest: sha256 of the manifest file, hex: it changes whenever any part of the model does.
    """

    name: ModelName
    digest: str
    modified_at: datetime
    config: Layer
    layers: tuple[Layer, ...]

    @property
    def size(self) -> int:
        """Bytes of all blobs."""
        return self.config.size + sum(layer.size for layer in self.layers)


class Store:
    """The folder of one model host."""

    def __init__(self, folder: Path) -> None:
        self._blobs = folder / "blobs"
        self._manifests = folder / "manifests"
        for path in (self._blobs, self._manifests):
            path.mkdir(parents=True, exist_ok=True)
        #: Held by every change of manifests, so that no blob is dropped that another change names.
        self.changing = threading.RLock()

    def blob_path(self, digest: str) -> Path:
        """Where the blob of a digest lies or would lie.

        Raises:
            Refusal: not a sha256 digest (400).
        """
        if not _DIGEST.fullmatch(digest):
            raise Refusal(400, INVALID_DIGEST)
        return self._blobs / digest.replace(":", "-")

    @contextmanager
    def new_blob(self) -> Iterator["BlobWriter"]:
        """A writer whose blob is stored by `keep`, and dropped otherwise."""
        handle, name = tempfile.mkstemp(prefix="incoming-", dir=self._blobs)
        path = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                yield BlobWriter(file, path, self)
        finally:
            path.unlink(missing_ok=True)

    def add_blob(self, media_type: str, content: bytes) -> Layer:
        """Stores a small content."""
        with self.new_blob() as blob:
            blob.write(content)
            return blob.keep(media_type)

    def read_blob(self, layer: Layer) -> bytes:
        """The content of a layer."""
        return self.blob_path(layer.digest).read_bytes()

    def names(self) -> list[ModelName]:
        """All stored models."""
        return [
            ModelName(*path.relative_to(self._manifests).parts)
            for path in self._manifests.glob("*/*/*/*")
            if path.is_file() and not path.name.startswith(".")
        ]

    def resolve(self, text: str) -> ModelName:
        """The name a text means, in the spelling it is stored under (names ignore case)."""
        return ModelName.parse(text).as_known(self.names())

    def manifest(self, name: ModelName) -> Manifest | None:
        """The manifest of a model; None: there is none."""
        if not name.is_valid:
            return None
        path = self._manifests / name.path
        try:
            raw = path.read_bytes()
            modified = path.stat().st_mtime
        except FileNotFoundError:
            return None
        content = json.loads(raw)
        return Manifest(
            name,
            hashlib.sha256(raw).hexdigest(),
            datetime.fromtimestamp(modified, UTC),
            _layer(content["config"]),
            tuple(_layer(entry) for entry in content["layers"]),
        )

    def manifests(self) -> list[Manifest]:
        """All manifests, the newest first."""
        found = [m for name in self.names() if (m := self.manifest(name))]
        return sorted(found, key=lambda m: m.modified_at, reverse=True)

    def write_manifest(self, name: ModelName, config: Config, layers: list[Layer]) -> None:
        """Stores a model under a name; blobs only the replaced one used are removed."""
        replaced = self.manifest(name)
        content = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": self.add_blob(CONFIG_LAYER, json.dumps(asdict(config)).encode()).entry(),
            "layers": [layer.entry() for layer in layers],
        }
        self._replace_manifest(name, json.dumps(content).encode())
        self._drop_unused(replaced)

    def config(self, manifest: Manifest) -> Config:
        """The config blob of a model."""
        values = json.loads(self.read_blob(manifest.config))
        return Config(**{**values, "model_families": tuple(values["model_families"])})

    def copy(self, source: ModelName, destination: ModelName) -> bool:
        """Points one more name at a model; no weights are copied. False: no such source."""
        with self.changing:
            try:
                raw = (self._manifests / source.path).read_bytes()
            except FileNotFoundError:
                return False
            if source != destination:
                replaced = self.manifest(destination)
                self._replace_manifest(destination, raw)
                self._drop_unused(replaced)
        return True

    def delete(self, name: ModelName) -> bool:
        """Removes a name, and the blobs no other name uses. False: there is no such model."""
        with self.changing:
            manifest = self.manifest(name)
            if not manifest:
                return False
            path = self._manifests / name.path
            path.unlink()
            for folder in list(path.parents)[:3]:
                if any(folder.iterdir()):
                    break
                folder.rmdir()
            self._drop_unused(manifest)
        return True

    def prune(self, older_than: float = UNUSED_BLOB_SECONDS) -> None:
        """Removes blobs and leftovers that no manifest names and nothing touched for so long."""
        used = {self.blob_path(digest) for digest in self._used()}
        for path in self._blobs.iterdir():
            if path not in used and time.time() - path.stat().st_mtime > older_than:
                path.unlink(missing_ok=True)

    def _drop_unused(self, gone: Manifest | None) -> None:
        """Removes the blobs of a replaced or deleted model that nothing uses any more."""
        if not gone:
            return
        for digest in {layer.digest for layer in (*gone.layers, gone.config)} - self._used():
            self.blob_path(digest).unlink(missing_ok=True)

    def _used(self) -> set[str]:
        return {
            layer.digest for manifest in self.manifests()
            for layer in (*manifest.layers, manifest.config)
        }  # fmt: skip

    def _replace_manifest(self, name: ModelName, raw: bytes) -> None:
        path = self._manifests / name.path
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        Path(file.name).replace(path)


class BlobWriter:
    """Content on its way into the store, hashed while it is written."""

    def __init__(self, file: BinaryIO, path: Path, store: Store) -> None:
        self._file = file
        self._path = path
        self._store = store
        self._hash = hashlib.sha256()
        self._size = 0

    def write(self, data: bytes, /) -> int:
        """Appends bytes."""
        self._hash.update(data)
        self._size += len(data)
        return self._file.write(data)

    @property
    def digest(self) -> str:
        """The digest of what was written so far."""
        return f"sha256:{self._hash.hexdigest()}"

    def keep(self, media_type: str = "") -> Layer:
        """Puts the blob in its place."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._path.replace(self._store.blob_path(self.digest))
        return Layer(media_type, self.digest, self._size)


def _layer(entry: dict[str, object]) -> Layer:
    size = entry["size"]
    assert isinstance(size, int)
    return Layer(str(entry["mediaType"]), str(entry["digest"]), size, str(entry.get("from", "")))
