"""Runs the study of own answers on several GPUs at once, within the time it has.

Each GPU has a server and some lanes; a lane takes the next job that is ready: those of its GPU's own
seed first, then those nobody else has begun. So starting programs and loading weights in one lane
costs the GPU no time while another one trains or asks.
"""

import json
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from arms import BASE, VARIANTS, Model, arm
from keep import keep_eval, keep_stage, kept_json
from lab import Lab

from loco.contracts.files import write_text
from programs import Skipped

#: The name of the job that measures the variant that was chosen.
CHOSEN = "strong-chosen"
#: The seed of the exploration: of none of the trainings that are measured on the test problems.
EXPLORE_SEED = 10
_PAUSE = 0.3
_SAVE_SECONDS = 2.0
Status = Literal["waiting", "running", "done", "failed", "left out"]


@dataclass
class Job:
    """Something to measure."""

    name: str
    seed: int
    #: Problems: the first set decides, the others are shown.
    sets: tuple[str, ...]
    #: The GPU whose lanes take it first; None: any.
    gpu: str | None
    model: Model = "capable"
    #: Of a base: which part of its problems, of how many.
    part: tuple[int, int] | None = None
    status: Status = "waiting"
    step: str = ""
    note: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    scores: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        what = f"part {self.part[0]}" if self.part else f"seed {self.seed}"
        return f"{self.name} {what}"


