"""The process that computes with a model (`child`), as the one that serves sees it."""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

from loco.stage.environment import child_environment
from loco_modelhost.engine.session import EngineError
from loco_modelhost.requests.refusals import Refusal

#: Seconds a model may take to load, and more for each GB of the file.
LOAD_SECONDS, LOAD_SECONDS_A_GB = 120.0, 30.0
#: Bytes of one answer: the tokens of a body of 16 MiB.
_LONGEST_LINE = 256 << 20
#: Characters of the child's last words in an error.
_LAST_WORDS = 300


class Process:
    """One child, and who waits for its answers. Used from one event loop."""

    def __init__(
        self,
        path: Path,
        *,
        adapter: Path | None = None,
        slots: int,
        threads: int,
        memory: int,
        load_seconds: float | None = None,
    ) -> None:
        """Starts the child; it loads the model when it is first asked for something.

        Args:
            path: the GGUF.
            adapter: a GGUF LoRA that is put on it.
            slots: contexts that compute side by side.
            threads: CPU threads of each.
            memory: bytes it may write to.
            load_seconds: patience with the first answer.
        """
        size = path.stat().st_size if path.exists() else 0
        self._patience = load_seconds or LOAD_SECONDS + LOAD_SECONDS_A_GB * size / 1e9
        self._command = [
            sys.executable, "-P", "-m", "loco_modelhost.engine.child",
            str(os.getpid()), str(path), str(adapter or ""), str(slots), str(threads), str(memory),
        ]  # fmt: skip
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Queue[dict[str, Any]]] = {}
        self._child: asyncio.subprocess.Process | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._given_up = self._last_words = ""
        self._end: str | None = None
        self._started = asyncio.Event()
        self._running = asyncio.create_task(self._run())

    @property
    def alive(self) -> bool:
        """Whether it can still be asked."""
        return self._end is None

    @property
    def pid(self) -> int | None:
        """The child's process ID; None: it does not run yet."""
        return self._child.pid if self._child else None

    async def ask(self, work: str, **arguments: Any) -> AsyncGenerator[dict[str, Any]]:
        """What comes of one piece of work, the last with `end`. Leaving early cancels it.

        Raises:
            Refusal: as the engine raised it.
            EngineError: llama.cpp failed, or ended.
        """
        number = next(self._numbers)
        answers = self._waiting[number] = asyncio.Queue()
        ended = False
        try:
            await self._started.wait()
            self._say({"id": number, "work": work, **arguments})
            while not ended:
                answer = await answers.get()
                ended = "end" in answer or "error" in answer
                if "error" in answer:
                    raise _error(answer)
                yield answer
        finally:
            del self._waiting[number]
            if not ended and self.alive and self._started.is_set():
                self._say({"cancel": number})

    def end(self) -> None:
        """Ends the child: nothing of it is worth waiting for."""
        if self._child and self._child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._child.kill()
        elif not self._child:
            self._running.cancel()

    async def ended(self) -> None:
        """Ends the child and waits until it is gone."""
        self.end()
        await asyncio.gather(self._running, return_exceptions=True)

    def _say(self, asked: dict[str, Any]) -> None:
        if self._end is not None:
            raise EngineError(self._end)
        assert self._child is not None
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(asked).encode() + b"\n")

    async def _run(self) -> None:
        """Starts the child, hands out its answers, and says how it ended."""
        try:
            self._child = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=_environment(os.environ),
                limit=_LONGEST_LINE,
            )
            loop = asyncio.get_running_loop()
            self._deadline = loop.call_later(self._patience, self._give_up)
            self._started.set()
            await asyncio.gather(self._hand_out(), self._listen())
            code = await self._child.wait()
            self._end = self._given_up or _how(code, self._last_words)
        finally:
            self._end = self._end or "the model's process could not start"
            if self._deadline:
                self._deadline.cancel()
            self._started.set()
            for answers in self._waiting.values():
                answers.put_nowait({"error": self._end})

    async def _hand_out(self) -> None:
        assert self._child is not None
        assert self._child.stdout is not None
        try:
            while line := await self._child.stdout.readline():
                answer = json.loads(line)
                if self._deadline:  # the first: the model is loaded, or was refused
                    self._deadline.cancel()
                if answers := self._waiting.get(answer["id"]):
                    answers.put_nowait(answer)
        except ValueError:  # no JSON, or a line without end
            self._given_up = "the model's process sent an unreadable answer"
            self.end()

    async def _listen(self) -> None:
        """Passes on what the child says on standard error, and keeps the last of it."""
        assert self._child is not None
        assert self._child.stderr is not None
        while said := await self._child.stderr.read(1 << 16):
            text = said.decode(errors="replace")
            sys.stderr.write(text)
            if words := text.strip().splitlines():
                self._last_words = words[-1]

    def _give_up(self) -> None:
        self._given_up = f"unable to load model: it takes more than {self._patience:.0f} seconds"
        self.end()


def _environment(environment: Mapping[str, str]) -> dict[str, str]:
    # a backtrace would start a debugger
    return {**child_environment(environment), "GGML_NO_BACKTRACE": "1"}


def _how(code: int, last_words: str) -> str:
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"exit code {code}"
    how = f"llama runner process has terminated: {name}"
    return f"{how}: {last_words:.{_LAST_WORDS}}" if last_words else how


def _error(answer: dict[str, Any]) -> Exception:
    if "status" in answer:
        return Refusal(answer["status"], answer["error"])
    return EngineError(answer["error"])
