"""llama.cpp with one model in a process of its own: what ends it costs the answers of that model alone.

A crafted GGUF makes llama.cpp abort, a context of a billion tokens takes all memory, a deep grammar the
stack. `loco_modelhost.engine.process` starts it and writes a JSON object a line on its standard input:

python -P -m loco_modelhost.engine.child PARENT FILE ADAPTER SLOTS THREADS BYTES

Each has an `id` and gets one answer with `end`, or with `error`, and before it what comes of it.
"""

import contextlib
import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from threading import Lock
from typing import Any

import llama_cpp

from loco.stage.deathsig import die_with_parent
from loco_modelhost.engine.engine import Engine, Weights
from loco_modelhost.engine.session import EngineError, Session
from loco_modelhost.requests.options import Options
from loco_modelhost.requests.refusals import Refusal

Answer = dict[str, Any]
Say = Callable[[Answer], None]


class Place:
    """One slot: a context, and the thread that alone uses it."""

    def __init__(self, weights: Weights, threads: int) -> None:
        self.thread = ThreadPoolExecutor(1)
        self._weights = weights
        self._threads = threads
        self._engine: Engine | None = None

    def engine(self, context_length: int) -> Engine:
        """The engine, loaded or grown to the context that is asked for. Runs on the thread."""
        if self._engine and self._engine.context_length < context_length:
            self._engine.close()
            self._engine = None
        if not self._engine:
            self._engine = Engine(self._weights, context_length, threads=self._threads)
        return self._engine


class Desk:
    """Takes what is asked, has it done on the slot's thread, and says what comes of it."""

    def __init__(self, places: list[Place], write: Callable[[bytes], None]) -> None:
        self._places = places
        self._write = write
        self._lock = Lock()
        self._sessions: dict[int, Session] = {}

    def take(self, asked: dict[str, Any]) -> None:
        """Queues one line's work, or cancels what an earlier one asked for."""
        if (cancelled := asked.get("cancel")) is not None:
            if session := self._sessions.get(cancelled):
                session.cancelled.set()
            return
        if asked["work"] == "generate":  # known from now on: it can be cancelled while it waits
            self._sessions[asked["id"]] = _session(asked)
        place = self._places[asked["slot"]]
        place.thread.submit(self._do, place, asked)

    def _do(self, place: Place, asked: dict[str, Any]) -> None:
        number = asked["id"]

        def say(answer: Answer) -> None:
            line = json.dumps({"id": number, **answer}).encode() + b"\n"
            with self._lock:
                self._write(line)

        try:
            say({"end": self._work(place.engine(asked["context_length"]), asked, say)})
        except Refusal as refusal:
            say({"status": refusal.status, "error": refusal.message})
        except EngineError as error:
            say({"error": str(error)})
        except Exception as error:  # noqa: BLE001 (whatever it is, the one who asked gets to know)
            traceback.print_exc()
            say({"error": f"{type(error).__name__}: {error}"})
        finally:
            self._sessions.pop(number, None)

    def _work(self, engine: Engine, asked: dict[str, Any], say: Say) -> Any:
        match asked["work"]:
            case "ready":
                return asdict(engine.facts)
            case "tokenize":
                return asdict(engine.cut(asked["text"], asked["most"], asked["keep"]))
            case "detokenize":
                return engine.detokenize(asked["tokens"])
            case "embed":
                return engine.embed(asked["tokens"])
            case _:
                session = self._sessions[asked["id"]]
                for piece in engine.pieces(session):
                    say({"piece": piece})
                return asdict(session.tally)


def main() -> None:
    """Answers until standard input ends."""
    parent, file, adapter, slots, threads, limit = sys.argv[1:]
    # a terminal's Ctrl-C is for the host, which ends this
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(int(parent))
    answers = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no answer
    _limit_memory(int(limit))
    weights = Weights(Path(file), Path(adapter) if adapter else None)
    places = [Place(weights, int(threads)) for _ in range(int(slots))]
    desk = Desk(places, lambda line: _write_all(answers, line))
    for line in sys.stdin.buffer:
        desk.take(json.loads(line))
    os._exit(0)  # without waiting for what still computes


def _limit_memory(limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if not llama_cpp.llama_supports_gpu_offload():  # a driver's own mappings cannot be told apart
        # memory that is written: the file is mapped, and costs nothing that cannot be taken back
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        most = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    with contextlib.suppress(OSError):  # where there is no such file
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")  # before the host


def _write_all(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def _session(asked: dict[str, Any]) -> Session:
    options = {**asked["options"], "stop": tuple(asked["options"]["stop"])}
    return Session(asked["tokens"], Options(**options), asked["limit"], asked["grammar"])


if __name__ == "__main__":
    main()
