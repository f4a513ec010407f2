"""DELETE /adapters/{name}/versions/{version}: what goes, what Ollama makes of it, what stays possible."""

from collections.abc import Iterator

import httpx
import pytest
import yaml
from tags_server import Tags
from versions import MODEL, Builder, built, register_result

from loco.contracts.errors import Conflict
from loco.contracts.evaluation import Verdict
from loco.contracts.keys import Scope
from loco.contracts.serving import exported_base
from loco.contracts.stages import Stage
from loco.ledger.keys import Keys
from loco.ledger.ledger import Ledger
from loco.running.registry_file import take_over
from loco.serving.latest import follow_all
from loco.serving.withdrawal import clear_withdrawn, remove_version

pytestmark = pytest.mark.redis

LATEST = f"{MODEL}:latest"
NO_EVAL = ("prepare", "train", "export", "register")


@pytest.fixture
def live_settings(live_settings, tags):
    return live_settings.model_copy(update={"ollama_host": tags.url})


@pytest.fixture
def http(live_api) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live_api.url, trust_env=False, timeout=60) as client:
        yield client


@pytest.fixture
def build(ledger, spec) -> Builder:
    return Builder(ledger, spec)


def served(build: Builder, tags: Tags, verdict: Verdict = Verdict.BETTER) -> str:
    """A measured version that Ollama follows; answers its job."""
    job = built(build, tags, verdict)
    follow_all(build.ledger, tags.url)
    return job


def withdraw(ledger: Ledger, number: int, *, force: bool) -> None:
    """Deletes a version as the API does where Ollama is down."""
    version = ledger.registry.version("math", number)
    remove_version(ledger, "http://127.0.0.1:9", "math", version, owner=None, force=force)


def error(answer: httpx.Response, status: int) -> dict[str, str]:
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


def numbers(http: httpx.Client) -> list[int]:
    return [v["version"] for v in http.get("/adapters/math/versions").json()["data"]]


def test_a_version_goes_then_its_job_and_its_number_is_not_given_again(
    http, build, tags, ledger, adapters_dir
):
    first = served(build, tags)
    second = served(build, tags)
    told = error(http.delete(f"/jobs/{first}"), 409)
    assert told["hint"] == "Delete the version first: `loco rm math --version 1`."
    gone = http.delete("/adapters/math/versions/1")
    assert gone.status_code == 200, gone.text
    assert gone.json() == {
        "adapter": "math",
        "version": 1,
        "job": first,
        "model": MODEL,
        "candidate": f"{MODEL}:{first}",
        "stopped": False,
        "cleared": True,
    }
    assert tags.models == {LATEST: f"digest-{second}", f"{MODEL}:{second}": f"digest-{second}"}
    assert http.delete("/adapters/math/versions/1").json() == gone.json(), "the answer may be lost"
    assert numbers(http) == [2]
    written = yaml.safe_load((adapters_dir / "registry.yaml").read_text())["adapters"]["math"]
    assert [v["version"] for v in written["history"]] == [2]
    assert http.delete(f"/jobs/{first}").status_code == 200
    assert ledger.withdrawals.candidates(due=False) == []
    with ledger._connection.client() as client:
        client.delete(f"{ledger.namespace}:removed-version:math:1")
        assert client.keys(f"{ledger.namespace}:version:math:1*") == []
    told = error(http.delete("/adapters/math/versions/1"), 404)
    assert "has no version 1" in told["message"]
    served(build, tags)
    assert numbers(http) == [3, 2]


def test_the_base_that_was_exported_beside_it_goes_too(http, build, tags, ledger, monkeypatch):
    """`export.base` gives a version a second name in Ollama."""
    monkeypatch.setattr("loco.serving.withdrawal.PAUSE", 0.0)
    for number in (1, 2):
        job = served(build, tags, Verdict.REFUSED)
        tags.models[exported_base(f"{MODEL}:{job}")] = "digest-of-base"
        if number == 1:
            gone = http.delete("/adapters/math/versions/1").json()
            assert gone["cleared"] is True
        else:
            withdraw(ledger, 2, force=False)
            clear_withdrawn(ledger, tags.url)
        assert tags.models == {}
        assert ledger.withdrawals.candidates(due=False) == []


