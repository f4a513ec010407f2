"""The process that looks through an upload: one question on standard input, one answer on standard output.

python -P -m loco_api.inspection_child PARENT < question.json
"""

import json
import resource
import sys
import traceback
from pathlib import Path

from loco.contracts.datasets import Format
from loco.contracts.errors import DataError
from loco.datasets.inspect import inspect
from loco.stage.deathsig import die_with_parent

#: Exit code of a fault of ours; the others are the kernel's.
FAULT = 70
_STATM = Path("/proc/self/statm")
#: Bytes of memory beyond what the process has when it starts; pyarrow maps half a gigabyte of it.
MEMORY = 2 * 2**30
#: Seconds of computing.
CPU_SECONDS = 240


def main() -> int:
    """Answers, within the limits."""
    die_with_parent(int(sys.argv[1]))
    _limit(resource.RLIMIT_CPU, CPU_SECONDS)
    _limit(resource.RLIMIT_FSIZE, 0)
    if _STATM.exists():  # elsewhere the time alone is limited
        pages = int(_STATM.read_text(encoding="ascii").split()[0])
        _limit(resource.RLIMIT_AS, pages * resource.getpagesize() + MEMORY)
    asked = json.load(sys.stdin)
    kind = Format(asked["format"]) if asked["format"] else None
    try:
        found = inspect(Path(asked["path"]), kind, asked["mapping"])
        answer = {"found": found.model_dump(mode="json")}
    except DataError as error:
        answer = {"error": error.body.model_dump()}
    except (MemoryError, OverflowError):
        return 1
    except Exception:  # noqa: BLE001 (whatever a library makes of a hostile file)
        traceback.print_exc()
        return FAULT
    # ASCII: a message may quote half a surrogate pair
    sys.stdout.write(json.dumps(answer))
    return 0


def _limit(kind: int, limit: int) -> None:
    """Sets a soft limit, within the hard one that the user has."""
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


if __name__ == "__main__":
    sys.exit(main())
