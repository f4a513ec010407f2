"""Creating a model: from uploaded GGUF blobs, or from a stored model with other settings."""

import json
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from loco_modelhost.prompts import known, templates
from loco_modelhost.requests.body import Body
from loco_modelhost.requests.names import ModelName
from loco_modelhost.requests.options import Options
from loco_modelhost.requests.refusals import INVALID_DIGEST, INVALID_NAME, Refusal
from loco_modelhost.store.gguf_file import BrokenGguf, GgufFile, NotGguf
from loco_modelhost.store.models import human_number
from loco_modelhost.store.store import (
    ADAPTER_LAYER,
    LICENSE_LAYER,
    MESSAGES_LAYER,
    MODEL_LAYER,
    PARAMETERS_LAYER,
    SYSTEM_LAYER,
    TEMPLATE_LAYER,
    BlobWriter,
    Config,
    Layer,
    Store,
)

Event = dict[str, Any]

#: Key added to a stored GGUF: the digest it was uploaded under. Ollama rewrites an uploaded GGUF too
#: (since 0.30), so a client that takes one digest for the other fails here as it fails there.
SOURCE_KEY = "locollm.uploaded_digest"

NO_REGISTRY = (
    "pull model manifest: this model host has no registry; create '{name}' from a GGUF file "
    "(POST /api/blobs, then /api/create), or point OLLAMA_HOST at an Ollama"
)

ONE_ADAPTER = "only one adapter is currently supported"
#: Where Ollama stores what no model can be loaded of.
NO_LORA = "supplied adapter is not a GGUF LoRA (general.type adapter, adapter.type lora)"
NO_MODEL = "supplied file is a LoRA adapter; name it in 'adapters', and its base model in 'from'"

_ONLY_GGUF = "supplied file was not in GGUF format"


def create(store: Store, body: Body) -> Iterator[Event]:
    """Creates a model.

    Yields:
        progress, as Ollama words it, the last `{"status": "success"}`.

    Raises:
        Refusal: with the status Ollama answers when nothing was sent yet.
    """
    files, adapters = body.texts_by_name("files"), body.texts_by_name("adapters")
    _check_files(files or {})
    if adapters and not all(adapters.values()):
        raise Refusal(400, INVALID_DIGEST)
    name = store.resolve(body.text("model", "name"))
    if not name.is_valid:
        raise Refusal(400, INVALID_NAME)
    if source := body.text("from"):
        base = store.resolve(source)
        if not base.is_valid:
            raise Refusal(400, INVALID_NAME)
        if not store.manifest(base):
            yield {"status": "pulling manifest"}
            raise Refusal(500, NO_REGISTRY.format(name=source))
        lora = (yield from _adapter(store, adapters)) if adapters is not None else None
        layers = _store(store, name, body, lambda: _layers_of_model(store, base, source, lora))
    elif files is not None:
        head, digest = yield from _uploaded(store, files)
        if head.is_adapter:
            raise Refusal(400, NO_MODEL)
        lora = (yield from _adapter(store, adapters)) if adapters is not None else None
        yield {"status": "validating GGUF model", "total": head.path.stat().st_size}
        with store.new_blob() as blob:
            head.copy_with(SOURCE_KEY, digest, blob)
            layers = _store(store, name, body, lambda: _layers_of_file(store, head, blob, lora))
        if found := known.detected(head.chat_template):
            yield {"status": f"using autodetected template {found.name}"}
    else:
        raise Refusal(400, "neither 'from' or 'files' was specified")
    for layer in layers:
        yield {"status": f"using existing layer {layer.digest}"}
    yield {"status": "writing manifest"}
    yield {"status": "success"}


def pull(body: Body) -> Iterator[Event]:
    """There is no registry here: says so where Ollama reports a failed pull."""
    requested = body.text("model", "name")
    if not ModelName.parse(requested).is_valid:
        raise Refusal(400, INVALID_NAME)
    yield {"status": "pulling manifest"}
    raise Refusal(500, NO_REGISTRY.format(name=requested))


def _check_files(files: dict[str, str]) -> None:
    for path, digest in files.items():
        parts = path.split("/")
        if path != "." and any(part in ("", ".", "..") for part in parts):
            raise Refusal(400, "file path must be relative")
        if not digest:
            raise Refusal(400, INVALID_DIGEST)


def _uploaded(store: Store, files: dict[str, str]) -> Generator[Event, None, tuple[GgufFile, str]]:
    """The one GGUF a request names, and the digest it was uploaded under."""
    if not _looks_like_gguf(store, files):
        raise Refusal(400, "unknown type")
    yield {"status": "parsing GGUF"}
    heads = [(_read(store, digest), digest) for _, digest in sorted(files.items())]
    if len(heads) != 1:
        raise Refusal(400, "this model host takes one GGUF file per model; merge a split one first")
    return heads[0]


def _adapter(store: Store, adapters: dict[str, str]) -> Generator[Event, None, Layer]:
    """The one LoRA a request names. It stays as it was uploaded; whether it fits shows when it is loaded."""
    try:
        if not _looks_like_gguf(store, adapters):
            raise Refusal(400, "unknown type")
        if len(adapters) > 1:
            raise Refusal(400, ONE_ADAPTER)
        yield {"status": "parsing GGUF"}
        (digest,) = adapters.values()
        head = _read(store, digest)
    except Refusal as refusal:  # of adapters Ollama answers every fault so
        raise Refusal(400, refusal.message) from refusal
    if not head.is_adapter:
        raise Refusal(400, NO_LORA)
    return Layer(ADAPTER_LAYER, digest.replace("-", ":"), head.path.stat().st_size)


