"""The Celery worker of queue `gpu`: train, export.

python -m loco_trainer
celery -A loco_trainer.app worker --queues gpu
"""

from loco.contracts.stages import Queue
from loco.running.worker import worker_app
from loco.settings import Settings

app = worker_app(Settings.from_environment(), Queue.GPU, module=__name__)
