"""The Celery worker of queue `cpu`: prepare, register, eval.

python -m loco_worker
celery -A loco_worker.app worker --queues cpu
"""

from loco.contracts.stages import Queue
from loco.ledger.ledger import Ledger
from loco.running.worker import worker_app
from loco.serving.latest import follow_all
from loco.serving.withdrawal import clear_withdrawn
from loco.settings import Settings


def _serve(ledger: Ledger, ollama_host: str) -> None:
    follow_all(ledger, ollama_host)
    clear_withdrawn(ledger, ollama_host)


app = worker_app(Settings.from_environment(), Queue.CPU, module=__name__, serve=_serve)