def _with_adapter(layers: list[Layer], lora: Layer | None) -> list[Layer]:
    if lora is None:
        return layers
    if any(layer.media_type == ADAPTER_LAYER for layer in layers):
        raise Refusal(400, ONE_ADAPTER)
    return [*layers, lora]


def _layers_of_model(
    store: Store, base: ModelName, source: str, lora: Layer | None
) -> tuple[list[Layer], Config]:
    manifest = store.manifest(base)
    if not manifest:  # deleted a moment ago
        raise Refusal(500, NO_REGISTRY.format(name=source))
    layers = [replace(layer, source=base.short) for layer in manifest.layers]
    return _with_adapter(layers, lora), store.config(manifest)


def _layers_of_file(
    store: Store, head: GgufFile, blob: BlobWriter, lora: Layer | None
) -> tuple[list[Layer], Config]:
    """The rewritten weights, and the template and stop strings Ollama would detect in them."""
    layers = [blob.keep(MODEL_LAYER)]
    if found := known.detected(head.chat_template):
        layers.append(store.add_blob(TEMPLATE_LAYER, found.text.encode()))
        parameters = json.dumps(found.parameters)
        layers.append(store.add_blob(PARAMETERS_LAYER, parameters.encode()))
    family, size = head.architecture, human_number(head.parameters)
    config = Config("gguf", family, (family,), size, head.file_type)
    return _with_adapter(layers, lora), config


def _store(
    store: Store, name: ModelName, body: Body, base: Callable[[], tuple[list[Layer], Config]]
) -> list[Layer]:
    """Puts the model under its name. Nobody else changes the store meanwhile."""
    with store.changing:
        layers, config = base()
        layers = _with_settings(store, layers, body)
        store.write_manifest(name, config, layers)
    return layers


def _looks_like_gguf(store: Store, files: dict[str, str]) -> bool:
    """By name as Ollama judges, or by the first bytes of the blob."""
    for path, digest in files.items():
        if PurePosixPath(path).suffix == ".gguf":
            return True
        blob = store.blob_path(digest)
        if not blob.exists():
            return False
        with blob.open("rb") as file:
            if file.read(4) == b"GGUF":
                return True
    return False


def _read(store: Store, digest: str) -> GgufFile:
    path = store.blob_path(digest)
    try:
        return GgufFile.read(path)
    except FileNotFoundError as error:
        raise Refusal(500, f"open {path}: no such file or directory") from error
    except NotGguf as error:
        raise Refusal(400, _ONLY_GGUF) from error
    except BrokenGguf as error:
        raise Refusal(500, str(error)) from error


def _with_settings(store: Store, layers: list[Layer], body: Body) -> list[Layer]:
    """The layers with those the request sets replaced."""
    weights = next(layer for layer in layers if layer.media_type == MODEL_LAYER)
    head = GgufFile.read(store.blob_path(weights.digest))
    if kind := body.text("quantize", "quantization"):
        _refuse_quantization(kind.upper(), head.file_type)

    def put(kind: str, content: bytes) -> None:
        nonlocal layers
        layers = [layer for layer in layers if layer.media_type != kind]
        layers.append(store.add_blob(kind, content))

    if template := body.text("template"):
        # kept whatever it says when the GGUF's own template wins over it anyway
        jinja = head.chat_template
        if not (templates.has_tools(jinja) or templates.has_thinking(jinja)):
            known.check_stored(template)
        put(TEMPLATE_LAYER, template.replace("\r\n", "\n").encode())
    if system := body.text("system"):
        put(SYSTEM_LAYER, system.encode())
    licenses = body.any("license") or []
    layers += [
        store.add_blob(LICENSE_LAYER, str(text).encode())
        for text in ([licenses] if isinstance(licenses, str) else licenses)
    ]
    parameters = {
        key: value
        for layer in layers
        if layer.media_type == PARAMETERS_LAYER
        for key, value in json.loads(store.read_blob(layer)).items()
    } | body.mapping("parameters")
    if parameters:
        Options().updated(parameters)  # refuses wrong types now, not at the first chat
        put(PARAMETERS_LAYER, json.dumps(parameters).encode())
    if messages := body.messages():
        put(MESSAGES_LAYER, json.dumps(messages).encode())
    return layers


def _refuse_quantization(wanted: str, present: str) -> None:
    """Quantizing is the exporter's work here; refuses first what Ollama refuses too."""
    if wanted not in ("F32", "F16", "Q4_K_S", "Q4_K_M", "Q4_K", "Q8_0", "BF16"):
        raise Refusal(
            500,
            f"unsupported quantization type {wanted} - supported types are "
            "F32, F16, Q4_K_S, Q4_K_M, Q8_0",
        )
    if present not in ("F16", "BF16", "F32"):
        raise Refusal(500, "quantization is only supported for F16, BF16 and F32 models")
    raise Refusal(500, "this model host does not quantize; upload a quantized GGUF")
