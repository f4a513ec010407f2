"""Versions in the ledger: numbered, measured, promoted, rolled back; each in one transaction."""

import json
import threading
from collections.abc import Callable

import pytest
from versions import MODEL, Builder, eval_result, register_result

from loco.contracts.errors import Conflict, InvalidRequest, NotFound, VersionRefused
from loco.contracts.evaluation import Verdict
from loco.contracts.specs import JobSpec
from loco.contracts.stages import Stage
from loco.contracts.versions import Version
from loco.ledger.ledger import CommitAnswer, Ledger
from loco.ledger.registry import rollback_target

pytestmark = pytest.mark.redis


@pytest.fixture
def build(ledger: Ledger, spec: Callable[..., JobSpec]) -> Builder:
    return Builder(ledger, spec)


def actions(ledger: Ledger, number: int) -> list[str]:
    return [event.action for event in ledger.registry.version("math", number).events]


def promoted(ledger: Ledger) -> int | None:
    pointer = ledger.registry.promoted(MODEL)
    return pointer.version if pointer else None


class TestNumbers:
    def test_register_numbers_what_it_made_and_promotes_nothing(self, ledger, build):
        first, second = build.registered(), build.registered()
        found, more = ledger.registry.versions("math")
        assert [(v.version, v.job, v.promoted) for v in found] == [
            (2, second.id, False),
            (1, first.id, False),
        ]
        assert not more
        assert ledger.registry.promoted(MODEL) is None
        assert ledger.registry.undeployed() == []
        assert first.promotion is not None
        assert (first.promotion.version, first.promotion.promoted) == (1, False)
        assert found[1].profile == "tiny"
        assert found[1].parameters["num_predict"] == 512
        assert actions(ledger, 1) == ["registered"]
        assert ledger.registry.of_job("math", second.id) == found[0]
        assert ledger.registry.of_job("math", "nobody") is None

    def test_the_same_job_registering_again_keeps_its_number(self, ledger, build, spec):
        """Its commit answered nobody, so another attempt commits as well, or a result is late."""
        job = build.registered(stages=("prepare", "train", "export", "register"))
        other = build.registered()
        again, _ = ledger.submit(spec(stages=("register",), from_job=job.id))
        claim = build.claim(Stage.REGISTER, again)
        build.commit(claim, register_result(job.id, digest="another"))
        found, _ = ledger.registry.versions("math")
        assert [(v.version, v.job) for v in found] == [(2, other.id), (1, job.id)]
        assert ledger.registry.version("math", 1).digest == "another"

    def test_a_stale_attempt_registers_nothing(self, ledger, build, spec):
        job, _ = ledger.submit(spec())
        for stage in (Stage.PREPARE, Stage.TRAIN, Stage.EXPORT):
            build.commit(build.claim(stage), {})
        old = build.claim(Stage.REGISTER)
        assert ledger.release(old.task_id, old.token)
        new = build.claim(Stage.REGISTER)
        assert build.commit(old, register_result(job.id)) is CommitAnswer.STALE
        assert ledger.registry.versions("math") == ([], False)
        assert build.commit(new, register_result(job.id)) is CommitAnswer.NEXT
        assert build.commit(new, register_result(job.id)) is CommitAnswer.ALREADY
        assert len(ledger.registry.versions("math")[0]) == 1

    def test_pages_and_models(self, ledger, build):
        for index in range(5):
            build.registered(model=MODEL if index % 2 else "locollm-math")
        page, more = ledger.registry.versions("math", limit=2)
        assert ([v.version for v in page], more) == ([5, 4], True)
        page, more = ledger.registry.versions("math", after=4, limit=3)
        assert ([v.version for v in page], more) == ([3, 2, 1], False)
        page, more = ledger.registry.versions("math", model="locollm-math", limit=2)
        assert ([v.version for v in page], more) == ([5, 3], True)
        assert ledger.registry.versions("nobody") == ([], False)
        assert ledger.registry.adapters() == ["math"]

    def test_no_such_version(self, ledger):
        with pytest.raises(NotFound, match="no version 7"):
            ledger.registry.version("math", 7)
        with pytest.raises(NotFound, match="no version 7"):
            ledger.registry.promote("math", 7, by="me", reason="", force=False)

    def test_fields_of_a_newer_release_are_left_out(self, ledger, build, namespace, redis_url):
        build.promoted()
        with ledger._connection.client() as client:
            key = f"{namespace}:version:math:1"
            gate = json.loads(client.hget(key, "gate")) | {"mood": "good"}
            entry = json.loads(client.hget(key, "entry")) | {"colour": "blue", "data": {"x": 1}}
            client.hset(key, mapping={"gate": json.dumps(gate), "entry": json.dumps(entry)})
            client.rpush(
                f"{key}:events", '{"at": "1764000000000", "action": "x", "by": "y", "z": 1}'
            )
        version = ledger.registry.version("math", 1)
        assert version.gate is not None
        assert version.events[-1].action == "x"


