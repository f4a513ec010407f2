"""What each stage's `result` holds, as the API shows it."""

from typing import Literal

from pydantic import Field

from loco.contracts.base import Contract
from loco.contracts.evaluation import Baseline, GateResult, ItemSource, Role
from loco.contracts.plans import Lengths, Plan, PlanAttempt
from loco.contracts.serving import Check, ServedBase
from loco.contracts.specs import ExportFormat, StageResult
from loco.contracts.versions import Version


class Dropped(Contract):
    """Rows prepare left out, by reason."""

    malformed: int = Field(0, description="No question or answer, or no number to end on.")
    empty: int = Field(0, description="Empty question or answer.")
    duplicate: int = Field(0, description="Question seen before.")
    overlap: int = Field(0, description="Question overlaps an eval item.")


class Overlap(Contract):
    """A source row that was left out because it overlaps an eval item."""

    row: int = Field(description="Row number in the source, from 1.")
    eval_item: str = Field(description="ID of the eval item, `SET/ID`.")
    rule: str = Field(
        description="`equal` (normalised), `ngram` (a long run of words), `calculation` (the same "
        "written-out one) or `problem` (a generator's same kind and numbers)."
    )


class Sampling(Contract):
    """What source self asked and got."""

    model: str = Field(description="The model that was asked, in Ollama.")
    digest: str = Field(description="Its digest.")
    server_version: str = Field(description="Version of the server.")
    questions: int = Field(description="Questions asked.")
    asked: int = Field(description="Answers, those known from earlier runs among them.")
    known: int = Field(description="Answers that were known from earlier runs.")
    right: int = Field(description="Answers that ended by themselves and are right.")
    unfinished: int = Field(description="Answers that num_predict cut.")
    pass_rate: float = Field(
        description="Share of the questions whose first answer is right (pass@1)."
    )
    solved: int = Field(description="Questions with a right answer, hints apart.")
    rows_by_tries: dict[int, int] = Field(
        description="Training rows by the try that gave them, from 1; hinted and gold rows apart."
    )
    hinted: int = Field(0, description="Training rows whose answer was found with a hint.")
    gold: int = Field(0, description="Training rows with the source's own answer.")
    pairs: int = Field(0, description="Pairs written to preference_data.jsonl.")
    tokens: int = Field(
        description="Tokens of the answers, those known from earlier runs among them."
    )
    tokens_per_second: float | None = Field(
        None, description="Tokens of this run's answers a second; none: nothing was asked."
    )
    advice: tuple[str, ...] = Field((), description="What the pass rate says about the source.")


class PrepareResult(StageResult):
    """Result of prepare."""

    source: str = Field(description="The source in words, with its revision or digest if known.")
    read: int = Field(description="Rows read.")
    kept: int = Field(description="Rows written to training_data.jsonl.")
    dropped: Dropped = Field(description="Rows left out, by reason.")
    overlaps: tuple[Overlap, ...] = Field(description="Which rows overlapped which eval items.")
    eval_items_checked: int = Field(description="Eval items the rows were compared with.")
    eval_sets: dict[str, int] = Field(
        {}, description="Eval set to its problems, eval_sets/NAME.jsonl."
    )
    eval_sources: dict[str, ItemSource] = Field(
        {}, description="Eval set to where its problems were taken from."
    )
    validation: int = Field(0, description="Rows written to validation_data.jsonl.")
    sampling: Sampling | None = Field(None, description="What source self asked; none for others.")


class LoggedStep(Contract):
    """One logged optimizer step."""

    step: int = Field(description="Optimizer steps done.")
    part: Literal["training", "preference"] = Field(
        "training", description="What it was a step of: the rows, or train.preference."
    )
    epoch: float = Field(description="Passes over the part's rows or pairs so far.")
    loss: float = Field(
        description="Mean loss of the step's answer tokens, nats a token; of preference: of its pairs."
    )
    learning_rate: float = Field(description="Learning rate of the step.")
    grad_norm: float | None = Field(None, description="Gradient norm before clipping.")
    accuracy: float | None = Field(
        None, description="Share of the step's pairs whose margin was above 0, before the step."
    )
    margin: float | None = Field(
        None,
        description="Mean over the step's pairs, before the step, of how much more likely than in the "
        "reference the right answer was than the wrong one, nats.",
    )


