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

    malformed: int = Field(0, description="No question or answer, or no number at the end.")
    empty: int = Field(0, description="Empty question or answer.")
    duplicate: int = Field(0, description="The question is a duplicate.")
    overlap: int = Field(0, description="The question overlaps an eval item.")


class Overlap(Contract):
    """A source row that was left out because it overlaps an eval item."""

    row: int = Field(description="Row number in the source, from 1.")
    eval_item: str = Field(description="ID of the eval item, `SET/ID`.")
    rule: str = Field(
        description="`equal` (normalised), `ngram` (a long run of equal words), `calculation` "
        "(the same written-out calculation) or `problem` (a generated problem of "
        "the same kind and numbers)."
    )


class Sampling(Contract):
    """What source self asked and got."""

    model: str = Field(description="The model that was asked, in Ollama.")
    digest: str = Field(description="Its digest.")
    server_version: str = Field(description="Version of the server.")
    questions: int = Field(description="Questions asked.")
    asked: int = Field(description="All answers, including those from earlier runs.")
    known: int = Field(description="Answers reused from earlier runs.")
    right: int = Field(description="Answers that ended by themselves and are right.")
    unfinished: int = Field(description="Answers that num_predict cut.")
    pass_rate: float = Field(
        description="Share of the questions whose first answer is right (pass@1)."
    )
    solved: int = Field(description="Questions answered right without a hint.")
    rows_by_tries: dict[int, int] = Field(
        description="Training rows by the try that found them, from 1, without hinted and gold rows."
    )
    hinted: int = Field(0, description="Training rows whose answer was found with a hint.")
    gold: int = Field(0, description="Training rows with the source's own answer.")
    pairs: int = Field(0, description="Pairs written to preference_data.jsonl.")
    tokens: int = Field(description="Tokens of all answers, including those from earlier runs.")
    tokens_per_second: float | None = Field(
        None, description="Tokens per second of this run's answers. Null: nothing was asked."
    )
    advice: tuple[str, ...] = Field((), description="Advice on the source, given the pass rate.")


class HeldBackRows(Contract):
    """What prepare held back to measure with."""

    set: str = Field(description="The eval set they are.")
    rows: int = Field(description="How many; 0: none, `why` says why not.")
    grader: str | None = Field(
        description="Kind of the grader that was picked for them; `own`: the rows bring theirs."
    )
    why: str = Field(description="Why this grader, or why nothing was held back.")


class PrepareResult(StageResult):
    """Result of prepare."""

    source: str = Field(description="The source in words, with its revision or digest if known.")
    read: int = Field(description="Rows read.")
    kept: int = Field(description="Rows written to training_data.jsonl.")
    dropped: Dropped = Field(description="Rows left out, by reason.")
    overlaps: tuple[Overlap, ...] = Field(description="Which rows overlapped which eval items.")
    eval_items_checked: int = Field(description="Eval items the rows were compared with.")
    eval_sets: dict[str, int] = Field(
        {}, description="Number of problems of each eval set (eval_sets/NAME.jsonl)."
    )
    eval_sources: dict[str, ItemSource] = Field(
        {}, description="Where the problems of each eval set come from."
    )
    held_back: HeldBackRows | None = Field(
        None, description="Rows held back to measure with. Null: the job names its eval sets."
    )
    validation: int = Field(0, description="Rows written to validation_data.jsonl.")
    sampling: Sampling | None = Field(
        None, description="What source self asked. Null for other sources."
    )


class LoggedStep(Contract):
    """One logged optimizer step."""

    step: int = Field(description="Optimizer steps done.")
    part: Literal["training", "preference"] = Field(
        "training", description="Part of training: on the rows, or train.preference."
    )
    epoch: float = Field(description="Passes over the rows or pairs of that part so far.")
    loss: float = Field(
        description="Mean loss of the step's answer tokens, nats per token. For preference: mean loss "
        "of its pairs."
    )
    learning_rate: float = Field(description="Learning rate of the step.")
    grad_norm: float | None = Field(None, description="Gradient norm before clipping.")
    accuracy: float | None = Field(
        None, description="Share of the step's pairs whose margin was above 0, before the step."
    )
    margin: float | None = Field(
        None,
        description="How much more the model prefers the right answers than the reference does: "
        "mean over the step's pairs, before the step, nats.",
    )


