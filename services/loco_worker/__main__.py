"""Starts the worker of queue `cpu`: python -m loco_worker."""

from loco.contracts.stages import Queue
from loco.running.worker import worker_arguments
from loco_worker.app import app

if __name__ == "__main__":  # the pool child, a fresh interpreter, imports this file again
    app.start(["-A", "loco_worker.app", *worker_arguments(Queue.CPU)])
