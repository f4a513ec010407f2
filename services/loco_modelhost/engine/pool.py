"""The loaded models: who waits, who runs, who is put out.

A loaded model has a process, and in it slots, each with a context and a thread of its own: the requests
of a slot run one after the other in the order they came, and nothing else touches its context. As
OLLAMA_NUM_PARALLEL. A process that died is replaced by the next request.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from loco_modelhost.engine.process import Process
from loco_modelhost.engine.session import EngineError, Facts, Session, Tally, Tokens
from loco_modelhost.prompts.confined import Confined
from loco_modelhost.requests.refusals import BUSY, Refusal
from loco_modelhost.store.gguf_file import GgufFile
from loco_modelhost.store.models import Model

#: `expires_at` of a model that stays for good.
NEVER = datetime(9999, 1, 1, tzinfo=UTC)

#: Seconds to stay that are as good as for ever (a year).
_FOREVER = 365 * 24 * 3600

#: Bytes for Python, llama.cpp and its buffers, beside weights and contexts.
_ELSE = 4 << 30
#: Bytes llama.cpp keeps of a token of context beside its keys and values (by measure, 40 to 70).
_CELL = 64


@dataclass(eq=False)
class Slot:
    """One of a model's places to generate in: what is asked of it is done in the order it was asked."""

    process: Process
    confined: Confined
    number: int
    context_length: int = 0
    facts: Facts | None = None
    users: int = 0

    async def ready(self, context_length: int) -> Facts:
        """Waits for what came before, and until a context of so many tokens is there.

        Raises:
            EngineError: the model can't be loaded, or has no memory for that context; the one before is
                made again for the next who asks.
        """
        wanted = max(self.context_length, context_length)
        self.facts = Facts(**await self._end("ready", context_length=wanted))
        self.context_length = max(self.context_length, wanted)
        return self.facts

    async def tokenize(self, text: str, most: int | None = None, keep: int = 0) -> Tokens:
        """As `Engine.cut`."""
        return Tokens(**await self._end("tokenize", text=text, most=most, keep=keep))

    async def detokenize(self, tokens: list[int]) -> str:
        """As `Engine.detokenize`."""
        return str(await self._end("detokenize", tokens=tokens))

    async def embed(self, tokens: list[int]) -> list[float]:
        """As `Engine.embed`."""
        vector: list[float] = await self._end("embed", tokens=tokens)
        return vector

    async def pieces(self, session: Session) -> AsyncIterator[str]:
        """Text as it is generated. Leaving the iteration early ends the generation.

        Raises:
            Refusal, EngineError: as the engine raised it.
        """
        asked = self._ask(
            "generate",
            tokens=session.tokens,
            options=asdict(session.options),
            limit=session.context_length,
            grammar=session.grammar,
        )
        async with aclosing(asked) as answers:
            async for answer in answers:
                if "end" in answer:
                    session.tally = Tally(**answer["end"])
                else:
                    yield answer["piece"]

    async def _end(self, work: str, **arguments: Any) -> Any:
        async with aclosing(self._ask(work, **arguments)) as answers:
            return (await anext(answers))["end"]

    def _ask(self, work: str, **arguments: Any) -> AsyncGenerator[dict[str, Any]]:
        asked = {"slot": self.number, "context_length": self.context_length, **arguments}
        return self.process.ask(work, **asked)


@dataclass(eq=False)
class Loaded:
    """A model in memory, or on its way there."""

    model: Model
    process: Process
    confined: Confined
    slots: list[Slot]
    expires_at: datetime = NEVER
    expiry: asyncio.TimerHandle | None = None
    leaving: bool = False

    @property
    def context_length(self) -> int:
        """Tokens of its longest context; 0: there is none yet."""
        return max(slot.context_length for slot in self.slots)

    @property
    def users(self) -> int:
        """Requests that use the model or wait for it."""
        return sum(slot.users for slot in self.slots)

    @property
    def in_memory(self) -> bool:
        """Whether any context is there."""
        return self.process.alive and any(slot.facts for slot in self.slots)

    def slot(self) -> Slot:
        """The slot with the fewest users; the first of equals, so that one user keeps its context."""
        return min(self.slots, key=lambda s: s.users)

    def listed(self) -> dict[str, Any]:
        """The model in /api/ps."""
        name = self.model.manifest.name.short
        return {
            "name": name,
            "model": name,
            "size": self.model.loaded_bytes,
            "digest": self.model.manifest.digest,
            "details": self.model.details,
            "expires_at": self.expires_at.isoformat(),
            "size_vram": 0,
            "context_length": self.context_length,
        }

    def close(self) -> None:
        """Ends the processes of the model, and with them what they hold."""
        if self.expiry:
            self.expiry.cancel()
        self.process.end()
        self.confined.close()