def test_a_rollback_never_goes_to_a_deleted_version(http, build, tags):
    jobs = [served(build, tags) for _ in range(3)]
    http.post("/adapters/math/promote", json={"version": 2}).raise_for_status()
    http.post("/adapters/math/promote", json={"version": 3}).raise_for_status()
    promoted = http.get("/adapters/math/versions").json()["data"][0]
    assert promoted["past"] == [1, 2, 3, 2]
    assert http.delete("/adapters/math/versions/2").status_code == 200
    assert http.get("/adapters/math/versions").json()["data"][0]["past"] == [1]
    assert http.post("/adapters/math/rollback").json()["version"] == 1
    assert tags.models[LATEST] == f"digest-{jobs[0]}"
    error(http.post("/adapters/math/rollback"), 409)
    error(http.post("/adapters/math/promote", json={"version": 2}), 404)
    error(http.post("/adapters/math/versions/2/restore"), 404)


def test_what_serves_takes_force_and_then_nothing_serves(http, build, tags, ledger):
    first = served(build, tags)
    second = served(build, tags)
    told = error(http.delete("/adapters/math/versions/2"), 409)
    assert "serves as locollm-math-tiny:latest" in told["message"]
    assert "loco rm math --version 2 --force" in told["hint"]
    assert tags.models[LATEST] == f"digest-{second}"
    gone = http.delete("/adapters/math/versions/2", params={"force": True}).json()
    assert (gone["stopped"], gone["cleared"]) == (True, True)
    assert tags.models == {f"{MODEL}:{first}": f"digest-{first}"}
    assert ledger.registry.promoted(MODEL) is None
    assert ledger.registry.undeployed() == []
    follow_all(ledger, tags.url)
    assert LATEST not in tags.models
    error(http.post("/adapters/math/rollback"), 409)
    http.post("/adapters/math/promote", json={"version": 1}).raise_for_status()
    assert tags.models[LATEST] == f"digest-{first}"
    error(http.post("/adapters/math/rollback"), 409)


def test_a_latest_that_somebody_else_made_stays(http, build, tags):
    served(build, tags)
    tags.models[LATEST] = "foreign"
    http.delete("/adapters/math/versions/1", params={"force": True}).raise_for_status()
    assert tags.models == {LATEST: "foreign"}


def test_while_a_job_works_on_a_version_it_stays(http, build, tags, ledger):
    job = build.registered()
    told = error(http.delete("/adapters/math/versions/1"), 409)
    assert f"while job {job.id} works on it" in told["message"]
    assert f"loco cancel {job.id}" in told["hint"]
    build.measured(job, Verdict.REFUSED)
    again = build.measure_again(job)
    told = error(http.delete("/adapters/math/versions/1"), 409)
    assert f"loco cancel {again.job_id}" in told["hint"]
    build.commit(again, {"candidate": f"{MODEL}:{job.id}", "comparisons": []})
    assert http.delete("/adapters/math/versions/1").status_code == 200


def test_a_job_that_measures_it_over_another_job_counts(http, build, tags, ledger):
    """An eval of what an eval measured: both ask the candidate of the first job."""
    first = build.registered(stages=NO_EVAL)
    again = build.measure_again(first)
    build.commit(again, {"candidate": f"{MODEL}:{first.id}", "comparisons": []})
    third = build.measure_again(ledger.job(again.job_id))
    told = error(http.delete("/adapters/math/versions/1"), 409)
    assert f"while job {third.job_id} works on it" in told["message"]
    build.commit(third, {"candidate": f"{MODEL}:{first.id}", "comparisons": []})
    assert http.delete("/adapters/math/versions/1").status_code == 200


def test_what_a_job_between_has_registered_itself_is_another_version(http, build, ledger):
    first = build.registered(stages=NO_EVAL)
    own, _ = ledger.submit(build._spec(stages=("register",), from_job=first.id))
    build.commit(build.claim(Stage.REGISTER, own), register_result(own.id))
    third = build.measure_again(own)
    assert third.job_id in error(http.delete("/adapters/math/versions/2"), 409)["message"]
    assert http.delete("/adapters/math/versions/1").status_code == 200


def test_what_an_eval_compares_with_stays_until_it_ends(http, build, tags, ledger):
    served(build, tags)
    job = build.registered()  # its eval runs
    told = error(http.delete("/adapters/math/versions/1", params={"force": True}), 409)
    assert f"while job {job.id} compares with it" in told["message"]
    assert f"loco cancel {job.id}" in told["hint"]
    ledger.registry.promote("math", 2, by="me", reason="", force=False)
    assert job.id in error(http.delete("/adapters/math/versions/1"), 409)["message"]
    build.measured(job, Verdict.BETTER, compared=1)
    assert http.delete("/adapters/math/versions/1").status_code == 200


