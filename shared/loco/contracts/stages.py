"""The stages of a job: one word each, and the same word is the file, the task and the docs heading."""

from enum import StrEnum
from typing import Self


class Queue(StrEnum):
    """The Celery queue a stage's hints travel on."""

    #: prepare, register, eval: any worker of the runtime venv.
    CPU = "cpu"
    #: train, export: the one worker pinned to a GPU (or to the CPU where there is none).
    GPU = "gpu"


class Stage(StrEnum):
    """A stage of a job, in the order in which a job runs them."""

    #: Writes the training data and keeps the eval questions out of it.
    PREPARE = "prepare"
    #: Fine-tunes a LoRA adapter.
    TRAIN = "train"
    #: Merges, converts to GGUF and quantizes.
    EXPORT = "export"
    #: Creates the model in Ollama and promotes it.
    REGISTER = "register"
    #: Measures the base model against the candidate.
    EVAL = "eval"

    @property
    def queue(self) -> Queue:
        """The queue whose worker runs this stage."""
        return Queue.GPU if self in (Stage.TRAIN, Stage.EXPORT) else Queue.CPU

    @property
    def program(self) -> str:
        """The module that runs this stage by hand: `python -m PROGRAM --spec F --out DIR`."""
        package = "loco_trainer" if self.queue is Queue.GPU else "loco_worker"
        return f"{package}.{self.value}"

    @property
    def reusable(self) -> bool:
        """Whether a committed run with the same inputs can stand in for this stage.

        Register creates a tag named after the job. Eval asks models of Ollama that may have changed
        under their names; answers given before by the same models are known, so it costs little.
        """
        return self not in (Stage.REGISTER, Stage.EVAL)

    @property
    def predecessors(self) -> tuple[Self, ...]:
        """The stages whose outputs this stage may read."""
        order = list(type(self))
        return tuple(order[: order.index(self)])


#: Raised by one when a stage's program changes what it writes, so that older runs are not reused.
STAGE_VERSIONS: dict[Stage, int] = dict.fromkeys(Stage, 1) | {
    Stage.PREPARE: 6,
    Stage.TRAIN: 5,
    Stage.EXPORT: 7,
    Stage.REGISTER: 4,
    Stage.EVAL: 3,
}