class Pool:
    """Loads models on demand and keeps the last few. Used from one event loop."""

    def __init__(self, *, most_loaded: int = 3, most_waiting: int = 512, parallel: int = 1) -> None:
        self._parallel = parallel
        self._most_loaded = most_loaded
        self._most_waiting = most_waiting
        self._requests = 0
        self._loaded: dict[tuple[Path, Path | None], Loaded] = {}  # the least recently used first

    @asynccontextmanager
    async def use(
        self, model: Model, context_length: int, keep_alive: float
    ) -> AsyncIterator[Slot]:
        """A place in a loaded model, which is kept for `keep_alive` seconds afterwards.

        Raises:
            Refusal: too many requests wait (503).
            EngineError: the model can't be loaded.
        """
        if self._requests > self._most_waiting:
            raise Refusal(503, BUSY)
        before = self._loaded.get(model.loads)
        there = before.slot().context_length if before and before.process.alive else 0
        if _context_bytes(model.gguf, context_length - there) > _available():
            raise EngineError(f"no memory for a context of {context_length} tokens")
        self._requests += 1
        loaded = self._take(model)
        slot = loaded.slot()
        slot.users += 1
        try:
            await slot.ready(context_length)
            yield slot
        except BaseException:
            keep_alive = keep_alive if loaded.in_memory else 0
            raise
        finally:
            self._requests -= 1
            slot.users -= 1
            self._release(loaded, keep_alive)

    def unload(self, model: Model) -> None:
        """Puts a model out now, or when its last request ends."""
        loaded = self._loaded.pop(model.loads, None)
        if not loaded:
            return
        loaded.leaving = True
        if not loaded.users:
            loaded.close()

    def running(self) -> list[Loaded]:
        """The loaded models, the one that stays longest first."""
        return sorted(
            (x for x in self._loaded.values() if x.in_memory),
            key=lambda x: x.expires_at,
            reverse=True,
        )

    async def close(self) -> None:
        """Puts all models out, with the answers that are on their way."""
        every = list(self._loaded.values())
        for loaded in every:
            await asyncio.gather(loaded.process.ended(), loaded.confined.ended())
            self.unload(loaded.model)

    def _take(self, model: Model) -> Loaded:
        if (dead := self._loaded.get(model.loads)) and not dead.process.alive:
            self.unload(dead.model)
        loaded = self._loaded.pop(model.loads, None)
        if not loaded:
            self._make_room()
            loaded = self._start(model)
        loaded.model = model
        if loaded.expiry:
            loaded.expiry.cancel()
        self._loaded[model.loads] = loaded
        return loaded

    def _start(self, model: Model) -> Loaded:
        process = Process(
            model.path,
            adapter=model.adapter,
            slots=self._parallel,
            threads=max(1, cores() // self._parallel),
            memory=memory(model.gguf, model.loaded_bytes, self._parallel),
        )
        confined = Confined()
        slots = [Slot(process, confined, number) for number in range(self._parallel)]
        return Loaded(model, process, confined, slots)

    def _make_room(self) -> None:
        idle = [x for x in self._loaded.values() if not x.users]
        for loaded in idle[: max(0, len(self._loaded) - self._most_loaded + 1)]:
            self.unload(loaded.model)

    def _release(self, loaded: Loaded, keep_alive: float) -> None:
        if loaded.users:
            return
        if loaded.leaving:
            loaded.close()
        elif keep_alive <= 0:
            self.unload(loaded.model)
        elif keep_alive > _FOREVER:
            loaded.expires_at = NEVER
        else:
            loaded.expires_at = datetime.now(UTC) + timedelta(seconds=keep_alive)
            loop = asyncio.get_running_loop()
            loaded.expiry = loop.call_later(keep_alive, self.unload, loaded.model)


def memory(head: GgufFile, size: int, contexts: int) -> int:
    """Bytes that the process of a model may write to.

    Three times the file (llama.cpp repacks weights for the CPU), contexts as long as the model was trained
    for, and what else it takes; never more than four fifths of what the machine has left.

    Args:
        head: of the GGUF; what it says of contexts may be a lie.
        size: bytes of the file.
        contexts: how many.
    """
    wanted = _ELSE + 3 * size + contexts * _context_bytes(head, head.context_length)
    return min(wanted, _available() * 4 // 5)


def _context_bytes(head: GgufFile, tokens: int) -> int:
    return tokens * (head.token_bytes + _CELL)


def _available() -> int:
    """Bytes of memory that programs can still take; all there is where the system does not say."""
    with contextlib.suppress(OSError), open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def cores() -> int:
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
