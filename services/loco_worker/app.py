"""The Celery worker of queue `cpu`: prepare, register, eval.

python -m loco_worker
celery -A loco_worker.app worker --queues cpu
"""

from loco.settings import Settings
from loco.stages import Queue
from loco.worker import worker_app

app = worker_app(Settings.from_environment(), Queue.CPU, module=__name__)