class Preference(Contract):
    """What train.preference did."""

    pairs: int = Field(description="Pairs trained on.")
    left_out: int = Field(description="Pairs left out, because an answer ends after max_length.")
    steps: int = Field(description="Optimizer steps, the last of total_steps.")
    first_loss: float = Field(description="Loss of the first of them, mean of its pairs.")
    last_loss: float = Field(description="Loss of the last.")
    first_accuracy: float = Field(
        description="Share of the pairs with a margin above 0 in the first step. The model is "
        "still the reference then, so margins are 0 except for rounding."
    )
    last_accuracy: float = Field(description="The same in the last step.")
    margin: float = Field(description="Mean margin of the last step's pairs, nats.")
    step_seconds: float = Field(description="Median seconds of a step in this attempt.")
    reference_seconds: float = Field(
        description="Seconds this attempt spent measuring the reference. 0: an earlier attempt did."
    )
    seconds: float = Field(description="Seconds of it in this attempt, included in train_seconds.")


class ValidationRow(Contract):
    """The loss of one row that was not trained on."""

    tokens: int = Field(description="Answer tokens of the row.")
    base_loss: float = Field(description="Mean loss before training, nats per token.")
    loss: float = Field(description="Mean loss with the kept adapter, nats per token.")


class ValidationLoss(Contract):
    """The loss on the validation rows at one moment of a training."""

    step: int = Field(
        description="Optimizer steps done. 0: the untrained adapter, which equals the base."
    )
    epoch: float = Field(description="Passes over the training data so far.")
    loss: float = Field(description="Mean loss of the rows' answer tokens, nats per token.")


class TrainResult(StageResult):
    """Result of train."""

    engine: str = Field(description="`unsloth` or `peft`.")
    device: str = Field(description="`cpu` or the GPU's name.")
    dtype: str = Field(description="Number type of the forward pass.")
    base_model: str = Field(description="The base model that was trained.")
    examples: int = Field(description="Rows trained on.")
    tokens: int = Field(description="Tokens of one epoch, padding excluded.")
    conversations: int | None = Field(
        None,
        description="Conversations the rows come from. Fewer than the rows if the chat template "
        "needs one row per answer.",
    )
    cut: int = Field(
        0, description="Rows cut at max_length inside an answer, so the answer has no end."
    )
    dropped: int = Field(
        0,
        description="Rows left out, because the text before the first answer already fills max_length.",
    )
    lost: int = Field(
        0,
        description="Answers left out because they begin after max_length, including those of "
        "dropped rows.",
    )
    trainable_parameters: int = Field(description="Parameters of the adapter.")
    total_steps: int = Field(description="Optimizer steps of the whole run.")
    resumed_from_step: int | None = Field(
        None, description="Step of the checkpoint that training continued from."
    )
    first_loss: float = Field(description="Loss of the first step, nats per token.")
    last_loss: float = Field(
        description="Loss of the last step, nats per token. With train.preference: the last step on "
        "rows."
    )
    train_seconds: float = Field(description="Seconds of this attempt's optimizer steps.")
    tokens_per_second: float = Field(description="Trained tokens per second.")
    peak_gpu_memory_gb: float = Field(
        description="Peak reserved GPU memory, 10^9 bytes; 0 on a CPU."
    )
    log: tuple[LoggedStep, ...] = Field(description="The logged steps, in order.")
    plan: Plan = Field(
        description="The plan at the end of the run, with its expected time and memory."
    )
    attempts: tuple[PlanAttempt, ...] = Field(
        description="Plans tried. More than one if memory ran out or the run was resumed."
    )
    lengths: Lengths = Field(description="How long the rows are.")
    start_seconds: float = Field(
        description="Seconds from the program's start to the end of its first optimizer step, "
        "without waiting for the GPU or downloading a base model."
    )
    step_seconds: float = Field(description="Median seconds of an optimizer step.")
    validation_loss: float | None = Field(
        None, description="Mean loss on the validation rows with the kept adapter."
    )
    base_validation_loss: float | None = Field(
        None, description="The same before training, with the base as kept in memory for training."
    )
    validation: tuple[ValidationRow, ...] = Field(
        (), description="One for each row of validation_data.jsonl that fits max_length."
    )
    validations: tuple[ValidationLoss, ...] = Field(
        (),
        description="The loss on the validation rows before training, after each epoch and at "
        "the end. After a change to a 4-bit base: only those measured with it.",
    )
    best_step: int | None = Field(
        None, description="Step of the lowest of them. If several are equal, the first."
    )
    best_validation_loss: float | None = Field(None, description="The lowest of them.")
    selected_step: int | None = Field(
        None,
        description="Step whose adapter is kept: the last or the best, as `train.select` says.",
    )
    validation_seconds: float = Field(
        0.0, description="Seconds this attempt spent measuring them, not included in train_seconds."
    )
    preference: Preference | None = Field(
        None, description="What train.preference did. Null: not requested."
    )