def test_an_eval_compares_with_what_served_under_its_model_when_it_began(
    http, build, tags, ledger, monkeypatch
):
    monkeypatch.setattr("loco.serving.latest.PAUSE", 0.0)
    served(build, tags)
    served(build, tags)  # 2 took its place before the eval began
    served(build, tags, Verdict.REFUSED)
    job = build.registered()
    build.registered(model="locollm-other")
    for number in (1, 3):
        assert http.delete(f"/adapters/math/versions/{number}").status_code == 200
    assert job.id in error(http.delete("/adapters/math/versions/2?force=true"), 409)["message"]
    build.measured(job, Verdict.REFUSED)
    assert http.delete("/adapters/math/versions/2?force=true").status_code == 200


def test_an_eval_that_begins_between_the_look_and_the_deletion_counts(build, tags, ledger, spec):
    served(build, tags)
    other = build.registered(stages=NO_EVAL)
    ledger.submit(spec(stages=("eval",), from_job=other.id))
    looked, begun = ledger.withdrawals._at_work, []

    def look(*which):
        found = looked(*which)
        if not begun:
            begun.append(build.claim(Stage.EVAL))
        return found

    ledger.withdrawals._at_work = look
    version = ledger.registry.version("math", 1)
    with pytest.raises(Conflict, match="compares with it"):
        ledger.withdrawals.remove("math", version, owner=None, digests=[], force=True)
    assert ledger.registry.promoted(MODEL).version == 1


def test_what_is_submitted_between_the_look_and_the_deletion_counts(http, build, ledger, spec):
    job = build.registered(stages=NO_EVAL)
    looked = ledger.withdrawals._at_work

    def look(*which):
        found = looked(*which)
        if found is None:
            ledger.submit(spec(stages=("eval",), from_job=job.id))
        return found

    ledger.withdrawals._at_work = look
    version = ledger.registry.version("math", 1)
    with pytest.raises(Exception, match="works on it"):
        ledger.withdrawals.remove("math", version, owner=None, digests=[], force=True)
    assert ledger.registry.version("math", 1) == version


def test_ollama_down_deletes_the_version_and_the_worker_its_names_later(
    http, build, tags, ledger, live_api, monkeypatch
):
    monkeypatch.setattr("loco.serving.withdrawal.PAUSE", 0.0)
    monkeypatch.setattr("loco.serving.latest.PAUSE", 0.0)
    served(build, tags)
    live_api.stop()
    up = live_api.settings
    live_api.settings = up.model_copy(update={"ollama_host": "http://127.0.0.1:9"})
    live_api.start()
    gone = http.delete("/adapters/math/versions/1", params={"force": True}).json()
    assert (gone["stopped"], gone["cleared"]) == (True, False)
    assert numbers(http) == []
    assert http.delete("/adapters/math/versions/1").json() == gone, "it tries again"
    clear_withdrawn(ledger, "http://127.0.0.1:9")  # logs only
    follow_all(ledger, "http://127.0.0.1:9")
    assert LATEST in tags.models
    follow_all(ledger, tags.url)
    clear_withdrawn(ledger, tags.url)
    assert tags.models == {}
    assert http.delete("/adapters/math/versions/1").json() == gone | {"cleared": True}


def test_what_ollama_missed_while_it_was_down_does_not_serve_for_ever(
    http, build, tags, ledger, monkeypatch
):
    """`latest` is the first version's, which was deleted like all that should have followed it."""
    monkeypatch.setattr("loco.serving.latest.PAUSE", 0.0)
    down = "http://127.0.0.1:9"
    served(build, tags)
    for number in (2, 3):
        build.promoted()
        follow_all(ledger, down)
        if number == 2:
            withdraw(ledger, 1, force=False)
        withdraw(ledger, number, force=True)
        follow_all(ledger, down)
    assert LATEST in tags.models
    follow_all(ledger, tags.url)
    assert LATEST not in tags.models
    assert ledger.withdrawals.latest_of(MODEL) == set()


def test_a_latest_of_somebody_who_copied_too_late_goes_too(build, tags, ledger, monkeypatch):
    """The copy of a version came after another one was promoted, and then both were deleted."""
    monkeypatch.setattr("loco.serving.latest.PAUSE", 0.0)
    build.promoted()
    late = ledger.registry.promoted(MODEL)
    ledger.registry.deploy(MODEL, "late", patience=60)
    build.promoted()
    tags.models[LATEST] = late.digest
    ledger.registry.deployed(MODEL, "late", serial=late.serial, digest=late.digest, pause=0)
    withdraw(ledger, 1, force=False)
    withdraw(ledger, 2, force=True)
    follow_all(ledger, tags.url)
    assert LATEST not in tags.models


