"""`loco adapters push` and `rm`: what comes to a server, and how it goes again."""

from pathlib import Path

import pytest
from units_recipe import PROBLEMS, RECIPE, ROWS
from versions import Builder

from loco.contracts.evaluation import Verdict
from loco.contracts.requests import JobRequest
from loco.contracts.stages import Stage
from loco.recipes.resolve import resolve

pytestmark = pytest.mark.redis

MODEL = "locollm-units-tiny"


@pytest.fixture
def live_settings(live_settings, tags):
    return live_settings.model_copy(update={"ollama_host": tags.url})


@pytest.fixture
def pushed(run, tmp_path, adapters_dir: Path) -> Path:
    """The folder of a pushed adapter on the server."""
    folder = tmp_path / "mine" / "units"
    folder.mkdir(parents=True)
    (folder / "adapter.yaml").write_text(RECIPE)
    (folder / "rows.jsonl").write_text(ROWS)
    (folder / "problems.jsonl").write_text(PROBLEMS)
    code, out, told = run("adapters", "push", "units", "--from", str(folder))
    assert (code, "recipe 1 with" in out) == (0, True), told
    return adapters_dir / "units"


def test_a_push_that_changes_nothing_says_so(run, pushed, tmp_path):
    words = ("adapters", "push", "units", "--from", str(tmp_path / "mine" / "units"))
    code, out, _ = run(*words)
    assert (code, "is unchanged: recipe 1 with" in out) == (0, True), out
    code, out, _ = run(*words, "--force")
    assert (code, "is unchanged: recipe 1 with" in out) == (0, True), out


def test_an_adapter_goes_with_its_versions_and_jobs(
    run, pushed, client, ledger, adapters_dir, tags
):
    failed = client.submit("units", profile="tiny", stages=["prepare"])
    code, _, told = run("adapters", "rm", "units", "--all")
    assert (code, f"loco cancel {failed.id}" in told) == (2, True), told
    client.cancel(failed.id)
    request = JobRequest(adapter="units", profile="tiny")
    build = Builder(ledger, lambda: resolve(adapters_dir, request))
    jobs = []
    for _ in range(2):
        pointer = ledger.registry.promoted(MODEL)
        job = build.registered(model=MODEL)
        compared = pointer.version if pointer else None
        build.measured(job, Verdict.BETTER, compared=compared, model=MODEL)
        tags.models[f"{MODEL}:{job.id}"] = f"digest-{job.id}"
        jobs.append(job.id)
    code, _, told = run("adapters", "rm", "units")
    assert (code, "versions 2, 1 and jobs" in told) == (2, True), told
    assert "`loco rm units --version 1`, then `loco rm units --version 2 --force`" in told
    assert (pushed / "adapter.yaml").is_file()
    code, out, told = run("adapters", "rm", "units", "--all")
    assert code == 0, told
    assert "units is deleted" in out
    assert not pushed.exists()
    assert tags.models == {}
    assert list(client.jobs(adapter="units")) == []
    code, _, told = run("adapters", "rm", "units")
    assert (code, "No adapter 'units'" in told) == (2, True)


def test_a_job_that_reuses_another_names_the_order(run, pushed, client, hands, ledger):
    first = client.submit("units", profile="tiny", stages=["prepare"])
    hands.commit(hands.claim(Stage.PREPARE), {}, {"training_data.jsonl": b"r"})
    second = client.submit("units", profile="tiny", stages=["prepare", "train"])
    claim = hands.claim(Stage.PREPARE)
    ledger.commit(
        *(claim.task_id, claim.token),
        result={},
        artifacts=(),
        fingerprint="f",
        reused_from=first.id,
    )
    client.cancel(second.id)
    code, _, told = run("rm", first.id)
    assert (code, f"loco rm {second.id} {first.id}" in told) == (2, True), told
    assert run("rm", first.id, second.id)[0] == 0
    assert run("adapters", "rm", "units")[0] == 0


def test_all_deletes_nothing_of_an_adapter_that_may_not_be_deleted(run, client, ledger, spec, tags):
    """Its versions and jobs went before the server said so."""
    build = Builder(ledger, spec)
    job = build.promoted()
    tags.models[f"{job.spec.register_.model_name}:{job.id}"] = f"digest-{job.id}"
    before = dict(tags.models)
    code, _, told = run("adapters", "rm", "math", "--all")
    assert (code, "was not pushed to this server" in told) == (2, True), told
    assert [v.version for v in client.versions("math")] == [1]
    assert client.job(job.id).id == job.id
    assert tags.models == before


def test_all_deletes_a_job_after_those_that_reuse_it(run, pushed, client, hands, ledger):
    """Newest first stopped at the first older job that reused a newer one's stages."""
    first = client.submit("units", profile="tiny", stages=["prepare"])
    claim = hands.claim(Stage.PREPARE)
    second = client.submit("units", profile="tiny", stages=["prepare"])
    hands.commit(hands.claim(Stage.PREPARE), {}, {"training_data.jsonl": b"r"})
    ledger.commit(
        *(claim.task_id, claim.token),
        result={},
        artifacts=(),
        fingerprint="f",
        reused_from=second.id,
    )
    assert client.removal(second.id).needed_by
    code, _, told = run("adapters", "rm", "units", "--all")
    assert code == 0, told
    assert told.index(f"Job {first.id} is deleted") < told.index(f"Job {second.id} is deleted")
    assert not pushed.exists()