class Perplexity(Contract):
    """The exported model against the trained one on the same validation rows.

    Perplexity is exp(mean negative log-likelihood of the answer tokens).
    """

    rows: int = Field(description="Validation rows measured.")
    tokens: int = Field(description="Answer tokens measured.")
    trained: float = Field(description="Perplexity of the trained model.")
    exported: float = Field(description="Perplexity of the exported GGUF in llama.cpp.")
    change: float = Field(description="exported / trained - 1.")


class ExportResult(StageResult):
    """Result of export."""

    gguf: str = Field(
        description="Artifact name of the GGUF that is registered: the merged model's, or the adapter's."
    )
    format: ExportFormat = Field("merged", description="What was written.")
    format_reason: str | None = Field(
        None, description="Why it differs from the request, or why it was chosen."
    )
    adapter_gguf: str | None = Field(
        None, description="Artifact name of the adapter's GGUF. Null: not written."
    )
    adapter_size: int = Field(0, description="Its bytes.")
    adapter_sha256: str | None = Field(None, description="Its SHA-256.")
    adapter_seconds: float = Field(0.0, description="Seconds spent writing it.")
    served_base: ServedBase | None = Field(
        None, description="The base that serves the adapter. Null: the merged model is served."
    )
    base_reused: bool = Field(
        False, description="Whether an earlier export had already written that base."
    )
    base_asked: bool = Field(
        False, description="Whether the recipe wants the base served too (`export.base`)."
    )
    base_gguf: str | None = Field(
        None, description="Artifact name of the base after the same export. Null: not requested."
    )
    quantization: str = Field(description="GGUF file type.")
    size: int = Field(description="Size of the GGUF in bytes.")
    sha256: str = Field(description="SHA-256 of the GGUF.")
    weights_sha256: str | None = Field(
        None, description="SHA-256 of its tensors only. The rest of the file contains job and date."
    )
    tensor_types: dict[str, int] = Field(description="Number of tensors of each GGUF type.")
    tensors: int = Field(description="Tensors in the GGUF.")
    system: str | None = Field(
        None,
        description="System prompt that training used for rows without one: the recipe's, or "
        "the chat template's own. Register sends it to Ollama.",
    )
    sample_prompt: str = Field(description="The question in the export's test of the GGUF.")
    sample_answer: str = Field(description="The answer in the export's test of the GGUF.")
    device: str = Field(description="Device that quantized: `cpu` or the GPU's name.")
    read_seconds: float = Field(description="Seconds spent reading base weights and merging.")
    quantize_seconds: float = Field(description="Seconds spent quantizing.")
    write_seconds: float = Field(description="Seconds from the first tensor to the finished file.")
    check_seconds: float = Field(description="Seconds for loading, testing and measuring the GGUF.")
    peak_ram_gb: float = Field(description="Peak resident memory of the export, 10^9 bytes.")
    perplexity: Perplexity | None = Field(
        None, description="Comparison with the trained model. Null without validation rows."
    )


class Registration(Contract):
    """`register.json`: what was registered, with evidence that it is what was exported.

    It exists even if the stage failed: the failed checks say why.
    """

    candidate: str = Field(description="`MODEL:JOB_ID`.")
    digest: str | None = Field(None, description="Digest in Ollama. Null: it is not there.")
    blob: str = Field(description="`sha256:…` of the GGUF.")
    ollama_host: str = Field(description="Base URL of the Ollama that has it.")
    ollama_version: str = Field(description="Version of that Ollama.")
    checks: tuple[Check, ...] = Field(description="The checks, each with what was found.")
    warnings: tuple[str, ...] = Field(
        (), description="Warnings: what should be fixed, but did not fail a check."
    )
    version: Version | None = Field(
        None, description="Its entry in the registry, without a number yet. Null: a check failed."
    )


