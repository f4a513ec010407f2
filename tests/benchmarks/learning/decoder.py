"""Continuous batching: requests come when they like, and join the running batch as slots get free.

A thread of its own feeds the device. It enqueues a block of steps, and while that runs looks at how
things stood before it: hands out what ended, computes new prompts, so the device never waits.
"""

import collections
import heapq
import queue
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from decode_slots import Look, Slots, Start

from loco_trainer.merge.lora import Adapter

#: Tokens between two looks at what has ended.
STEPS = 8
#: After so many seconds a request for another model is waited for no longer.
_PATIENCE_SECONDS = 30.0


@dataclass(eq=False)
class Served:
    """A model that can be asked: the base, or the base with an adapter merged."""

    name: str
    adapter: Adapter | None


@dataclass(frozen=True)
class Made:
    """What became of a job."""

    #: Tokens of the answer, the one that ended it among them.
    tokens: list[int]
    ended: bool
    #: Why there is no answer.
    error: str | None = None
    waited: float = 0.0
    seconds: float = 0.0


@dataclass(eq=False)
class Job:
    """One answer that is wanted."""

    served: Served
    start: Start
    #: Called once, in the decoder's thread.
    done: Callable[[Made], None]
    cancelled: bool = False
    asked_at: float = field(default_factory=time.monotonic)
    begun_at: float = 0.0
    #: Number of the first block of steps it takes part in.
    since: int = 0


class Decoder:
    """The thread, and the queue to it.

    Args:
        slots: on a model that wears no adapter.
        steps: tokens between two looks.
    """

    def __init__(self, slots: Slots, steps: int = STEPS) -> None:
        self._slots, self._steps = slots, steps
        self.model = slots.model
        self._inbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._waiting: dict[Served, collections.deque[Job]] = {}
        self._free = list(range(slots.count))
        self._running: dict[int, Job] = {}
        self._worn: Served | None = None
        self._block = 0
        self._looks: collections.deque[Look] = collections.deque()
        self._stopping = False
        on_gpu = slots.model.device.type == "cuda"
        self._behind = 1 if on_gpu else 0
        self._stream = torch.cuda.Stream(slots.model.device) if on_gpu else None
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)
        self._recorded = threading.Event()
        #: What ended the thread, if anything did.
        self.failure: BaseException | None = None
        #: Tokens made so far; jobs ended so far.
        self.tokens, self.jobs = 0, 0

    def start(self) -> None:
        """Starts the thread; comes back when the steps are recorded.

        Raises:
            RuntimeError: they can't be.
        """
        if self._stream is not None:  # the weights came on another stream
            torch.cuda.synchronize(self._stream.device)
        self._thread.start()
        self._recorded.wait()
        if self.failure is not None:
            raise RuntimeError(f"the decoder did not start: {self.failure}") from self.failure

    @property
    def running(self) -> int:
        """Answers that are being made."""
        return len(self._running)

    def submit(self, job: Job) -> None:
        """Queues a job; `done` is called in any case."""
        self._inbox.put(job)
        if self.failure is not None:  # the thread may have left before it saw the job
            self._drain(f"the decoder has failed: {self.failure}")

    def stop(self) -> None:
        """Ends the thread; jobs that run or wait get an error."""
        self._stopping = True
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            if self._stream is not None:
                torch.cuda.set_device(self._stream.device)
            with torch.inference_mode(), self._on_stream():
                self._slots.record()
                self._recorded.set()
                while not self._stopping:
                    self._collect()
                    self._begin()
                    self._step()
            if self._stream is not None:  # nobody takes memory that a step still writes
                self._stream.synchronize()
            self._drain("the decoder has stopped")
        except BaseException as error:  # whoever waits must hear of it
            self.failure = error
            self._recorded.set()
            self._drain(f"the decoder has failed: {type(error).__name__}: {error}")

    def _on_stream(self) -> Any:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _collect(self) -> None:
        """Takes in what was asked; waits where there is nothing else to do."""
        idle = not self._running and not self._waiting
        while True:
            try:
                job = self._inbox.get(block=idle)
            except queue.Empty:
                return
            idle = False
            if job is not None:
                self._waiting.setdefault(job.served, collections.deque()).append(job)

    def _begin(self) -> None:
        """Gives free slots to waiting jobs of the model whose weights are in place."""
        if not self._waiting:
            return
        oldest = min(self._waiting, key=lambda served: self._waiting[served][0].asked_at)
        if self._worn is None or not self._running:
            if self._worn is None or self._worn not in self._waiting or self._impatient(oldest):
                self.model.wear(oldest.adapter)
                self._worn = oldest
        elif self._impatient(oldest):
            return  # those that run finish first
        mine = self._waiting.get(self._worn) if self._worn else None
        starts: list[tuple[int, Start]] = []
        while mine and self._free:
            job = mine.popleft()
            if job.cancelled:
                job.done(Made([], ended=False, error="nobody waits for the answer any more"))
                continue
            slot = heapq.heappop(self._free)
            job.begun_at, job.since = time.monotonic(), self._block + 1
            self._running[slot] = job
            starts.append((slot, job.start))
        self._waiting = {served: jobs for served, jobs in self._waiting.items() if jobs}
        if starts:
            self._slots.begin(starts)

    def _impatient(self, oldest: Served) -> bool:
        waited = time.monotonic() - self._waiting[oldest][0].asked_at
        return oldest is not self._worn and waited > _PATIENCE_SECONDS

    def _step(self) -> None:
        if not self._running:
            self._looks.clear()
            return
        jobs = self._running.values()
        self._block += 1
        self._looks.append(
            self._slots.advance(
                list(self._running),
                self._steps,
                sampled=any(job.start.temperature > 0 for job in jobs),
                longest=max(self._furthest(job) for job in jobs),
            )
        )
        while len(self._looks) > self._behind:
            self._see(self._looks.popleft())

    def _furthest(self, job: Job) -> int:
        """A place its last token can't be past, before the block that is about to run."""
        steps = self._steps * (self._block - job.since)
        return min(job.start.limit - 1, len(job.start.prompt) + steps)

    def _see(self, look: Look) -> None:
        """Hands out the answers that have ended, and frees their slots."""
        look.wait()
        ended, broken, lengths = look.ended.tolist(), look.broken.tolist(), look.lengths.tolist()
        for slot, job in list(self._running.items()):
            if look.number < job.since or not (ended[slot] or job.cancelled):
                continue
            del self._running[slot]
            heapq.heappush(self._free, slot)
            first = len(job.start.prompt)
            tokens = look.made[slot, first : lengths[slot] + 1].tolist()
            self.tokens += len(tokens)
            self.jobs += 1
            now = time.monotonic()
            job.done(
                Made(
                    tokens,
                    ended=bool(tokens) and tokens[-1] in self._slots.ends,
                    error="the model's logits are no numbers" if broken[slot] else None,
                    waited=job.begun_at - job.asked_at,
                    seconds=now - job.begun_at,
                )
            )

    def _drain(self, why: str) -> None:
        """Tells everybody who waits that there will be no answer."""
        jobs = [*self._running.values(), *(job for w in self._waiting.values() for job in w)]
        self._running, self._waiting = {}, {}
        while True:
            try:
                job = self._inbox.get_nowait()
            except queue.Empty:
                break
            if job is not None:
                jobs.append(job)
        for job in jobs:
            job.done(Made([], ended=False, error=why))
