"""Whether a worker of this machine is alive: python -m loco.running.alive.

The health check of worker containers. Exit code 0: one with this host name was heard of in the last
minute; 1: none was, or Redis does not answer; the reason is printed.
"""

import socket
import sys

from loco.contracts.errors import LocoError
from loco.ledger.ledger import Ledger
from loco.settings import Settings


def main() -> int:
    """Asks the ledger for this machine's workers."""
    host = socket.gethostname()
    try:
        settings = Settings.from_environment()
        ledger = Ledger.connect(str(settings.redis_url), namespace=settings.namespace)
        alive = [worker.id for worker in ledger.workers() if worker.host == host]
    except LocoError as error:
        print(error.message, file=sys.stderr)  # noqa: T201 (a program; the engine shows this)
        return 1
    print(", ".join(alive) or f"No worker on {host} gave a sign of life in the last minute.")  # noqa: T201
    return 0 if alive else 1


if __name__ == "__main__":
    sys.exit(main())
