"""Renders templates and turns JSON schemas into grammars in a process of its own, with limits.

`{{ 'x' * 10**9 }}` in a template takes all memory there is, two loops inside each other all time, and
a schema's `maxItems` as much of both. What a model or a request brings is never computed in the process
that serves: `python -P -m loco_modelhost.prompts.child PARENT` reads a JSON object a line and answers one
a line. Its own limit on CPU time holds where the one who asks is gone.
"""

import json
import math
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loco.stage.deathsig import die_with_parent
from loco_modelhost.prompts import templates
from loco_modelhost.requests.refusals import Refusal

#: Says what a process has; where it is missing there is no limit on memory, and `confined` says so.
STATM = Path("/proc/self/statm")
#: Bytes of memory beyond what the process has when it starts.
MEMORY = 1 << 30
#: Seconds of computing for one line.
CPU_SECONDS = 15
#: Characters of a prompt or grammar: more than any context takes.
LONGEST_TEXT = 16_000_000


def render(arguments: dict[str, Any]) -> str:
    """`templates.render_jinja`."""
    return templates.render_jinja(arguments.pop("template"), arguments.pop("messages"), **arguments)


def grammar(arguments: dict[str, Any]) -> str:
    """The grammar of a JSON schema, or of any JSON object."""
    if (
        "llama_cpp" not in sys.modules
    ):  # its libraries are mapped whole: gigabytes, where CUDA is one
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        import llama_cpp  # noqa: F401, PLC0415 (half a second that a template need not wait)

        _limit_memory()
    from llama_cpp import llama_grammar  # noqa: PLC0415

    if arguments["form"] == "json":
        return str(llama_grammar.JSON_GBNF)
    return str(llama_grammar.json_schema_to_gbnf(json.dumps(arguments["form"])))


_WORK: dict[str, Callable[[dict[str, Any]], str]] = {"render": render, "grammar": grammar}


def answer(line: bytes) -> dict[str, Any]:
    """What a line asks for: `text`, or `status` and `error`."""
    try:
        asked = json.loads(line)
        text = _WORK[asked["work"]](asked["arguments"])
        if len(text) > LONGEST_TEXT:
            return {"status": 500, "error": f"the result has more than {LONGEST_TEXT:,} characters"}
        return {"text": text}
    except Refusal as refusal:
        return {"status": refusal.status, "error": refusal.message}
    except (MemoryError, RecursionError, OverflowError) as error:
        return {"status": 500, "error": f"it takes too much memory ({type(error).__name__})"}
    except Exception as error:  # noqa: BLE001 (whatever a template or schema brings about)
        return {"status": 500, "error": f"{type(error).__name__}: {error}"}


def main() -> None:
    """Answers until standard input ends."""
    # a terminal's Ctrl-C is for the host, which ends this
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(int(sys.argv[1]))
    _limit_memory()
    for line in sys.stdin.buffer:
        _limit(resource.RLIMIT_CPU, math.ceil(time.process_time()) + CPU_SECONDS)
        sys.stdout.buffer.write(json.dumps(answer(line)).encode() + b"\n")
        sys.stdout.buffer.flush()


def _limit_memory() -> None:
    """Leaves it MEMORY beyond what it has now."""
    if STATM.exists():
        used = int(STATM.read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        _limit(resource.RLIMIT_AS, used + MEMORY)


def _limit(kind: int, limit: int) -> None:
    """Sets a soft limit, within the hard one that the user has."""
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


if __name__ == "__main__":
    main()
