"""What a job would take, before anything is spent: `POST /plan` and `loco plan` show it.

The plan is that of `loco.planning.planner`, from what is known without running: the catalog's shape, the
lengths of earlier or prepared rows, the device of the worker that would train.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from loco.contracts.errors import InvalidRequest, OutOfMemory
from loco.contracts.plans import Device, Engine, Lengths, Plan, Shape
from loco.contracts.previews import Alternative, PlanRequest, Preview
from loco.contracts.requests import JobRequest
from loco.contracts.specs import TrainSpec
from loco.ledger.reader import LedgerReader
from loco.planning.asking import asking_of, notes_on_source
from loco.planning.batches import all_steps
from loco.planning.facts import device_of, engine_for, lengths_of, shape_of
from loco.planning.held_back import notes_on_sets
from loco.planning.history import Correction, History
from loco.planning.lessons import Lessons
from loco.planning.needs import needs_of
from loco.planning.planner import Estimate, estimate, estimates, make_plan, margin_gb, plan_of
from loco.planning.rates import rates
from loco.planning.stage_times import stage_times
from loco.planning.ways import Way, own_split
from loco.recipes.catalog import load_catalog
from loco.recipes.resolve import resolve
from loco.settings import Settings


@dataclass(frozen=True)
class _Case:
    """What the estimates of one preview share."""

    spec: TrainSpec
    shape: Shape
    lengths: Lengths
    device: Device
    engine: Engine
    history: History
    lessons: Lessons

    def estimate(self, way: Way) -> tuple[Estimate, Correction]:
        """What a way takes, its memory and seconds corrected by earlier runs."""
        found = estimate(
            way, self.spec, self.shape, self.lengths, self.device, lessons=self.lessons
        )
        measured = self.history.correction(way, self.spec.base_model.name, self.shape, self.device)
        corrected = replace(
            found,
            step_seconds=found.step_seconds * measured.step,
            pair_step_seconds=found.pair_step_seconds * measured.step,
            start_seconds=found.start_seconds * measured.start + measured.end,
        )
        return corrected, measured

    def alternatives(self, chosen: Estimate) -> Iterator[Alternative]:
        """The recipe's own batches, the fastest in 4 bits, and the fastest there is."""
        all_ways = estimates(
            self.spec,
            self.shape,
            self.lengths,
            self.device,
            engine=self.engine,
            lessons=self.lessons,
        )
        shown = {chosen.way}
        own = own_split(self.spec, self.shape, self.device, engine=self.engine)
        named = [("recipe's own batches", own)]
        small = [e for e in all_ways if e.way.precision == "4bit" and e.fits(self.device)]
        if small:
            named.append(("fastest in 4 bits", min(small, key=lambda e: e.step_seconds).way))
        if self.device.is_gpu:
            named.append(("fastest with more memory", _fastest_unbound(all_ways)))
        for name, way in named:
            if way in shown:
                continue
            shown.add(way)
            found, _ = self.estimate(way)
            yield Alternative(
                name=name,
                plan=plan_of(found, self.spec, self.lengths, name),
                memory=found.memory,
                fits=found.fits(self.device),
                times=round(found.step_seconds / chosen.step_seconds, 2),
            )


def preview(ledger: LedgerReader, settings: Settings, request: PlanRequest) -> Preview:
    """What a job would take; nothing is recorded or started.

    Args:
        ledger: its workers and earlier runs are asked.
        settings: adapters and models folders.
        request: the job, and optionally a device.

    Raises:
        UnknownAdapter, UnknownProfile, UnknownBaseModel, StageGap, InvalidRequest: as for a job.
        OutOfMemory: it does not fit; the hint says what would.
        Busy: it takes longer than who asks has said (`deadline`).
    """
    spec = resolve(settings.adapters_dir, _job(request))
    device, device_from = device_of(request.device, ledger.workers())
    history = History.of(ledger)
    lengths, lengths_from = lengths_of(spec, history, settings)
    case = _Case(
        spec=spec.train,
        shape=shape_of(spec.train.base_model, settings.models_dir),
        lengths=lengths,
        device=device,
        engine=engine_for(spec.train, device),
        history=history,
        lessons=Lessons(history.tried(spec.train.base_model.name)),
    )
    try:
        made = make_plan(
            spec.train, case.shape, lengths, device, engine=case.engine, lessons=case.lessons
        )
    except OutOfMemory as error:
        raise _with_smaller_models(error, case, settings) from error
    chosen, measured = case.estimate(Way.of(made))
    plan = plan_of(chosen, spec.train, lengths, made.why)
    asking = asking_of(spec, history)
    stages = stage_times(
        spec,
        plan,
        case.shape,
        device,
        history=history,
        models_dir=settings.models_dir,
        runs=measured.runs,
        asking=asking,
    )
    return Preview(
        adapter=spec.adapter,
        profile=spec.profile,
        base_model=spec.train.base_model.name,
        device=device,
        device_from=device_from,
        lengths=lengths,
        lengths_from=lengths_from,
        total_steps=all_steps(spec.train, lengths),
        plan=plan,
        memory=chosen.memory,
        margin_gb=round(margin_gb(chosen.memory.peak_gb, device), 3),
        history_runs=measured.runs,
        alternatives=tuple(case.alternatives(chosen)),
        stages=stages,
        total_seconds=round(sum(s.seconds or 0.0 for s in stages), 1),
        needs=needs_of(spec, plan, chosen.memory, case.shape, models_dir=settings.models_dir),
        notes=(
            *_notes(case, plan),
            *notes_on_source(spec, history, asking),
            *notes_on_sets(spec, history, settings),
        ),
    )


def _job(request: PlanRequest) -> JobRequest:
    fields = request.model_dump(by_alias=True, exclude={"device"}, exclude_unset=True)
    return JobRequest.model_validate(fields)


def _fastest_unbound(all_ways: list[Estimate]) -> Way:
    return min(all_ways, key=lambda e: (e.step_seconds, e.memory.peak_gb)).way


def _notes(case: _Case, plan: Plan) -> Iterator[str]:
    device, base = case.device, case.spec.base_model
    if plan.precision == "4bit" and base.train != base.merge and case.shape.quantized_bytes is None:
        yield (
            f"{base.train} is not downloaded yet, so its size is computed for plain NF4. A "
            "dynamic quantization keeps some layers in 16 bits. Training reads the real size "
            "after the download."
        )
    if device.is_gpu and not rates(device).known:
        yield (
            f"The speed of {device.name} is not known. The times are for a slow GPU of its "
            "generation."
        )
    if case.engine == "unsloth" and case.spec.engine == "auto":
        yield "This GPU is older than Ampere, so training uses engine unsloth if it is installed."


def _with_smaller_models(error: OutOfMemory, case: _Case, settings: Settings) -> OutOfMemory:
    """The refusal with the catalog's other models that would fit."""
    fitting = []
    for name, base in load_catalog(settings.adapters_dir).items():
        if name == case.spec.base_model.name:
            continue
        other = case.spec.model_copy(update={"base_model": base})
        try:
            shape = shape_of(base, settings.models_dir)
            make_plan(other, shape, case.lengths, case.device, engine=case.engine)
        except (InvalidRequest, OutOfMemory):  # its shape is not known, or it is too large as well
            continue
        fitting.append(name)
    hint = error.hint or ""
    if fitting:
        hint = f"{hint.rstrip('.')}: {', '.join(sorted(fitting))}."
    return OutOfMemory(error.message, param=error.param, hint=hint)
