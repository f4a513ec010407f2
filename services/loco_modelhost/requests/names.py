"""Model names: `[host/][namespace/]model[:tag]`, with Ollama's defaults and rules."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Self

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"

_PART = {
    "host": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}"),
    "namespace": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}"),
    "model": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"),
    "tag": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"),
}


@dataclass(frozen=True)
class ModelName:
    """A full name. It may be invalid: nothing is joined to a path before `is_valid` is asked."""

    host: str
    namespace: str
    model: str
    tag: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """The name a text means, missing parts filled in."""
        rest, tag = text, DEFAULT_TAG
        if text.rfind(":") > text.rfind("/"):
            rest, _, tag = text.rpartition(":")
        rest = rest.partition("://")[2] or rest
        parts = rest.rsplit("/", 2)
        host, namespace = DEFAULT_HOST, DEFAULT_NAMESPACE
        if len(parts) == 3:
            host, namespace = parts[0], parts[1]
        elif len(parts) == 2:
            namespace = parts[0]
        return cls(host, namespace, parts[-1], tag)

    @property
    def is_valid(self) -> bool:
        """Whether every part is well formed."""
        return all(rule.fullmatch(getattr(self, part)) for part, rule in _PART.items())

    @property
    def path(self) -> PurePosixPath:
        """Where the manifest lies, relative to the manifests folder."""
        return PurePosixPath(self.host, self.namespace, self.model, self.tag)

    @property
    def short(self) -> str:
        """The name as listings show it: defaults left out, the tag always there."""
        prefix = ""
        if self.host != DEFAULT_HOST:
            prefix = f"{self.host}/{self.namespace}/"
        elif self.namespace != DEFAULT_NAMESPACE:
            prefix = f"{self.namespace}/"
        return f"{prefix}{self.model}:{self.tag}"

    def __str__(self) -> str:
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"

    def as_known(self, known: Iterable[Self]) -> Self:
        """This name with the spelling of a known one that differs only in case."""
        for other in known:
            if str(other).casefold() == str(self).casefold():
                return other
        return self
