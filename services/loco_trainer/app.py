"""The Celery worker of queue `gpu`: train, export.

python -m loco_trainer
celery -A loco_trainer.app worker --queues gpu
"""

from loco.contracts.stages import Queue
from loco.running.served_bases import clear_unused
from loco.running.worker import worker_app
from loco.settings import Settings

_settings = Settings.from_environment()
app = worker_app(
    _settings,
    Queue.GPU,
    module=__name__,
    tidy=lambda ledger: clear_unused(ledger, _settings.models_dir),
)
