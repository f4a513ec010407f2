"""A worker of queue `cpu` whose stages are tests/programs/loop.py: python loop_worker.py."""

import sys
from pathlib import Path

from loco.contracts.stages import Queue, Stage
from loco.running.worker import worker_app, worker_arguments
from loco.settings import Settings

LOOP = Path(__file__).with_name("loop.py")


def command(stage: Stage) -> list[str]:
    return [sys.executable, str(LOOP), stage]


sys.path.insert(0, str(Path(__file__).parent))
app = worker_app(Settings.from_environment(), Queue.CPU, module="loop_worker", command=command)

if __name__ == "__main__":
    app.start(["-A", "loop_worker", *worker_arguments(Queue.CPU)])
