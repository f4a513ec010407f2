"""Answers that models have given, on disk: a question is asked once, whatever job asks it.

    ANSWERS_DIR/HASH.jsonl      one file for a model's digest, a server version and its options

An answer is found again only where nothing that decides it differs: model, server, options, system
prompt, question and, of a sample, its seed. Lines are appended under a lock, so jobs may share the folder; a line that a
crash cut in two is passed over.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from loco.serving.host import Answer

#: Answers of models that are not asked now are kept below this; those not used for longest go first.
MOST_BYTES = 512 * 1024 * 1024


class AnswerStore:
    """The answers of every model, as one server with some options gives them."""

    def __init__(self, folder: Path, *, server_version: str, options: Mapping[str, Any]) -> None:
        """Takes the folder, which is made when something is kept.

        Args:
            folder: may be shared between jobs.
            server_version: as the server says it.
            options: all of a request's options.
        """
        self._folder = folder
        self._settings = [server_version, dict(options)]
        self._known: dict[str, dict[str, Answer]] = {}

    def find(
        self, digest: str, question: str, system: str | None, *, seed: int | None = None
    ) -> Answer | None:
        """The answer of a model to a question, if it was asked before.

        Args:
            digest: of the model.
            question: its text.
            system: the system prompt sent with it.
            seed: of a sample; none: the options say it.
        """
        if digest not in self._known:
            file = self._file(digest)
            self._known[digest] = _read(file)
            if self._known[digest]:
                file.touch()  # `prune` spares what was used last
        return self._known[digest].get(_key(question, system, seed))

    def keep(
        self,
        digest: str,
        question: str,
        system: str | None,
        answer: Answer,
        *,
        seed: int | None = None,
    ) -> None:
        """Keeps an answer, unless it failed. Safe to call from several threads.

        An empty one is a failure too, but where a sample was drawn: there it is one of many.
        """
        if not digest or answer.done_reason not in ("stop", "length"):
            return
        if seed is None and not answer.text.strip():
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        row = {"key": _key(question, system, seed), **answer._asdict()}
        line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        with self._file(digest).open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            end = file.seek(0, os.SEEK_END)
            if end:
                file.seek(end - 1)
                if file.read(1) != b"\n":
                    line = b"\n" + line  # a crash cut the last line: it must not spoil this one
            file.write(line)

    def prune(self, *digests: str, most_bytes: int = MOST_BYTES) -> None:
        """Deletes the files not used for longest until the folder is small enough.

        Args:
            digests: of the models about to be asked. Their answers stay however many there are, since
                a file above the limit would else be lost at each start, and they do not count.
            most_bytes: what the others may take together.
        """
        spared = {self._file(digest) for digest in digests}
        files = sorted(
            (
                (stat.st_mtime, stat.st_size, path)
                for path, stat in _files(self._folder)
                if path not in spared
            ),
            reverse=True,
        )
        size = 0
        for _, bytes_, path in files:
            size += bytes_
            if size > most_bytes:
                path.unlink(missing_ok=True)

    def _file(self, digest: str) -> Path:
        return self._folder / f"{_hash(digest, *self._settings)[:40]}.jsonl"


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for path in folder.glob("*.jsonl"):
        with suppress(FileNotFoundError):  # another job prunes too
            yield path, path.stat()


def _read(path: Path) -> dict[str, Answer]:
    found: dict[str, Answer] = {}
    for line in path.read_bytes().split(b"\n") if path.is_file() else ():
        try:
            row = json.loads(line)
            found.setdefault(str(row.pop("key")), Answer(**row))
        except (ValueError, TypeError, KeyError, AttributeError):
            continue  # cut by a crash, or of another release: the question is asked again
    return found


def _key(question: str, system: str | None, seed: int | None) -> str:
    return _hash(question, system) if seed is None else _hash(question, system, seed)


def _hash(*parts: Any) -> str:
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
