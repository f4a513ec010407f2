"""The loaded models: who waits, who runs, who is put out.

A loaded model has slots, each with a context and a thread of its own: the requests of a slot run one
after the other in the order they came, and nothing else touches its context. As OLLAMA_NUM_PARALLEL.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from loco_modelhost.engine.engine import Engine, Session, Weights, cores
from loco_modelhost.requests.refusals import BUSY, Refusal
from loco_modelhost.store.models import Model

T = TypeVar("T")

#: `expires_at` of a model that stays for good.
NEVER = datetime(9999, 1, 1, tzinfo=UTC)

#: Seconds to stay that are as good as for ever (a year).
_FOREVER = 365 * 24 * 3600


@dataclass(eq=False)
class Slot:
    """One of a model's places to generate in: a context and the thread that uses it."""

    weights: Weights
    thread: ThreadPoolExecutor
    compute_threads: int
    context_length: int = 0
    engine: Engine | None = None
    users: int = 0

    async def call(self, work: Callable[[Engine], T]) -> T:
        """Runs work on the slot's thread, after what came before."""
        return await asyncio.get_running_loop().run_in_executor(
            self.thread, lambda: work(self._ready())
        )

    async def pieces(self, session: Session) -> AsyncIterator[str]:
        """Text as it is generated. Leaving the iteration early ends the generation.

        Raises:
            Refusal, EngineError: as the engine raised it.
        """
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[str | Exception | None] = asyncio.Queue()

        def generate() -> None:
            end: Exception | None = None
            try:
                for piece in self._ready().pieces(session):
                    loop.call_soon_threadsafe(queue.put_nowait, piece)
            except Exception as error:  # noqa: BLE001  # raised again where the pieces are read
                end = error
            loop.call_soon_threadsafe(queue.put_nowait, end)

        self.thread.submit(generate)
        try:
            while (item := await queue.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            session.cancelled.set()

    def _ready(self) -> Engine:
        """The engine, loaded or grown to the context that is asked for. Runs on the thread."""
        if self.engine and self.engine.context_length < self.context_length:
            self.engine.close()
            self.engine = None
        if not self.engine:
            self.engine = Engine(self.weights, self.context_length, threads=self.compute_threads)
        return self.engine

    def close(self) -> None:
        """Frees the memory once the thread is through with what waits for it."""
        self.thread.submit(lambda: self.engine.close() if self.engine else None)
        self.thread.shutdown(wait=False)


@dataclass(eq=False)
class Loaded:
    """A model in memory, or on its way there."""

    model: Model
    context_length: int
    slots: list[Slot]
    expires_at: datetime = NEVER
    expiry: asyncio.TimerHandle | None = None
    leaving: bool = False

    @property
    def users(self) -> int:
        """Requests that use the model or wait for it."""
        return sum(slot.users for slot in self.slots)

    @property
    def in_memory(self) -> bool:
        """Whether any context is there."""
        return any(slot.engine for slot in self.slots)

    def slot(self) -> Slot:
        """The slot with the fewest users; the first of equals, so that one user keeps its context."""
        slot = min(self.slots, key=lambda s: s.users)
        slot.context_length = max(slot.context_length, self.context_length)
        return slot

    def listed(self) -> dict[str, Any]:
        """The model in /api/ps."""
        name = self.model.manifest.name.short
        return {
            "name": name,
            "model": name,
            "size": self.model.weights.size,
            "digest": self.model.manifest.digest,
            "details": self.model.details,
            "expires_at": self.expires_at.isoformat(),
            "size_vram": 0,
            "context_length": self.context_length,
        }

    def close(self) -> None:
        """Frees the memory once every slot is through with what waits for it."""
        if self.expiry:
            self.expiry.cancel()
        for slot in self.slots:
            slot.close()


class Pool:
    """Loads models on demand and keeps the last few. Used from one event loop."""

    def __init__(self, *, most_loaded: int = 3, most_waiting: int = 512, parallel: int = 1) -> None:
        self._parallel = parallel
        self._most_loaded = most_loaded
        self._most_waiting = most_waiting
        self._requests = 0
        self._loaded: dict[Path, Loaded] = {}  # the least recently used first

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
        self._requests += 1
        loaded = self._take(model, context_length)
        slot = loaded.slot()
        slot.users += 1
        try:
            await slot.call(lambda _: None)
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
        loaded = self._loaded.pop(model.path, None)
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

    def close(self) -> None:
        """Puts all models out."""
        for loaded in list(self._loaded.values()):
            self.unload(loaded.model)

    def _take(self, model: Model, context_length: int) -> Loaded:
        loaded = self._loaded.pop(model.path, None)
        if not loaded:
            self._make_room()
            loaded = Loaded(model, context_length, self._slots(model))
        loaded.model = model
        loaded.context_length = max(loaded.context_length, context_length)
        if loaded.expiry:
            loaded.expiry.cancel()
        self._loaded[model.path] = loaded
        return loaded

    def _slots(self, model: Model) -> list[Slot]:
        weights, name = Weights(model.path), f"engine {model.manifest.name.short}"
        compute_threads = max(1, cores() // self._parallel)
        return [
            Slot(weights, ThreadPoolExecutor(1, thread_name_prefix=name), compute_threads)
            for _ in range(self._parallel)
        ]

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
