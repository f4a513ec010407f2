"""The Celery worker of queue `gpu`: train, export.

python -m loco_trainer
celery -A loco_trainer.app worker --queues gpu
"""

from loco.settings import Settings
from loco.stages import Queue
from loco.worker import worker_app

app = worker_app(Settings.from_environment(), Queue.GPU, module=__name__)
