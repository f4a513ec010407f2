"""The process that renders templates: started when it is needed, ended when it takes too long."""

import atexit
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from loco_modelhost.prompts.templates import Message
from loco_modelhost.requests.refusals import Refusal

#: Seconds a template or schema may take; a real one takes milliseconds.
SECONDS = 10.0


class Confined:
    """One child at a time, shared by all threads, one request after the other."""

    def __init__(self, *, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)

    def render(
        self,
        template: str,
        messages: Sequence[Message],
        *,
        bos: str,
        eos: str,
        think: bool,
        add_bos: bool,
    ) -> str:
        """As `templates.render_jinja`.

        Raises:
            Refusal: the template cannot render these messages, or not within the limits.
        """
        return self._ask(
            "render",
            template=template,
            messages=[dict(m) for m in messages],
            bos=bos,
            eos=eos,
            think=think,
            add_bos=add_bos,
        )

    def grammar(self, schema: Mapping[str, Any]) -> str:
        """The grammar of a JSON schema.

        Raises:
            Refusal: it is none, or makes one beyond the limits.
        """
        return self._ask("grammar", schema=schema)

    def close(self) -> None:
        """Ends the child; the next request starts another."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.communicate()

    def _ask(self, work: str, **arguments: Any) -> str:
        line = json.dumps({"work": work, "arguments": arguments}).encode() + b"\n"
        with self._lock:
            answer = self._answer(line)
        if answer is None:
            what = "chat template" if work == "render" else "format"
            raise Refusal(500, f"{what} error: it takes too long or too much memory")
        if "text" in answer:
            return str(answer["text"])
        raise Refusal(answer["status"], answer["error"])

    def _answer(self, line: bytes) -> dict[str, Any] | None:
        """The child's answer; None: it died or was ended."""
        child = self._child if self._child and self._child.poll() is None else self._start()
        answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        reader = threading.Thread(target=_exchange, args=(child, line, answers), daemon=True)
        reader.start()
        try:
            raw = answers.get(timeout=self._seconds)
        except queue.Empty:
            raw = b""
        if not raw:
            self.close()
            return None
        found: dict[str, Any] = json.loads(raw)
        return found

    def _start(self) -> subprocess.Popen[bytes]:
        self.close()
        # what a template does is kept from the variables of the server, too
        kept = {k: v for k, v in os.environ.items() if k in ("PATH", "PYTHONPATH", "LANG", "TZ")}
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", "loco_modelhost.prompts.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=kept,
        )
        return self._child


def _exchange(
    child: "subprocess.Popen[bytes]", line: bytes, answers: "queue.SimpleQueue[bytes]"
) -> None:
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(line)
        child.stdin.flush()
        answers.put(child.stdout.readline())
    except (OSError, ValueError):  # it died, or was closed
        answers.put(b"")


_shared = Confined()
render = _shared.render
grammar = _shared.grammar
