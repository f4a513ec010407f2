"""How long source self will ask: from what the base answered before, in prepare or in eval."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from loco.contracts.evaluation import Baseline
from loco.contracts.jobs import Job, JobStatus, StageStatus, Task
from loco.contracts.specs import JobSpec
from loco.contracts.stages import Stage
from loco.planning.asking import asking_of, notes_on_source
from loco.planning.history import History

HUB = {"kind": "huggingface"}
OWN = {"kind": "self", "questions": {"kind": "arithmetic"}, "samples": 3}


@pytest.fixture
def own(spec: Callable[..., JobSpec]) -> Callable[..., JobSpec]:
    """Specs of profile tiny with source self; keywords are fields of the source."""

    def make(examples: int = 168, **source: Any) -> JobSpec:
        return spec(prepare={"source": {**OWN, **source}, "examples": examples})

    return make


def sampled(**fields: Any) -> dict[str, Any]:
    """A result of prepare: 600 answers of 50 tokens, 40 a second, half of the first ones right."""
    sampling = {
        "model": "smollm2:135m",
        "digest": "d",
        "server_version": "0.12.0",
        "questions": 400,
        "asked": 600,
        "known": 0,
        "right": 320,
        "unfinished": 0,
        "pass_rate": 0.5,
        "solved": 300,
        "rows_by_tries": {"1": 200, "2": 100},
        "tokens": 30_000,
        "tokens_per_second": 40.0,
    }
    return {
        "source": "own answers",
        "read": 7473,
        "kept": 200,
        "dropped": {},
        "overlaps": [],
        "eval_items_checked": 0,
        "sampling": sampling | fields,
    }


def score(correct: int, tokens: int, cached: int = 0) -> dict[str, Any]:
    return {
        "model": "m",
        "correct": correct,
        "total": 100,
        "accuracy": correct / 100,
        "low": 0,
        "high": 1,
        "unfinished": 0,
        "seconds": 9,
        "tokens": tokens,
        "cached": cached,
    }


def evaluated(*against: tuple[Baseline, int, int], cached: int = 0) -> dict[str, Any]:
    """A result of eval: baselines, how many of 100 they solved and in how many tokens; candidate 4,000."""
    return {
        "seconds": 200.0,
        "base_model": "b",
        "candidate": "c",
        "comparisons": [
            {
                "set": "held_out",
                "role": "primary",
                "against": baseline,
                "base": score(solved, tokens, cached),
                "candidate": score(50, 4000, cached),
                "gain": 0.0,
                "won": 0,
                "lost": 0,
                "p_value": 1.0,
            }
            for baseline, solved, tokens in against
        ],
    }


def job(spec: JobSpec, results: dict[Stage, dict[str, Any]], **fields: Any) -> Job:
    return Job(
        **{
            "id": "earlier",
            "adapter": spec.adapter,
            "profile": spec.profile,
            "status": JobStatus.SUCCEEDED,
            "created_at": datetime.now(UTC),
            "spec": spec,
            "stages": tuple(
                Task(
                    task_id=f"earlier-{stage}",
                    job_id="earlier",
                    stage=stage,
                    status=StageStatus.SUCCEEDED,
                    result={"seconds": 1.0, "files": {}, **result},
                )
                for stage, result in results.items()
            ),
            **fields,
        }
    )


def prepared(spec: JobSpec, **fields: Any) -> Job:
    return job(spec, {Stage.PREPARE: sampled(**fields)})


def test_nothing_is_known_before_the_base_has_answered(own: Callable[..., JobSpec]) -> None:
    history = History([])
    assert asking_of(own(), history) is None
    [note] = notes_on_source(own(), history, None)
    assert "not known: smollm2:135m has answered no questions of math yet" in note
    assert "200 rows need at least as many answers" in note, "168 to train on and 32 to validate on"


def test_questions_and_tries_follow_from_the_share_that_was_right(
    own: Callable[..., JobSpec],
) -> None:
    spec = own()
    asking = asking_of(spec, History([prepared(spec)]))
    assert asking is not None
    # half right on average and evenly spread: 3/4 are solved in three tries, after 1 + 1/2 + 1/3 of them
    assert asking.questions == round(200 / 0.75)
    assert asking.answers == round(asking.questions * (1 + 1 / 2 + 1 / 3))
    assert asking.seconds == pytest.approx(asking.answers * 50 / 40)
    assert (asking.before.stage, asking.before.runs) == (Stage.PREPARE, 1)
    [note] = notes_on_source(spec, History([]), asking)
    assert "50 % of the first ones were right, answers had 50 tokens, and stage " in note
    assert "stage prepare got 40 tokens per second" in note


def test_the_spread_is_the_one_that_was_measured(own: Callable[..., JobSpec]) -> None:
    """Qwen2.5-Coder-1.5B, 2,000 GSM8K questions, 3 samples: 53.6 % at one, 77.9 % solved in three."""
    spec = own(examples=1968)
    asking = asking_of(spec, History([prepared(spec, pass_rate=0.536)]))
    assert asking is not None
    assert 2000 / asking.questions == pytest.approx(0.779, abs=0.005)


def test_where_pairs_are_wanted_every_question_is_asked_as_often_as_it_may(
    own: Callable[..., JobSpec],
) -> None:
    history = History([prepared(own())])
    rows = asking_of(own(pairs=10), history)
    assert rows is not None
    assert (rows.questions, rows.answers) == (round(200 / 0.75), 3 * round(200 / 0.75))
    pairs = asking_of(own(pairs=400), history)
    assert pairs is not None
    assert pairs.questions == 800, "half of the questions have right and wrong answers in three"


@pytest.mark.parametrize("pass_rate", [0.0, 0.01, 1.0])
def test_a_base_that_solves_nothing_or_all_is_planned_with_an_end(
    own: Callable[..., JobSpec], pass_rate: float
) -> None:
    spec = own(pairs=5)
    history = History([prepared(spec, pass_rate=pass_rate)])
    asking = asking_of(spec, history)
    assert asking is not None
    assert 200 <= asking.questions <= 2000
    notes = " ".join(notes_on_source(spec, history, asking))
    assert ("profile `gold`" in notes) == (pass_rate < 0.1)


@pytest.mark.parametrize(("pass_rate", "questions"), [(0.0, 200), (0.002, 246), (0.005, 345)])
def test_where_hardly_anything_is_solved_prepare_gives_up(
    own: Callable[..., JobSpec], pass_rate: float, questions: int
) -> None:
    """Mean of 10,000 simulated sequences until 200 questions in a row are unsolved."""
    few = own(examples=20, questions=HUB, samples=1)
    asking = asking_of(few, History([prepared(few, pass_rate=pass_rate)]))
    assert asking is not None
    assert asking.questions == pytest.approx(questions, rel=0.01)
    many = own(examples=968, questions=HUB, samples=1)
    asking = asking_of(many, History([prepared(many, pass_rate=pass_rate)]))
    assert asking is not None
    assert asking.questions == 1000, "the first wave asks as many as rows are wanted"


def test_a_generator_is_asked_ten_times_the_rows_or_pairs_at_most(
    own: Callable[..., JobSpec],
) -> None:
    for source, questions in (({}, 520), ({"pairs": 100}, 1000)):
        spec = own(examples=20, samples=1, **source)
        asking = asking_of(spec, History([prepared(spec, pass_rate=0.04)]))
        assert asking is not None
        assert asking.questions == questions


def test_no_more_is_asked_than_an_earlier_run_found(
    own: Callable[..., JobSpec], spec: Callable[..., JobSpec]
) -> None:
    found = {"read": 250, "dropped": {"malformed": 20, "overlap": 10}}
    wanted = own(questions=HUB)
    for read_by in (own(questions=HUB, samples=8), spec(prepare={"source": HUB})):
        earlier = job(read_by, {Stage.PREPARE: sampled() | found})
        asking = asking_of(wanted, History([prepared(own()), earlier]))
        assert asking is not None
        assert asking.questions == asking.all_of == 220
        [note] = notes_on_source(wanted, History([]), asking)
        assert "about all 220 usable questions that an earlier run found" in note
    for enough in (
        job(own(questions={**HUB, "split": "test"}), {Stage.PREPARE: sampled() | found}),
        job(own(questions=HUB), {Stage.PREPARE: sampled() | {"read": 7473}}),
        prepared(own()),
    ):
        asking = asking_of(wanted, History([enough]))
        assert asking is not None
        assert (asking.questions, asking.all_of) == (round(200 / 0.75), None)
    generated = job(own(), {Stage.PREPARE: sampled() | found})
    asking = asking_of(own(), History([generated]))
    assert asking is not None
    assert asking.all_of is None


def test_runs_that_asked_the_same_come_first_and_known_answers_tell_no_speed(
    own: Callable[..., JobSpec],
) -> None:
    spec = own()
    other = prepared(own(instruction="Answer at length."), tokens_per_second=10.0)
    known = prepared(spec, known=600, tokens_per_second=None)
    same = [prepared(spec, tokens_per_second=rate) for rate in (30.0, 80.0, 50.0)]
    found = asking_of(spec, History([other, known, *same]))
    assert found is not None
    assert (found.before.tokens_per_second, found.before.runs) == (50.0, 3)
    found = asking_of(spec, History([other, known]))
    assert found is not None
    assert found.before.tokens_per_second == 10.0
    assert asking_of(spec, History([known])) is None


def test_another_base_or_adapter_says_nothing(
    own: Callable[..., JobSpec], spec: Callable[..., JobSpec]
) -> None:
    stranger = spec(base_model="qwen3-4b", prepare={"source": OWN})
    assert asking_of(own(), History([prepared(stranger)])) is None
    elsewhere = job(own(), {Stage.PREPARE: sampled()}, adapter="law")
    assert asking_of(own(), History([elsewhere])) is None


def test_eval_tells_of_the_base_where_prepare_has_not_asked(
    own: Callable[..., JobSpec], spec: Callable[..., JobSpec]
) -> None:
    result = evaluated((Baseline.BASE, 30, 6000), (Baseline.INSTRUCTED, 60, 10_000))
    history = History([job(spec(), {Stage.EVAL: result})])
    plain = asking_of(own(), history)
    assert plain is not None
    # 6,000 and 10,000 of the base, 4,000 of the candidate, in 200 s
    assert (plain.before.pass_rate, plain.before.tokens) == (0.3, 60)
    assert plain.before.tokens_per_second == pytest.approx(100)
    assert plain.before.stage is Stage.EVAL
    told = asking_of(own(instruction="In words."), history)
    assert told is not None
    assert (told.before.pass_rate, told.before.tokens) == (0.6, 100)
    known = evaluated((Baseline.BASE, 30, 6000), cached=100)
    assert asking_of(own(), History([job(spec(), {Stage.EVAL: known})])) is None


def test_gold_rows_for_a_base_that_solves_much_are_noted(spec: Callable[..., JobSpec]) -> None:
    gold = spec()
    capable = History([job(gold, {Stage.EVAL: evaluated((Baseline.BASE, 57, 6000))})])
    [note] = notes_on_source(gold, capable, None)
    assert "solves 57 % of held_out (job earlier) by itself" in note
    assert "profile `default`" in note
    weak = History([job(gold, {Stage.EVAL: evaluated((Baseline.BASE, 29, 6000))})])
    assert list(notes_on_source(gold, weak, None)) == []
    assert list(notes_on_source(spec(stages=("train",)), capable, None)) == []


def test_a_result_of_another_release_is_passed_over(own: Callable[..., JobSpec]) -> None:
    broken = [
        job(own(), {Stage.PREPARE: {"kept": 3}, Stage.EVAL: {"comparisons": [{"set": "x"}]}}),
        job(own(), {Stage.PREPARE: sampled() | {"sampling": None}}),
    ]
    history = History(broken)
    assert asking_of(own(), history) is None
    assert history.base_score(own()) is None