class Preference(Contract):
    """What train.preference did."""

    pairs: int = Field(description="Pairs trained on.")
    left_out: int = Field(description="Pairs left out: one of the answers ends beyond max_length.")
    steps: int = Field(description="Optimizer steps, the last of total_steps.")
    first_loss: float = Field(description="Loss of the first of them, mean of its pairs.")
    last_loss: float = Field(description="Loss of the last.")
    first_accuracy: float = Field(
        description="Share of the pairs with a margin above 0, in the first step; with the reference "
        "itself margins are 0 but for rounding."
    )
    last_accuracy: float = Field(description="The same in the last.")
    margin: float = Field(description="Mean margin of the last step's pairs, nats.")
    step_seconds: float = Field(description="Median seconds of a step in this attempt.")
    reference_seconds: float = Field(
        description="Seconds this attempt measured the reference; 0: an earlier one had."
    )
    seconds: float = Field(description="Seconds of it in this attempt; in train_seconds too.")


class ValidationRow(Contract):
    """The loss of one row that was not trained on."""

    tokens: int = Field(description="Answer tokens of the row.")
    base_loss: float = Field(description="Mean loss before training, nats a token.")
    loss: float = Field(description="Mean loss with the adapter that is kept, nats a token.")


class ValidationLoss(Contract):
    """The loss on the validation rows at one moment of a training."""

    step: int = Field(description="Optimizer steps done; 0: the untrained adapter, so the base.")
    epoch: float = Field(description="Passes over the training data so far.")
    loss: float = Field(description="Mean loss of the rows' answer tokens, nats a token.")


class TrainResult(StageResult):
    """Result of train."""

    engine: str = Field(description="`unsloth` or `peft`.")
    device: str = Field(description="`cpu` or the GPU's name.")
    dtype: str = Field(description="Type the forward pass computes in.")
    base_model: str = Field(description="What was fine-tuned.")
    examples: int = Field(description="Rows trained on.")
    tokens: int = Field(description="Tokens of one epoch, padding excluded.")
    conversations: int | None = Field(
        None,
        description="Conversations they were made of; fewer than rows where the chat template asks "
        "for a row an answer.",
    )
    cut: int = Field(
        0, description="Rows cut at max_length within an answer, which has no end therefore."
    )
    dropped: int = Field(
        0, description="Rows left out: what comes before the first answer alone fills max_length."
    )
    lost: int = Field(
        0,
        description="Answers left out because they begin beyond max_length, those of dropped rows "
        "among them.",
    )
    trainable_parameters: int = Field(description="Parameters of the adapter.")
    total_steps: int = Field(description="Optimizer steps of the whole run.")
    resumed_from_step: int | None = Field(None, description="Step of the checkpoint gone on from.")
    first_loss: float = Field(description="Loss of the first step, nats a token.")
    last_loss: float = Field(
        description="Loss of the last step, of the rows' where train.preference follows, nats a token."
    )
    train_seconds: float = Field(description="Seconds of this attempt's optimizer steps.")
    tokens_per_second: float = Field(description="Tokens trained on a second.")
    peak_gpu_memory_gb: float = Field(
        description="Peak reserved GPU memory, 10^9 bytes; 0 on a CPU."
    )
    log: tuple[LoggedStep, ...] = Field(description="The logged steps, in order.")
    plan: Plan = Field(description="The plan the run ended with, and what it was expected to take.")
    attempts: tuple[PlanAttempt, ...] = Field(
        description="Plans tried: more than one where memory ran out or the run was resumed."
    )
    lengths: Lengths = Field(description="How long the rows are.")
    start_seconds: float = Field(
        description="Seconds from the program's start to the end of its first optimizer step, without "
        "those it waited for the GPU or fetched a base model."
    )
    step_seconds: float = Field(description="Median seconds of an optimizer step.")
    validation_loss: float | None = Field(
        None, description="Mean loss on the validation rows with the adapter that is kept."
    )
    base_validation_loss: float | None = Field(
        None, description="The same before training, by the same base as held in training."
    )
    validation: tuple[ValidationRow, ...] = Field(
        (), description="One for each row of validation_data.jsonl that fits max_length."
    )
    validations: tuple[ValidationLoss, ...] = Field(
        (),
        description="The loss on the validation rows before training, after each epoch and at the "
        "end; after a change to a base held in 4 bits, those measured with it.",
    )
    best_step: int | None = Field(
        None, description="Step of the lowest of them, the first of equal ones."
    )
    best_validation_loss: float | None = Field(None, description="The lowest of them.")
    selected_step: int | None = Field(
        None, description="Step whose adapter is kept: `train.select` says the last or the best."
    )
    validation_seconds: float = Field(
        0.0, description="Seconds this attempt measured them; no part of train_seconds."
    )
    preference: Preference | None = Field(
        None, description="What train.preference did; none: it was not asked for."
    )


