"""The process that renders templates: started when it is needed, ended when it takes too long."""

import asyncio
import contextlib
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Protocol

from loco_modelhost.prompts import child as program
from loco_modelhost.prompts.templates import Message
from loco_modelhost.requests.refusals import Refusal

#: Seconds a template or schema may take; a real one takes milliseconds.
SECONDS = 10.0
#: Bytes of an answer: the longest text, each character as \uXXXX.
_LONGEST_LINE = 128 << 20
_KEPT = ("PATH", "PYTHONPATH", "LANG", "TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")


logger = logging.getLogger(__name__)


class Facts(Protocol):
    """What a template gets to know of the tokenizer: text of BOS and EOS, and who writes BOS."""

    @property
    def adds_bos(self) -> bool:
        """The tokenizer puts BOS before every prompt by itself."""

    @property
    def bos(self) -> str:
        """Text of BOS."""

    @property
    def eos(self) -> str:
        """Text of EOS."""


class Confined:
    """One child of a loaded model, one request after the other. Used from one event loop."""

    def __init__(self, *, seconds: float = SECONDS) -> None:
        """Starts nothing yet.

        Args:
            seconds: that a template or schema may take.
        """
        self._seconds = seconds
        self._turn = asyncio.Lock()
        self._child: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """The child's process ID; None: there is none."""
        return self._child.pid if self._child else None

    async def render(
        self, template: str, messages: Sequence[Message], facts: Facts, *, think: bool
    ) -> str:
        """As `templates.render_jinja`.

        Raises:
            Refusal: the template cannot render these messages, or not within the limits.
        """
        return await self._ask(
            "render",
            template=template,
            messages=[dict(m) for m in messages],
            bos=facts.bos,
            eos=facts.eos,
            think=think,
            add_bos=facts.adds_bos,
        )

    async def grammar(self, form: Mapping[str, Any] | str) -> str:
        """The grammar of a JSON schema, or of "json".

        Raises:
            Refusal: it is none, or makes one beyond the limits.
        """
        return await self._ask("grammar", form=form)

    def close(self) -> None:
        """Ends the child; the next request starts another."""
        child, self._child = self._child, None
        if child is not None and child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()

    async def ended(self) -> None:
        """Ends the child and waits until it is gone."""
        child = self._child
        self.close()
        if child is not None:
            await child.wait()  # nothing has to be drained: it was killed

    async def _ask(self, work: str, **arguments: Any) -> str:
        line = json.dumps({"work": work, "arguments": arguments}).encode() + b"\n"
        async with self._turn:
            answer = await self._answer(line)
        if answer is None:
            what = "chat template" if work == "render" else "format"
            raise Refusal(500, f"{what} error: it takes too long or too much memory")
        if "text" in answer:
            return str(answer["text"])
        raise Refusal(answer["status"], answer["error"])

    async def _answer(self, line: bytes) -> dict[str, Any] | None:
        """The child's answer; None: it died or was ended."""
        child = self._child if self._child and self._child.returncode is None else None
        child = child or await self._start()
        assert child.stdin is not None
        assert child.stdout is not None
        raw = b""
        try:
            async with asyncio.timeout(self._seconds):
                child.stdin.write(line)
                await child.stdin.drain()
                raw = await child.stdout.readline()
        except (TimeoutError, OSError, ValueError):
            pass  # too long, dead, or a line without end
        except BaseException:
            self.close()  # nobody waits any more, and the next must not get this answer
            raise
        if not raw.endswith(b"\n"):
            await self.ended()
            return None
        found: dict[str, Any] = json.loads(raw)
        return found

    async def _start(self) -> asyncio.subprocess.Process:
        if not program.STATM.exists():
            _say_unlimited()
        # what a template does is kept from the variables of the server, too
        kept = {name: value for name, value in os.environ.items() if name in _KEPT}
        # numpy's threads would take what memory it may have on a machine of many cores
        kept["OPENBLAS_NUM_THREADS"] = "1"
        self._child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "loco_modelhost.prompts.child", str(os.getpid())),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=kept,
            limit=_LONGEST_LINE,
        )
        return self._child


@cache
def _say_unlimited() -> None:
    logger.warning(
        "%s is missing: templates and grammars are limited to %d s here, but not in memory",
        program.STATM,
        program.CPU_SECONDS,
    )