def test_a_crash_before_ollama_was_asked_is_made_up_for(http, build, tags, ledger):
    first = served(build, tags)
    second = served(build, tags)
    for job, number in ((second, 2), (first, 1)):
        version = ledger.registry.version("math", number)
        digests = [f"digest-{job}"]
        ledger.withdrawals.remove("math", version, owner=None, digests=digests, force=True)
        # and here the process died
    assert len(tags.models) == 3
    assert http.delete("/adapters/math/versions/2").json()["cleared"] is True
    assert tags.models == {f"{MODEL}:{first}": f"digest-{first}"}
    clear_withdrawn(ledger, tags.url)
    assert tags.models == {}


def test_a_new_promotion_before_latest_is_gone_wins(build, tags, ledger):
    first = served(build, tags)
    served(build, tags)
    version = ledger.registry.version("math", 2)
    digests = [version.digest]
    ledger.withdrawals.remove("math", version, owner=None, digests=digests, force=True)
    ledger.registry.promote("math", 1, by="me", reason="", force=False)
    follow_all(ledger, tags.url)
    assert tags.models[LATEST] == f"digest-{first}"
    assert ledger.withdrawals.latest_of(MODEL) == set()


def test_a_job_that_registers_again_keeps_its_candidate(build, tags, ledger, spec):
    job = build.registered(stages=NO_EVAL)
    version = ledger.registry.version("math", 1)
    ledger.withdrawals.remove("math", version, owner=None, digests=[], force=False)
    clear_withdrawn(ledger, "http://127.0.0.1:9")  # Ollama is down
    tags.models[exported_base(version.candidate)] = "digest-of-base"
    assert version.candidate in ledger.withdrawals.candidates(due=False)
    again, _ = ledger.submit(spec(stages=("register",), from_job=job.id))
    build.commit(build.claim(Stage.REGISTER, again), register_result(job.id))
    tags.models[version.candidate] = version.digest
    clear_withdrawn(ledger, tags.url)
    assert {version.candidate, exported_base(version.candidate)} <= tags.models.keys()
    assert ledger.withdrawals.candidates(due=False) == []
    assert [v.version for v in ledger.registry.versions("math")[0]] == [2]


def test_numbers_are_not_given_again_after_redis_lost_its_data(
    http, build, tags, ledger, adapters_dir
):
    served(build, tags)
    served(build, tags)
    http.delete("/adapters/math/versions/2", params={"force": True}).raise_for_status()
    http.delete("/adapters/math/versions/1", params={"force": True}).raise_for_status()
    with ledger._connection.client() as client:
        client.delete(*client.keys(f"{ledger.namespace}:*"))
    take_over(ledger, adapters_dir)
    served(build, tags)
    assert numbers(http) == [3]


def test_who_may(live_api, http, build, tags, redis_url, namespace):
    keys = Keys.connect(redis_url, namespace=namespace)
    bearer = {
        name: {"Authorization": f"Bearer {keys.create(name, scope=scope)[1]}"}
        for name, scope in {"ben": Scope.SUBMIT, "eve": Scope.READ, "root": Scope.ADMIN}.items()
    }
    served(build, tags)
    path = "/adapters/math/versions/1"
    assert http.delete(path).status_code == 401
    assert http.delete(path, headers=bearer["eve"]).status_code == 403
    told = error(http.delete(path, headers=bearer["ben"]), 403)
    assert "this key belongs to 'ben'" in told["message"]
    told = error(http.delete(path, params={"force": True}, headers=bearer["ben"]), 403)
    assert "force deletes what serves" in told["message"]
    assert http.delete(path, headers=bearer["root"]).status_code == 409
    assert http.delete(path, params={"force": True}, headers=bearer["root"]).status_code == 200
    assert http.delete(path, headers=bearer["ben"]).status_code == 404
    trail = http.get("/audit", headers=bearer["root"]).json()["data"]
    told = [(e["by"], e["status"], e["detail"]) for e in trail if e["action"] == "deleteVersion"]
    assert ("root", 200, "version 1, force") in told
    keys.close()


def test_an_eval_that_compared_with_a_deleted_version_says_so(build, tags, ledger):
    """Whatever the look for jobs missed."""
    served(build, tags)
    job = build.registered()
    ledger.withdrawals._at_work = lambda *_: None
    withdraw(ledger, 1, force=True)
    job = build.measured(job, Verdict.BETTER, compared=1)
    assert job.promotion.promoted is False
    assert "version 1, which it was compared with, was deleted meanwhile" in job.promotion.reason
    assert ledger.registry.promoted(MODEL) is None