class Driver:
    """The jobs, and what became of them."""

    def __init__(
        self, lab: Lab, jobs: Sequence[Job], *, choose_after: float, strong: str | None
    ) -> None:
        """Takes the jobs.

        Args:
            lab: where they run.
            jobs: the most important first.
            choose_after: seconds after which the variant is chosen among those measured by then.
            strong: the variant to take; None: the best one on the development problems.
        """
        self.lab, self.jobs = lab, list(jobs)
        self.chosen = strong
        self._started = time.monotonic()
        self._choose_at = self._started + choose_after
        self._lock, self._lock_of_state = threading.Lock(), threading.Lock()
        self._choice_known = kept_json(lab.out / "results" / "choice.json")
        if strong is None and self._choice_known is not None:
            self.chosen = str(self._choice_known["chosen"])

    def run(self, lanes: int) -> None:
        """Works until all is done or the time is up."""
        gpus = self.lab.options.gpus
        threads = [
            threading.Thread(target=self._lane, args=(gpu, lane), name=f"gpu {gpu} lane {lane}")
            for gpu in gpus
            for lane in range(lanes)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(_SAVE_SECONDS)
                self._save()
        for job in self.jobs:
            if job.status == "waiting":
                job.status, job.note = "left out", job.note or "the time was up"
        self._save()

    def _lane(self, gpu: str, lane: int) -> None:
        try:
            self.lab.server(gpu, "capable")
        except RuntimeError as error:
            self._say(f"GPU {gpu} is left out: {error}")
            return
        while self.lab.budget.seconds_left > 0:
            self._choose()
            job = self._take(gpu)
            if job is None:
                if not any(self._may_come(job) for job in self.jobs):
                    return
                time.sleep(_PAUSE)
                continue
            self._do(job, gpu, lane)

    def _take(self, gpu: str) -> Job | None:
        with self._lock:
            own = [job for job in self.jobs if job.gpu == gpu]
            others = [job for job in self.jobs if job.gpu != gpu]
            for job in (*own, *others):
                if job.status == "waiting" and self._ready(job):
                    job.status = "running"
                    return job
        return None

    def _may_come(self, job: Job) -> bool:
        return job.status in ("waiting", "running")

    def _ready(self, job: Job) -> bool:
        if job.part is not None:
            return True
        name = self.arm_name(job)
        if name is None:
            return False
        needed = arm(name).rows_of or arm(name).as_many_as
        if needed is None:
            return True
        # what measured it may have failed since
        if (self.lab.trained_folder(needed, job.seed) / "result.json").is_file():
            return True
        giving = [j for j in self.jobs if j.seed == job.seed and self.arm_name(j) == needed]
        if any(j.status in ("failed", "left out") for j in giving):
            job.status, job.note = "left out", f"{needed} failed"
            return False
        return not giving  # then the lab trains it first

    def arm_name(self, job: Job) -> str | None:
        """The arm a job measures; None: it is not chosen yet."""
        return self.chosen if job.name == CHOSEN else job.name

    def _choose(self) -> None:
        """Takes the best variant on the development problems once all are measured, or time presses."""
        with self._lock:
            if self.chosen is not None:
                return
            tried = [j for j in self.jobs if j.seed == EXPLORE_SEED and j.part is None]
            pending = any(self._may_come(job) for job in tried)
            if pending and time.monotonic() < self._choose_at:
                return
            scores = self._development_scores()
            # what no recipe can say yet is measured where a person names it
            able = {name: n for name, n in scores.items() if arm(name).pairs_of is None}
            able.pop("strong-sft", None)  # measured anyway: the best one with pairs beside it
            if not able:
                if not pending:
                    self._leave_out(CHOSEN, "no variant with pairs was measured")
                return
            self.chosen = max(able, key=lambda name: able[name])
        choice = {"chosen": self.chosen, "development": scores, "seed": EXPLORE_SEED}
        write_text(self.lab.out / "results" / "choice.json", json.dumps(choice) + "\n")
        self._say(f"chosen on the development problems: {self.chosen} of {scores}")

    def _leave_out(self, name: str, why: str) -> None:
        for job in self.jobs:
            if job.name == name and job.status == "waiting":
                job.status, job.note = "left out", why

    def _development_scores(self) -> dict[str, int]:
        found = {}
        for name in VARIANTS:
            home = self.lab.out / "results" / name / f"seed-{EXPLORE_SEED}"
            result = kept_json(home / "eval-dev.json")
            if result is not None:
                found[name] = int(result["comparisons"][0]["candidate"]["correct"])
        return found

    def _do(self, job: Job, gpu: str, lane: int) -> None:
        self._say(f"{job}: begun on GPU {gpu}, lane {lane}")
        try:
            if job.part is not None:
                self._base(job, gpu)
            else:
                self._learn(job, gpu, lane)
            job.status, job.step = "done", ""
        except Skipped as why:
            job.status, job.note = "left out", str(why)
        except Exception as error:
            traceback.print_exc()
            job.status, job.note = "failed", str(error)[-600:]
        self._say(f"{job}: {job.status} {job.note} {job.scores} {job.seconds}")

    def _base(self, job: Job, gpu: str) -> None:
        assert job.part is not None
        part, of = job.part
        self._step(job, "eval")
        started = time.monotonic()
        self.lab.measured_base(part, of, gpu, job.sets, job.model)
        job.seconds["eval"] = round(time.monotonic() - started, 1)

    def _learn(self, job: Job, gpu: str, lane: int) -> None:
        name = self.arm_name(job)
        assert name is not None
        chosen = arm(name)
        home = self.lab.out / "results" / name / f"seed-{job.seed}"
        lab = self.lab
        self._step(job, "prepare")
        started = time.monotonic()
        keep_stage(lab.prepared(chosen, job.seed, gpu), home, "prepare")
        if chosen.pairs_of is not None:
            keep_stage(lab.pairs(chosen, job.seed, gpu).parent, home, "prepare-pairs")
        job.seconds["prepare"] = round(time.monotonic() - started, 1)
        self._step(job, "train")
        started = time.monotonic()
        lab.trained(name, job.seed, gpu)
        keep_stage(lab.trained_folder(name, job.seed), home, "train")
        job.seconds["train"] = round(time.monotonic() - started, 1)
        self._await_bases(job, gpu, lane)
        self._step(job, "eval")
        started = time.monotonic()
        folder = lab.measured(name, job.seed, gpu, job.sets)
        job.seconds["eval"] = round(time.monotonic() - started, 1)
        seeds = [other.seed for other in self.jobs if self.arm_name(other) == name]
        keep_eval(folder, home, job.sets[0], texts=job.seed == min(seeds))
        result = kept_json(home / f"eval-{job.sets[0]}.json") or {}
        for compared in result.get("comparisons", ()):
            job.scores[compared["set"]] = (
                f"{compared['candidate']['correct']} of {compared['candidate']['total']}"
            )
            job.scores[f"{compared['set']} {compared['against']}"] = (
                f"{compared['base']['correct']}, p {compared['p_value']:.2g}"
            )
        job.scores["gate"] = (result.get("gate") or {}).get("verdict", "")

    def _await_bases(self, job: Job, gpu: str, lane: int) -> None:
        """Waits for the base's answers, so that no two servers give the same ones."""
        self._step(job, "waits for the base")
        parts = [j for j in self.jobs if j.part is not None and j.model == job.model]
        while any(self._may_come(part) for part in parts):
            self.lab.budget.require(_PAUSE, str(job))
            with self._lock:  # that of a GPU whose server did not start would never be begun
                left = next((part for part in parts if part.status == "waiting"), None)
                if left is not None:
                    left.status = "running"
            if left is not None:
                self._do(left, gpu, lane)
            else:
                time.sleep(_PAUSE)

    def _step(self, job: Job, step: str) -> None:
        job.step = step
        self._save()

    def _say(self, line: str) -> None:
        print(f"{time.monotonic() - self._started:6.0f} s  {line}", flush=True)
        self._save()

    def _save(self) -> None:
        """Writes `state.json` for people and for `status`."""
        left = self.lab.budget.seconds_left
        state = {
            "seconds": round(time.monotonic() - self._started),
            "seconds_left": None if left == float("inf") else round(left),
            "chosen": self.chosen,
            "jobs": [
                {
                    "name": job.name if job.name != CHOSEN else f"{CHOSEN} ({self.chosen or '?'})",
                    **{key: getattr(job, key) for key in ("seed", "part", "status", "step")},
                    **{key: getattr(job, key) for key in ("note", "seconds", "scores")},
                }
                for job in self.jobs
            ],
        }
        with self._lock_of_state:  # several lanes save
            write_text(self.lab.out / "state.json", json.dumps(state) + "\n")


def base_jobs(gpus: Sequence[str], sets: tuple[str, ...]) -> list[Job]:
    """The base's answers with and without instruction, a part on each GPU."""
    count = len(gpus)
    return [Job(BASE, 0, sets, gpu, part=(number, count)) for number, gpu in enumerate(gpus)]
