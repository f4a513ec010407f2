"""A stored model as requests see it: its template, options, capabilities and description."""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from loco_modelhost.prompts import known, templates
from loco_modelhost.requests.names import ModelName
from loco_modelhost.requests.options import Options
from loco_modelhost.requests.refusals import not_found
from loco_modelhost.store.gguf_file import GgufFile
from loco_modelhost.store.store import (
    ADAPTER_LAYER,
    LICENSE_LAYER,
    MESSAGES_LAYER,
    MODEL_LAYER,
    PARAMETERS_LAYER,
    SYSTEM_LAYER,
    TEMPLATE_LAYER,
    Config,
    Layer,
    Manifest,
    Store,
)


@dataclass(frozen=True)
class Model:
    """Everything one manifest says."""

    manifest: Manifest
    config: Config
    weights: Layer
    path: Path
    #: A LoRA that is put on the weights.
    adapter: Path | None
    stored_template: str | None
    system: str
    parameters: dict[str, Any]
    messages: list[dict[str, Any]]
    licenses: tuple[str, ...]

    @classmethod
    def load(cls, store: Store, requested: str, name: ModelName) -> "Model":
        """Reads a model.

        Args:
            store: where it lies.
            requested: the name as the client wrote it, for the message.
            name: the full name.

        Raises:
            Refusal: there is no such model (404).
        """
        manifest = store.manifest(name)
        if not manifest:
            raise not_found(requested)
        layers = {layer.media_type: layer for layer in manifest.layers}

        def text(kind: str) -> str | None:
            return store.read_blob(layers[kind]).decode() if kind in layers else None

        weights = layers[MODEL_LAYER]
        return cls(
            manifest,
            store.config(manifest),
            weights,
            store.blob_path(weights.digest),
            store.blob_path(layers[ADAPTER_LAYER].digest) if ADAPTER_LAYER in layers else None,
            text(TEMPLATE_LAYER),
            text(SYSTEM_LAYER) or "",
            json.loads(text(PARAMETERS_LAYER) or "{}"),
            json.loads(text(MESSAGES_LAYER) or "[]"),
            tuple(
                store.read_blob(layer).decode()
                for layer in manifest.layers
                if layer.media_type == LICENSE_LAYER
            ),
        )

    @property
    def gguf(self) -> GgufFile:
        """The head of the weights' file."""
        return _head(self.path)

    @property
    def loads(self) -> tuple[Path, Path | None]:
        """What is in memory of it: models that differ in settings alone share that."""
        return self.path, self.adapter

    @property
    def loaded_bytes(self) -> int:
        """Bytes of the files that are loaded."""
        kinds = (MODEL_LAYER, ADAPTER_LAYER)
        return sum(layer.size for layer in self.manifest.layers if layer.media_type in kinds)

    @property
    def uses_jinja(self) -> bool:
        """Whether the GGUF's own template renders: it is alone, or can do more than the stored one."""
        jinja = self.gguf.chat_template
        if not jinja:
            return False
        return (
            self.stored_template is None
            or templates.has_tools(jinja)
            or templates.has_thinking(jinja)
        )

    @property
    def template(self) -> str:
        """The template that renders, as /api/show names it."""
        if self.uses_jinja:
            return self.gguf.chat_template
        return self.stored_template or known.PROMPT_ONLY

    @property
    def capabilities(self) -> list[str]:
        """`completion`, and what the rendering template adds to it."""
        found = []
        if self.uses_jinja:
            found += ["tools"] * templates.has_tools(self.template)
            found += ["thinking"] * templates.has_thinking(self.template)
        return [*found, "completion"]

    def options(self, request: dict[str, Any]) -> Options:
        """Defaults, then the model's parameters, then the request's options."""
        return Options().updated(self.parameters).updated(request)

    @property
    def details(self) -> dict[str, Any]:
        """The `details` of listings."""
        return {
            "parent_model": self.weights.source,
            "format": self.config.model_format,
            "family": self.config.model_family,
            "families": list(self.config.model_families),
            "parameter_size": self.config.model_type,
            "quantization_level": self.config.file_type,
        }

    def listed(self) -> dict[str, Any]:
        """The model in /api/tags."""
        name = self.manifest.name.short
        return {
            "name": name,
            "model": name,
            "modified_at": self.manifest.modified_at.isoformat(),
            "size": self.manifest.size,
            "digest": self.manifest.digest,
            "details": self.details,
            "capabilities": self.capabilities,
        }

    def shown(self, system: str, options: dict[str, Any], *, verbose: bool) -> dict[str, Any]:
        """The answer of /api/show; empty values are left out, as in Ollama. `verbose`: with lists."""
        parameters = self.parameters | options
        metadata = self.gguf.metadata | (self.gguf.arrays() if verbose else {})
        information = {
            k: v for k, v in metadata.items()
            if k not in ("general.name", "tokenizer.chat_template")
        }  # fmt: skip
        answer = {
            "license": "\n".join(self.licenses),
            "modelfile": self._modelfile(system or self.system, parameters),
            "parameters": "\n".join(
                f"{key:<30} {_go_value(value)}" for key, value in _each(self.parameters)
            ),
            "template": self.template,
            "system": system or self.system,
            "details": self.details,
            "messages": self.messages,
            "model_info": information | {"general.parameter_count": self.gguf.parameters},
            "tensors": [
                {"name": t.name, "type": t.kind, "shape": t.shape} for t in self.gguf.tensors
            ],
            "capabilities": self.capabilities,
            "modified_at": self.manifest.modified_at.isoformat(),
        }
        return {k: v for k, v in answer.items() if v or k == "model_info"}

    def _modelfile(self, system: str, parameters: dict[str, Any]) -> str:
        lines = [
            '# Modelfile generated by "ollama show"',
            "# To build a new Modelfile based on this, replace FROM with:",
            f"# FROM {self.manifest.name.short}",
            "",
            f"FROM {self.path}",
            *([f"ADAPTER {self.adapter}"] if self.adapter else []),
            f"TEMPLATE {_quoted(self.stored_template or known.PROMPT_ONLY)}",
        ]
        if system:
            lines.append(f"SYSTEM {_quoted(system)}")
        lines += [f"PARAMETER {k} {_quoted(_plain(v))}" for k, v in _each(parameters)]
        lines += [f"LICENSE {_quoted(text)}" for text in self.licenses]
        lines += [f"MESSAGE {m['role']} {_quoted(m['content'])}" for m in self.messages]
        return "\n".join(lines) + "\n"


@lru_cache(maxsize=256)
def _head(path: Path) -> GgufFile:
    """A blob's head, read once: a blob never changes, its name is its digest."""
    return GgufFile.read(path)


def human_number(count: int) -> str:
    """A parameter count as Ollama writes it: 134.52M, 4.0B."""
    if count >= 1_000_000_000:
        return f"{count / 1e9:.1f}B" if count % 1_000_000_000 else f"{count // 10**9}B"
    if count >= 1_000_000:
        return f"{count / 1e6:.2f}M" if count % 1_000_000 else f"{count // 10**6}M"
    return f"{count / 1e3:.0f}K" if count >= 1_000 else str(count)


def _each(parameters: dict[str, Any]) -> list[tuple[str, Any]]:
    """Parameters with each item of a list on its own."""
    return [
        (key, item)
        for key, value in sorted(parameters.items())
        for item in (value if isinstance(value, list) else [value])
    ]


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def _go_value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else _plain(value)


def _quoted(text: str) -> str:
    if "\n" not in text and text == text.strip(" "):
        return text
    return f'"""{text}"""' if '"' in text else f'"{text}"'