class RegisterResult(StageResult):
    """Result of register."""

    ollama_host: str = Field(description="Base URL of the Ollama that has it.")
    ollama_version: str = Field(description="Version of that Ollama.")
    candidate: str = Field(description="`MODEL:JOB_ID`, which never changes.")
    digest: str = Field(description="Digest of the candidate in Ollama.")
    blob: str = Field(description="`sha256:…` of the uploaded GGUF.")
    uploaded: bool = Field(description="False if Ollama already had the file.")
    checks: tuple[Check, ...] = Field((), description="What was proven about it, check by check.")
    warnings: tuple[str, ...] = Field(
        (), description="Warnings: what should be fixed, but did not fail a check."
    )
    exported_base: str | None = Field(
        None,
        description="`MODEL:JOB_ID-base`: the base after the same export, if it was written.",
    )
    version: Version | None = Field(
        None, description="Its entry in the registry, without a number yet."
    )
    probe_answer: str = Field(description="The candidate's answer to the probe.")


class Score(Contract):
    """One model on one set of problems."""

    model: str = Field(description="Name of the model in Ollama.")
    correct: int = Field(description="Problems solved.")
    total: int = Field(description="Problems asked.")
    accuracy: float = Field(description="correct / total.")
    low: float = Field(description="Lower end of the 95 % Wilson interval.")
    high: float = Field(description="Upper end of the 95 % Wilson interval.")
    unfinished: int = Field(description="Answers that num_predict cut off before their end.")
    seconds: float = Field(
        description="Total computing time of all answers on the server, in seconds."
    )
    tokens: int = Field(0, description="Tokens of all answers.")
    latency_p50: float | None = Field(
        None,
        description="Median computing time of an answer in seconds, without loading and waiting.",
    )
    latency_p95: float | None = Field(None, description="95th percentile of the computing time.")
    cached: int = Field(0, description="Answers reused from earlier runs.")


class Comparison(Contract):
    """A baseline against the candidate on one set."""

    set: str = Field(description="Name of the set.")
    role: Role = Field(Role.SHOWN, description="`primary` decides, `guard` must not get worse.")
    against: Baseline = Field(Baseline.BASE, description="Which model `base` is.")
    base: Score = Field(description="The model it is compared with.")
    candidate: Score = Field(description="The candidate.")
    gain: float = Field(description="Accuracy of the candidate minus that of the base.")
    low: float | None = Field(None, description="Lower end of the gain's 95 % bootstrap interval.")
    high: float | None = Field(None, description="Upper end of the gain's 95 % bootstrap interval.")
    won: int = Field(description="Problems that only the candidate solved.")
    won_on_cut: int = Field(
        0, description="How many of those had the base's answer cut at num_predict."
    )
    lost: int = Field(description="Problems that only the base solved.")
    p_value: float = Field(description="Exact two-sided McNemar p.")
    smallest_difference: float | None = Field(
        None, description="Smallest difference that this many problems can show to be significant."
    )
    allowance: float | None = Field(None, description="For a guard: how much accuracy it may lose.")


class EvalResult(StageResult):
    """Result of eval."""

    base_model: str = Field(description="Name of the base model in Ollama.")
    candidate: str = Field(description="Name of the candidate in Ollama.")
    comparisons: tuple[Comparison, ...] = Field(
        description="One entry for each set of problems and each baseline."
    )
    contaminated: dict[str, int] = Field(
        {},
        description="Number of problems of each set that overlap a training row. 0 if prepare left them "
        "out.",
    )
    left_out: dict[Baseline, str] = Field(
        {}, description="Baselines that could not be measured, with the reason."
    )
    warnings: tuple[str, ...] = Field(
        (), description="What makes these figures less reliable, one sentence each."
    )
    gate: GateResult | None = Field(
        None, description="What the gate decided. Null in jobs of earlier releases."
    )