class Perplexity(Contract):
    """The exported model against the trained one on the same validation rows.

    Perplexity is exp(mean negative log-likelihood of the answer tokens).
    """

    rows: int = Field(description="Validation rows measured.")
    tokens: int = Field(description="Answer tokens measured.")
    trained: float = Field(description="Of the model as it left training.")
    exported: float = Field(description="Of the exported GGUF in llama.cpp.")
    change: float = Field(description="exported / trained - 1.")


class ExportResult(StageResult):
    """Result of export."""

    gguf: str = Field(
        description="Artifact name of the GGUF that is registered: the merged model's, or the adapter's."
    )
    format: ExportFormat = Field("merged", description="What was written.")
    format_reason: str | None = Field(
        None, description="Why it is not what was asked for, or why it was chosen."
    )
    adapter_gguf: str | None = Field(
        None, description="Artifact name of the adapter's GGUF; none: not written."
    )
    adapter_size: int = Field(0, description="Its bytes.")
    adapter_sha256: str | None = Field(None, description="Its SHA-256.")
    adapter_seconds: float = Field(0.0, description="Seconds spent writing it.")
    served_base: ServedBase | None = Field(
        None, description="What the adapter is served on; none: the merged model is served."
    )
    base_reused: bool = Field(
        False, description="Whether an earlier export had written that base already."
    )
    base_asked: bool = Field(
        False, description="Whether the recipe wants the base served too (`export.base`)."
    )
    base_gguf: str | None = Field(
        None, description="Artifact name of the base through the same export; none: not asked for."
    )
    quantization: str = Field(description="GGUF file type.")
    size: int = Field(description="Size of the GGUF in bytes.")
    sha256: str = Field(description="SHA-256 of the GGUF.")
    weights_sha256: str | None = Field(
        None, description="SHA-256 of its tensors alone; the rest of the file names job and date."
    )
    tensor_types: dict[str, int] = Field(description="GGUF tensor type to number of tensors.")
    tensors: int = Field(description="Tensors in the GGUF.")
    system: str | None = Field(
        None,
        description="System prompt of training where a row has none: the recipe's, else the one the "
        "chat template writes by itself. Register sends it.",
    )
    sample_prompt: str = Field(description="What the GGUF was asked when it was loaded once.")
    sample_answer: str = Field(description="What the GGUF answered when it was loaded once.")
    device: str = Field(description="What quantized: `cpu` or the GPU's name.")
    read_seconds: float = Field(description="Seconds spent reading base weights and merging.")
    quantize_seconds: float = Field(description="Seconds spent quantizing.")
    write_seconds: float = Field(description="Seconds from the first tensor to the finished file.")
    check_seconds: float = Field(description="Seconds of loading, asking and measuring the GGUF.")
    peak_ram_gb: float = Field(description="Peak resident memory of the export, 10^9 bytes.")
    perplexity: Perplexity | None = Field(
        None, description="Against the trained model; none without validation rows."
    )


class Registration(Contract):
    """`register.json`: what was registered, and the evidence that it is what was exported.

    It is there also when the stage failed: the failed checks say why.
    """

    candidate: str = Field(description="`MODEL:JOB_ID`.")
    digest: str | None = Field(None, description="Its digest in Ollama; none: it is not there.")
    blob: str = Field(description="`sha256:…` of the GGUF.")
    ollama_host: str = Field(description="Base URL of the Ollama it went to.")
    ollama_version: str = Field(description="Version of that Ollama.")
    checks: tuple[Check, ...] = Field(description="What was checked, with what was seen.")
    warnings: tuple[str, ...] = Field((), description="What should be mended, but failed nothing.")
    version: Version | None = Field(
        None, description="Its entry in the registry, not numbered yet; none: a check failed."
    )


