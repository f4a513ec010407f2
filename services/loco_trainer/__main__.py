"""Starts the worker of queue `gpu`: python -m loco_trainer."""

from loco.contracts.stages import Queue
from loco.running.worker import worker_arguments
from loco_trainer.app import app

if __name__ == "__main__":  # the pool child, a fresh interpreter, imports this file again
    app.start(["-A", "loco_trainer.app", *worker_arguments(Queue.GPU)])