class TestGate:
    @pytest.mark.parametrize("verdict", [Verdict.BETTER, Verdict.UNPROVEN])
    def test_what_is_not_refused_is_promoted(self, ledger, build, verdict):
        job = build.measured(build.registered(), verdict)
        pointer = ledger.registry.promoted(MODEL)
        assert pointer is not None
        assert (pointer.adapter, pointer.version) == ("math", 1)
        assert (pointer.candidate, pointer.digest) == (f"{MODEL}:{job.id}", f"digest-{job.id}")
        assert pointer.served_at is None
        assert ledger.registry.undeployed() == [MODEL]
        assert actions(ledger, 1) == ["registered", "promoted"]
        version = ledger.registry.version("math", 1)
        assert version.promoted
        assert version.gate is not None
        assert version.gate.verdict is verdict
        assert version.scores is not None
        assert version.scores["held_out"]["candidate"]["accuracy"] == 0.57
        assert job.promotion is not None
        assert (job.promotion.promoted, job.promotion.serving) == (True, 1)
        events = ledger.events(job.id, limit=1000)
        assert "version.promoted" in [event.type for event in events]

    def test_what_is_refused_leaves_the_old_one(self, ledger, build):
        build.promoted()
        ledger.registry.deployed(MODEL, "x", serial=None, pause=1000)
        job = build.measured(build.registered(), Verdict.REFUSED, compared=1)
        assert promoted(ledger) == 1
        assert actions(ledger, 2) == ["registered", "refused"]
        assert job.status == "succeeded"
        assert job.promotion is not None
        assert (job.promotion.promoted, job.promotion.serving) == (False, 1)
        assert "measured as refused" in str(job.promotion.reason)
        assert ledger.registry.undeployed() == []

    def test_the_next_better_one_replaces_it(self, ledger, build):
        build.promoted()
        build.promoted()
        assert promoted(ledger) == 2
        assert actions(ledger, 1) == ["registered", "promoted", "replaced"]
        assert [v.promoted for v in ledger.registry.versions("math")[0]] == [True, False]

    def test_of_two_that_measured_at_once_one_is_promoted(self, ledger, build):
        """Both were compared with nothing; whoever commits second was not compared with the first."""
        one, two = build.registered(), build.registered()
        claims = {job.id: build.evals[job.id] for job in (one, two)}
        threads = [
            threading.Thread(
                target=build.commit, args=(claim, eval_result(f"{MODEL}:{job}", Verdict.BETTER))
            )
            for job, claim in claims.items()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        outcomes = [ledger.job(job).promotion for job in claims]
        assert sorted(o.promoted for o in outcomes if o) == [False, True]
        (lost,) = [o for o in outcomes if o and not o.promoted]
        assert lost.serving == promoted(ledger)
        assert (
            lost.reason
            == f"version {promoted(ledger)} was promoted meanwhile: run `loco eval` again"
        )
        assert actions(ledger, lost.version) == ["registered", "not_promoted"]

    def test_a_promotion_by_hand_during_eval_stands(self, ledger, build):
        build.promoted()
        build.registered()
        late = build.registered()
        claim = build.evals[late.id]
        ledger.registry.promote("math", 2, by="me", reason="", force=False)
        build.commit(claim, eval_result(f"{MODEL}:{late.id}", Verdict.BETTER, compared=1))
        assert promoted(ledger) == 2
        assert actions(ledger, 3) == ["registered", "not_promoted"]

    def test_measuring_what_serves_again_changes_nothing(self, ledger, build):
        job = build.promoted()
        serial = ledger.registry.promoted(MODEL).serial
        claim = build.measure_again(job)
        build.commit(claim, eval_result(f"{MODEL}:{job.id}", Verdict.BETTER))
        assert ledger.registry.promoted(MODEL).serial == serial
        assert actions(ledger, 1)[-1] == "measured"
        again = ledger.job(claim.job_id)
        assert again.promotion is not None
        assert again.promotion.promoted
        claim = build.measure_again(job)
        build.commit(claim, eval_result(f"{MODEL}:{job.id}", Verdict.REFUSED))
        assert promoted(ledger) == 1, "nothing else could serve"
        assert actions(ledger, 1)[-1] == "refused"

    def test_an_eval_job_promotes_what_its_from_job_built(self, ledger, build):
        first = build.registered(stages=("prepare", "train", "export", "register"))
        assert first.promotion is not None
        assert "not measured" in str(first.promotion.reason)
        claim = build.measure_again(first)
        build.commit(claim, eval_result(f"{MODEL}:{first.id}", Verdict.UNPROVEN))
        assert promoted(ledger) == 1
        assert ledger.job(claim.job_id).promotion.version == 1

    def test_a_reused_eval_counts_as_well(self, ledger, build):
        first = build.registered(stages=("prepare", "train", "export", "register"))
        claim = build.measure_again(first)
        result = eval_result(f"{MODEL}:{first.id}", Verdict.BETTER)
        build.commit(claim, result, reused_from=first.id)
        assert promoted(ledger) == 1

    def test_without_a_gate_there_are_scores_but_no_promotion(self, ledger, build):
        job = build.measured(build.registered(), None)
        assert promoted(ledger) is None
        assert ledger.registry.version("math", 1).scores is not None
        assert job.promotion is not None
        assert not job.promotion.promoted

    def test_an_eval_of_what_was_never_registered_is_no_fault(self, ledger, build):
        job = build.registered()
        claim = build.evals[job.id]
        answer = build.commit(claim, eval_result("locollm-math:nobody", Verdict.BETTER))
        assert answer is CommitAnswer.DONE
        assert ledger.job(job.id).status == "succeeded"
        assert promoted(ledger) is None

    def test_a_job_that_ends_at_register_promotes_only_with_policy_always(self, ledger, build):
        stages = ("prepare", "train", "export", "register")
        build.registered(stages=stages)
        assert promoted(ledger) is None
        job = build.registered(stages=stages, policy="always")
        assert promoted(ledger) == 2
        assert "policy always" in str(job.promotion.reason)
        build.registered(policy="always")
        assert promoted(ledger) == 2, "that one is measured first"

    def test_a_model_of_another_adapter_is_left_alone(self, ledger, build, spec):
        foreign = Version.model_validate(register_result("x")["version"] | {"promoted": True})
        assert ledger.registry.take_over({"code": [foreign]}) == 1
        job = build.measured(build.registered(), Verdict.BETTER)
        assert ledger.registry.promoted(MODEL).adapter == "code"
        assert "belongs to adapter code" in str(job.promotion.reason)
        with pytest.raises(Conflict, match="belongs to another adapter"):
            ledger.registry.promote("math", 1, by="me", reason="", force=True)

    def test_models_have_pointers_of_their_own(self, ledger, build):
        build.promoted()
        build.promoted(model="locollm-math")
        assert [(p.model, p.version) for p in ledger.registry.pointers()] == [
            ("locollm-math", 2),
            (MODEL, 1),
        ]
        assert ledger.registry.pointers("code") == []
        assert [v.promoted for v in ledger.registry.versions("math")[0]] == [True, True]


class TestSecondLooks:
    """A weaker look at a version neither lifts a refusal nor takes the place of a verdict."""

    def look(self, ledger, build, job, verdict, *, spec=None, **more):
        """Another eval of what a job built; answers the job that measured."""
        claim = build.measure_again(job) if spec is None else build.claim(Stage.EVAL, spec)
        build.commit(claim, eval_result(f"{MODEL}:{job.id}", verdict, **more))
        return ledger.job(claim.job_id)

    def test_a_replayed_eval_of_another_jobs_version_is_only_told(self, ledger, build, spec):
        job = build.promoted()
        before = ledger.registry.version("math", 1)
        replay = {"stages": ("eval",), "from_job": job.id}
        asked, _ = ledger.submit(spec(**replay).model_copy(update={"replay_of": job.id}))
        look = self.look(
            ledger, build, job, Verdict.REFUSED, spec=asked, by_hand=True, problems=300
        )
        after = ledger.registry.version("math", 1)
        assert (after.gate, after.scores, after.promoted) == (before.gate, before.scores, True)
        assert actions(ledger, 1) == ["registered", "promoted", "measured"]
        assert "a replay" in look.promotion.reason
        assert look.promotion.promoted, "it serves as before"
        assert "version.measured" in [e.type for e in ledger.events(look.id, limit=1000)]

    def test_a_replayed_eval_promotes_nothing(self, ledger, build, spec):
        job = build.registered(stages=("prepare", "train", "export", "register"))
        replay = {"stages": ("eval",), "from_job": job.id}
        asked, _ = ledger.submit(spec(**replay).model_copy(update={"replay_of": job.id}))
        self.look(ledger, build, job, Verdict.BETTER, spec=asked)
        assert promoted(ledger) is None
        assert ledger.registry.version("math", 1).gate is None

    def test_a_replay_that_built_its_own_version_passes_the_gate(self, ledger, build, spec):
        original = build.promoted()
        job, _ = ledger.submit(spec().model_copy(update={"replay_of": original.id}))
        for stage in job.spec.stages[:-2]:
            build.commit(build.claim(stage, job), {"seconds": 1})
        build.commit(build.claim(Stage.REGISTER, job), register_result(job.id))
        result = eval_result(f"{MODEL}:{job.id}", Verdict.BETTER, compared=1)
        build.commit(build.claim(Stage.EVAL, job), result)
        assert promoted(ledger) == 2

    def test_policy_never_does_not_lift_a_refusal(self, ledger, build):
        job = build.measured(build.registered(), Verdict.REFUSED)
        look = self.look(ledger, build, job, Verdict.REFUSED, by_hand=True, problems=500)
        assert "`loco promote math 1 --force`" in look.promotion.reason
        with pytest.raises(VersionRefused):
            ledger.registry.promote("math", 1, by="me", reason="", force=False)
        assert ledger.registry.version("math", 1).gate.problems == 100
        assert actions(ledger, 1) == ["registered", "refused", "not_promoted"]

    def test_policy_never_does_not_take_the_place_of_a_verdict(self, ledger, build):
        job = build.promoted()
        look = self.look(ledger, build, job, Verdict.REFUSED, by_hand=True)
        assert look.promotion.promoted
        assert ledger.registry.version("math", 1).gate.verdict is Verdict.BETTER
        assert actions(ledger, 1)[-1] == "measured"

    def test_fewer_problems_lift_no_refusal(self, ledger, build):
        job = build.registered()
        claim = build.evals[job.id]
        build.commit(claim, eval_result(f"{MODEL}:{job.id}", Verdict.REFUSED, problems=200))
        for fewer in (1, 199):
            look = self.look(ledger, build, job, Verdict.UNPROVEN, problems=fewer)
            assert promoted(ledger) is None
            assert not look.promotion.promoted
            assert look.promotion.reason == (
                f"measured as refused on 200 problems before, now on {fewer}: "
                "`loco promote math 1 --force` promotes it by hand"
            )
            assert actions(ledger, 1)[-1] == "not_promoted"
        gate = ledger.registry.version("math", 1).gate
        assert (gate.verdict, gate.problems) == (Verdict.REFUSED, 200)
        self.look(ledger, build, job, Verdict.UNPROVEN, problems=200)
        assert promoted(ledger) == 1, "as many problems are as good a look"

    def test_fewer_problems_take_the_place_of_no_verdict(self, ledger, build):
        job = build.promoted()
        look = self.look(ledger, build, job, Verdict.REFUSED, problems=1)
        version = ledger.registry.version("math", 1)
        assert (version.gate.verdict, version.gate.problems) == (Verdict.BETTER, 100)
        assert look.promotion.promoted
        assert "on 100 problems before, now on 1" in look.promotion.reason

    def test_what_people_may_promote_is_measured_again_like_anything(self, ledger, build):
        job = build.registered()
        result = eval_result(f"{MODEL}:{job.id}", Verdict.REFUSED, by_hand=True)
        build.commit(build.evals[job.id], result)
        self.look(ledger, build, job, Verdict.REFUSED, by_hand=True)
        assert actions(ledger, 1)[-1] == "refused"
        self.look(ledger, build, job, Verdict.BETTER)
        assert promoted(ledger) == 1

    def test_scores_of_an_earlier_release_change_no_verdicts(self, ledger, build):
        job = build.promoted()
        claim = build.measure_again(job)
        late = eval_result(f"{MODEL}:{job.id}", None)
        late["comparisons"] = []
        build.commit(claim, late)
        assert ledger.registry.version("math", 1).scores


class TestProof:
    """What register did not prove serves only when people force it."""

    FAILED = {"name": "stop", "passed": False, "expected": "stop", "seen": "length", "fix": "Do."}

    @pytest.mark.parametrize(
        ("checks", "told"), [([FAILED], "check stop failed"), ([], "check proof failed")]
    )
    @pytest.mark.parametrize("policy", ["always", "not_worse"])
    def test_a_job_that_ends_at_register_is_refused(
        self, ledger, build, spec, checks, told, policy
    ):
        job = self.registered(ledger, build, spec, checks, policy)
        assert promoted(ledger) is None
        assert not job.promotion.promoted
        assert told in job.promotion.reason
        assert actions(ledger, 1) == ["registered", "refused"]
        gate = ledger.registry.version("math", 1).gate
        assert (gate.verdict, gate.by_hand, gate.problems) == (Verdict.REFUSED, False, 0)
        with pytest.raises(VersionRefused, match=told):
            ledger.registry.promote("math", 1, by="me", reason="", force=False)
        ledger.registry.promote("math", 1, by="me", reason="", force=True)
        assert promoted(ledger) == 1

    def registered(self, ledger, build, spec, checks, policy):
        stages = ("prepare", "train", "export", "register")
        job, _ = ledger.submit(spec(stages=stages, eval={"gate": {"policy": policy}}))
        for stage in stages[:-1]:
            build.commit(build.claim(Stage(stage), job), {"seconds": 1})
        result = register_result(job.id) | {"checks": checks}
        build.commit(build.claim(Stage.REGISTER, job), result)
        return ledger.job(job.id)


class TestPeople:
    def test_promoting_by_hand_is_told(self, ledger, build):
        build.promoted()
        build.registered()
        assert ledger.registry.promote("math", 2, by="anna", reason="I tried it", force=False)
        assert promoted(ledger) == 2
        event = ledger.registry.version("math", 2).events[-1]
        assert (event.action, event.by, event.reason, event.forced) == (
            *("promoted", "anna", "I tried it"),
            False,
        )
        assert not ledger.registry.promote("math", 2, by="anna", reason="", force=False)
        assert actions(ledger, 2) == ["registered", "promoted"]

    def test_what_was_refused_takes_force(self, ledger, build):
        build.measured(build.registered(), Verdict.REFUSED)
        with pytest.raises(VersionRefused, match="measured as refused") as caught:
            ledger.registry.promote("math", 1, by="me", reason="", force=False)
        assert "--force" in str(caught.value.hint)
        assert promoted(ledger) is None
        assert ledger.registry.promote("math", 1, by="me", reason="it is fine", force=True)
        assert ledger.registry.version("math", 1).events[-1].forced

    def test_what_policy_never_left_to_people_takes_no_force(self, ledger, build):
        job = build.registered()
        claim = build.evals[job.id]
        result = eval_result(f"{MODEL}:{job.id}", Verdict.REFUSED)
        result["gate"] |= {"policy": "never", "by_hand": True}
        build.commit(claim, result)
        assert promoted(ledger) is None
        ledger.registry.promote("math", 1, by="me", reason="", force=False)
        assert promoted(ledger) == 1

    def test_rolling_back_goes_step_by_step_and_ends(self, ledger, build):
        for _ in range(3):
            build.promoted()
        for expected in (2, 1):
            target = rollback_target(ledger.registry, "math", MODEL)
            ledger.registry.rollback("math", MODEL, target, by="me", reason="worse")
            assert promoted(ledger) == expected
        with pytest.raises(Conflict, match="No version was promoted as"):
            rollback_target(ledger.registry, "math", MODEL)
        assert actions(ledger, 3) == ["registered", "promoted", "rolled_back"]
        assert actions(ledger, 1) == ["registered", "promoted", "replaced", "promoted"]
        with pytest.raises(InvalidRequest, match="No version of math is promoted as nobody"):
            rollback_target(ledger.registry, "math", "nobody")

    def test_after_a_rollback_a_new_promotion_returns_to_it(self, ledger, build):
        build.promoted()
        build.promoted()
        ledger.registry.rollback("math", MODEL, 1, by="me", reason="")
        build.promoted()
        assert promoted(ledger) == 3
        assert ledger.registry.before(MODEL) == 1

    def test_a_rollback_to_what_is_not_the_last_one_is_refused(self, ledger, build):
        for _ in range(3):
            build.promoted()
        with pytest.raises(Conflict, match="promoted in the meantime"):
            ledger.registry.rollback("math", MODEL, 1, by="me", reason="")
        assert promoted(ledger) == 3

    def test_two_rollbacks_at_once_are_one_step(self, ledger, build):
        for _ in range(3):
            build.promoted()
        errors: list[Exception] = []

        def roll_back() -> None:
            try:
                ledger.registry.rollback("math", MODEL, 2, by="me", reason="")
            except Conflict as error:
                errors.append(error)

        threads = [threading.Thread(target=roll_back) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (promoted(ledger), len(errors)) == (2, 3)

    def test_a_lost_reply_rolls_back_once(self, ledger, build):
        for _ in range(3):
            build.promoted()
        for _ in range(2):
            answer = ledger.registry._run("rollback", MODEL, "math", "2", "me", "", "one-nonce")
            assert answer == "ok"
        assert promoted(ledger) == 2

    def test_the_gate_does_not_promote_again_what_was_rolled_back(self, ledger, build):
        build.promoted()
        second = build.promoted()
        ledger.registry.rollback("math", MODEL, 1, by="me", reason="bad tone")
        claim = build.measure_again(second)
        build.commit(claim, eval_result(f"{MODEL}:{second.id}", Verdict.BETTER, compared=1))
        assert promoted(ledger) == 1
        assert "rolled back by hand" in str(ledger.job(claim.job_id).promotion.reason)
        ledger.registry.promote("math", 2, by="me", reason="", force=False)
        assert promoted(ledger) == 2


class TestFollowing:
    def test_it_is_due_until_it_was_seen(self, ledger, build):
        build.promoted()
        pointer = ledger.registry.promoted(MODEL)
        assert ledger.registry.deploy(MODEL, "a", patience=60) == "yours"
        assert ledger.registry.deploy(MODEL, "b", patience=60) == "busy"
        assert ledger.registry.deployed(
            MODEL, "a", serial=pointer.serial, digest=pointer.digest, pause=60
        )
        assert ledger.registry.undeployed() == []
        seen = ledger.registry.promoted(MODEL)
        assert seen.served_digest == pointer.digest
        assert ledger.registry.version("math", 1).served_at == seen.served_at
        assert ledger.registry.deploy(MODEL, "b", patience=60) == "yours"

    def test_what_is_promoted_meanwhile_makes_the_copy_stale(self, ledger, build):
        build.promoted()
        old = ledger.registry.promoted(MODEL)
        ledger.registry.deploy(MODEL, "a", patience=60)
        build.promoted()
        assert not ledger.registry.deployed(
            MODEL, "a", serial=old.serial, digest=old.digest, pause=60
        )
        assert ledger.registry.undeployed() == [MODEL]
        assert ledger.registry.promoted(MODEL).served_at is None

    def test_a_failure_waits_for_its_pause(self, ledger, build):
        build.promoted()
        ledger.registry.deploy(MODEL, "a", patience=60)
        assert not ledger.registry.deployed(MODEL, "a", serial=None, pause=0.2)
        assert ledger.registry.undeployed() == []
        threading.Event().wait(0.3)
        assert ledger.registry.undeployed() == [MODEL]
        assert ledger.registry.deploy(MODEL, "b", patience=60) == "yours"

    def test_after_one_that_vanished_it_is_looked_at_once_more(self, ledger, build):
        """It may have been frozen before its copy, which then comes after the next one's."""
        build.promoted()
        ledger.registry.deploy(MODEL, "frozen", patience=0.05)
        threading.Event().wait(0.1)
        pointer = ledger.registry.promoted(MODEL)
        assert ledger.registry.deploy(MODEL, "b", patience=60) == "yours"
        assert ledger.registry.deployed(MODEL, "b", serial=pointer.serial, digest="d", pause=0.2)
        assert ledger.registry.undeployed() == []
        threading.Event().wait(0.3)
        assert ledger.registry.undeployed() == [MODEL]
        ledger.registry.deploy(MODEL, "c", patience=60)
        assert ledger.registry.deployed(MODEL, "c", serial=pointer.serial, digest="d", pause=0.2)
        threading.Event().wait(0.3)
        assert ledger.registry.undeployed() == []
        # the frozen one wakes up: whatever it did is looked at again, too
        assert not ledger.registry.deployed(
            MODEL, "frozen", serial=pointer.serial, digest="d", pause=60
        )
        assert ledger.registry.undeployed() == [MODEL]

    def test_nothing_promoted_is_nothing_to_do(self, ledger):
        assert ledger.registry.deploy(MODEL, "a", patience=60) == "none"

    def test_a_restored_version_has_its_new_digest_and_is_due(self, ledger, build):
        build.promoted()
        pointer = ledger.registry.promoted(MODEL)
        ledger.registry.deploy(MODEL, "a", patience=60)
        ledger.registry.deployed(MODEL, "a", serial=pointer.serial, digest="d", pause=60)
        told = {"candidate": pointer.candidate, "by": "me", "reason": "Ollama was emptied."}
        ledger.registry.restored("math", 1, "new-digest", **told)
        assert ledger.registry.undeployed() == [MODEL]
        assert ledger.registry.promoted(MODEL).digest == "new-digest"
        assert ledger.registry.version("math", 1).digest == "new-digest"
        assert actions(ledger, 1)[-1] == "restored"


class TestTakeOver:
    def test_an_earlier_registry_keeps_numbers_and_what_serves(self, ledger, build):
        old = [
            Version.model_validate(
                register_result(job)["version"]
                | {"version": number, "promoted": number == 2, "scores": {"benchmark": {"x": 1}}}
            )
            for number, job in ((1, "a"), (2, "b"), (4, "d"))
        ]
        assert ledger.registry.untouched()
        assert ledger.registry.take_over({"math": old}) == 3
        assert ledger.registry.take_over({"math": old}) == 0
        assert promoted(ledger) == 2
        assert ledger.registry.undeployed() == [MODEL]
        found, _ = ledger.registry.versions("math")
        assert [(v.version, v.job, v.promoted) for v in found] == [
            (4, "d", False),
            (2, "b", True),
            (1, "a", False),
        ]
        assert found[1].scores == {"benchmark": {"x": 1}}
        build.registered()
        assert ledger.registry.versions("math")[0][0].version == 5

    def test_events_and_verdicts_survive(self, ledger, build, connect, redis_url):
        build.promoted()
        build.measured(build.registered(), Verdict.REFUSED, compared=1)
        kept, _ = ledger.registry.versions("math")
        other = Ledger.connect(redis_url, namespace=f"{ledger.namespace}-copy")
        assert other.registry.take_over({"math": kept}) == 2
        copied, _ = other.registry.versions("math")
        assert copied == kept
        other.close()

    def test_rollbacks_survive(self, ledger, build, redis_url):
        """What was promoted before is rolled back to, and what was rolled back stays so."""
        for _ in range(3):
            build.promoted()
        bad = build.promoted()
        ledger.registry.rollback("math", MODEL, 3, by="me", reason="bad tone")
        kept, _ = ledger.registry.versions("math")
        assert [(v.version, v.past, v.rolled_back) for v in kept] == [
            *((4, (), True), (3, (1, 2), False)),
            *((2, (), False), (1, (), False)),
        ]
        other = Ledger.connect(redis_url, namespace=f"{ledger.namespace}-copy")
        assert other.registry.take_over({"math": kept}) == 4
        assert other.registry.versions("math")[0] == kept
        late = Builder(other, build._spec)
        job, _ = other.submit(build._spec(stages=("prepare",)))
        late.commit(late.claim(Stage.PREPARE, job), {"seconds": 1})
        claim, gate = late.measure_again(job), eval_result(f"{MODEL}:{bad.id}", Verdict.BETTER)
        gate["gate"]["compared_version"] = 3
        late.commit(claim, gate)
        assert "rolled back by hand" in other.job(claim.job_id).promotion.reason
        for expected in (2, 1):
            target = rollback_target(other.registry, "math", MODEL)
            other.registry.rollback("math", MODEL, target, by="me", reason="")
            assert promoted(other) == expected
        assert other.registry.before(MODEL) is None
        other.close()

    def test_nothing_is_taken_over_where_something_was_registered(self, ledger, build):
        build.registered()
        assert not ledger.registry.untouched()
        old = Version.model_validate(register_result("a")["version"] | {"version": 9})
        assert ledger.registry.take_over({"math": [old]}) == 0
        assert [v.version for v in ledger.registry.versions("math")[0]] == [1]
