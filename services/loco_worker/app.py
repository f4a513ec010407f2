"""The Celery worker of queue `cpu`: prepare, register, eval.

python -m loco_worker
celery -A loco_worker.app worker --queues cpu
"""

from loco.contracts.stages import Queue
from loco.running.worker import worker_app
from loco.serving.latest import follow_all
from loco.settings import Settings

app = worker_app(Settings.from_environment(), Queue.CPU, module=__name__, serve=follow_all)