class RegisterResult(StageResult):
    """Result of register."""

    ollama_host: str = Field(description="Base URL of the Ollama it went to.")
    ollama_version: str = Field(description="Version of that Ollama.")
    candidate: str = Field(description="`MODEL:JOB_ID`, never changed afterwards.")
    digest: str = Field(description="Digest of the candidate in Ollama.")
    blob: str = Field(description="`sha256:…` of the uploaded GGUF.")
    uploaded: bool = Field(description="False when Ollama already had the blob.")
    checks: tuple[Check, ...] = Field((), description="What was proven of it, check by check.")
    warnings: tuple[str, ...] = Field((), description="What should be mended, but failed nothing.")
    exported_base: str | None = Field(
        None,
        description="`MODEL:JOB_ID-base`: the base through the same export, if it was written.",
    )
    version: Version | None = Field(
        None, description="Its entry in the registry, not numbered yet."
    )
    probe_answer: str = Field(description="What the candidate answered to the probe.")


class Score(Contract):
    """One model on one set of problems."""

    model: str = Field(description="Name of the model in Ollama.")
    correct: int = Field(description="Problems solved.")
    total: int = Field(description="Problems asked.")
    accuracy: float = Field(description="correct / total.")
    low: float = Field(description="Lower end of the 95 % Wilson interval.")
    high: float = Field(description="Upper end of the 95 % Wilson interval.")
    unfinished: int = Field(
        description="Answers cut at num_predict instead of ending by themselves."
    )
    seconds: float = Field(description="Seconds the server computed for all answers together.")
    tokens: int = Field(0, description="Tokens of all answers.")
    latency_p50: float | None = Field(
        None, description="Median seconds of an answer, as computed: no loading, no waiting."
    )
    latency_p95: float | None = Field(None, description="95th percentile of the same.")
    cached: int = Field(0, description="Answers taken over from earlier runs.")


class Comparison(Contract):
    """A baseline against the candidate on one set."""

    set: str = Field(description="Name of the set.")
    role: Role = Field(Role.SHOWN, description="`primary` decides, `guard` must not get worse.")
    against: Baseline = Field(Baseline.BASE, description="What `base` is.")
    base: Score = Field(description="The model compared with.")
    candidate: Score = Field(description="The candidate.")
    gain: float = Field(description="Accuracy of the candidate minus that of the base.")
    low: float | None = Field(None, description="Lower end of the gain's 95 % bootstrap interval.")
    high: float | None = Field(None, description="Upper end of the gain's 95 % bootstrap interval.")
    won: int = Field(description="Problems only the candidate solved.")
    won_on_cut: int = Field(
        0, description="Those of them where the base's answer was cut at num_predict."
    )
    lost: int = Field(description="Problems only the base solved.")
    p_value: float = Field(description="Exact two-sided McNemar p.")
    smallest_difference: float | None = Field(
        None, description="Smallest difference so many problems can show to be significant."
    )
    allowance: float | None = Field(None, description="Of a guard: accuracy that may be lost.")


class EvalResult(StageResult):
    """Result of eval."""

    base_model: str = Field(description="Name of the base model in Ollama.")
    candidate: str = Field(description="Name of the candidate in Ollama.")
    comparisons: tuple[Comparison, ...] = Field(
        description="One for each set of problems and baseline."
    )
    contaminated: dict[str, int] = Field(
        {},
        description="Set to its problems that overlap a training row; 0 where prepare kept them out.",
    )
    left_out: dict[Baseline, str] = Field(
        {}, description="Baselines that could not be measured, and why."
    )
    warnings: tuple[str, ...] = Field(
        (), description="What makes these figures less trustworthy, a sentence each."
    )
    gate: GateResult | None = Field(
        None, description="What the gate decided; none in jobs of earlier releases."
    )
