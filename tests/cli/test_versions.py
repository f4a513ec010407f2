"""`loco versions`, `promote`, `rollback`, `setup`, and the verdict wherever a job is shown."""

import hashlib
import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from versions import MODEL, Builder, eval_result, register_result

from loco.cli import watch
from loco.cli.main import main
from loco.cli.summary import is_promoted
from loco.contracts.evaluation import Verdict
from loco.contracts.jobs import JobStatus
from loco.contracts.stages import Stage
from loco.running.registry_file import take_over
from loco.serving.latest import follow_all

pytestmark = pytest.mark.redis

LATEST = f"{MODEL}:latest"
GGUF = b"GGUF of a small model"


@pytest.fixture
def live_settings(live_settings, tags):
    return live_settings.model_copy(update={"ollama_host": tags.url})


@pytest.fixture
def build(ledger, spec) -> Builder:
    return Builder(ledger, spec)


@pytest.fixture
def run(live_api, monkeypatch, capsys):
    """Runs one command in this process; gives its exit code and what it printed."""
    monkeypatch.setenv("LOCO_SERVER", live_api.url)

    def command(*words: str) -> tuple[int, str, str]:
        code = main(list(words))
        stdout, stderr = capsys.readouterr()
        return code, stdout, stderr

    return command


def built(build, tags, verdict=Verdict.BETTER) -> str:
    pointer = build.ledger.registry.promoted(MODEL)
    job = build.registered()
    build.measured(job, verdict, compared=pointer.version if pointer else None)
    tags.models[f"{MODEL}:{job.id}"] = f"digest-{job.id}"
    return job.id


def test_versions_as_a_table(run, build, tags):
    assert "no versions yet" in run("versions", "math")[2]
    first = built(build, tags)
    built(build, tags, Verdict.REFUSED)
    build.registered()
    code, stdout, _ = run("versions", "math")
    assert code == 0
    rows = [line.split() for line in stdout.splitlines()]
    assert [row[0] for row in rows] == ["version", "3", "2", "1"]
    assert "not measured" in stdout
    (line,) = [line for line in stdout.splitlines() if "model gone" in line]
    assert line.startswith(f"{'3':>7}")
    assert "loco setup math --version 3" in run("versions", "math")[2]
    (line,) = [line for line in stdout.splitlines() if first in line]
    assert "waits for Ollama" in line
    assert "held_out 42 % → 57 %" in line
    assert "better" in line
    follow_all(build.ledger, tags.url)
    (line,) = [line for line in run("versions", "math")[1].splitlines() if first in line]
    assert "serves" in line
    assert [v["version"] for v in json.loads(run("versions", "math", "--json")[1])] == [3, 2, 1]
    assert len(json.loads(run("versions", "math", "--limit", "2", "--json")[1])) == 2
    assert json.loads(run("versions", "math", "--model", "nobody", "--json")[1]) == []


#: As the release before the gate wrote it (tag 4ce5b73), shortened by `hyperparameters`.
REGISTRY_OF_4CE5B73 = """\
# Written by the stages register and eval. The newest version of an adapter comes first.
adapters:
  math:
    version: 1
    job: 20261122-164524-8d2d68
    model: locollm-math
    candidate: locollm-math:20261122-164524-8d2d68
    promoted: true
    history:
    - version: 1
      job: 20261122-164524-8d2d68
      model: locollm-math
      candidate: locollm-math:20261122-164524-8d2d68
      promoted: true
      base_model: smollm2-135m-instruct
      base_ollama: smollm2:135m
      quantization: Q4_K_M
      digest: 0a1b2c
      blob: sha256:0a1b2c
      gguf: math/runs/20261122-164524-8d2d68/export/a1/gguf/unsloth.Q4_K_M.gguf
      size_bytes: 105454432
      system: null
      parameters: {temperature: 0.0, num_predict: 512, stop: [<|im_end|>]}
      data: {source: arithmetic generator, rows: 160, sha256: 0a1b2c}
      hyperparameters: {}
      training: {engine: peft, steps: 20}
      scores:
        benchmark: {base: 0.5, candidate: 0.6, problems: 20, p_value: 0.5}
        held_out: {base: 0.0, candidate: 0.25, problems: 100, p_value: 0.01}
      registered_at: '2026-11-22T16:49:00+00:00'
"""


def test_versions_of_the_release_before_the_gate_are_shown(run, ledger, adapters_dir):
    (adapters_dir / "registry.yaml").write_text(REGISTRY_OF_4CE5B73)
    assert take_over(ledger, adapters_dir) == 1
    code, stdout, stderr = run("versions", "math")
    assert code == 0, stderr
    assert "benchmark 50 % → 60 %" in stdout
    (shown,) = json.loads(run("versions", "math", "--json")[1])
    assert shown["scores"]["held_out"]["base"] == 0.0


def test_promote_and_rollback(run, build, tags):
    first = built(build, tags)
    built(build, tags)
    code, stdout, _ = run("promote", "math", "1", "--reason", "calmer")
    assert (code, stdout) == (0, f"{LATEST} is version 1 ({MODEL}:{first}).\n")
    assert tags.models[LATEST] == f"digest-{first}"
    assert build.ledger.registry.version("math", 1).events[-1].reason == "calmer"
    code, stdout, _ = run("rollback", "math", "--json")
    assert (code, json.loads(stdout)["version"]) == (0, 2)
    assert run("rollback", "math")[0] == 0
    code, _, stderr = run("rollback", "math", "--model", MODEL)
    assert code == 2
    assert "No version was promoted" in stderr


def test_a_refused_version_takes_force(run, build, tags):
    refused = built(build, tags, Verdict.REFUSED)
    code, _, stderr = run("promote", "math", "1")
    assert code == 2
    assert "The gate refused version 1 of math" in stderr
    assert "--force" in stderr
    assert run("promote", "math", "1", "--force")[0] == 0
    assert tags.models[LATEST] == f"digest-{refused}"


def stored(build, adapters_dir, job_id: str, number: int) -> None:
    path = adapters_dir / build.ledger.registry.version("math", number).gguf
    path.parent.mkdir(parents=True)
    path.write_bytes(GGUF)


def test_setup_makes_every_promoted_model_again_and_says_which_it_cannot(
    run, build, tags, adapters_dir
):
    assert "No version is promoted yet" in run("setup")[2]
    blob = f"sha256:{hashlib.sha256(GGUF).hexdigest()}"
    tiny = build.promoted(blob=blob)
    stored(build, adapters_dir, tiny.id, 1)
    build.promoted(blob=blob, model="locollm-math")  # its GGUF is gone
    old = build.registered(blob=blob)
    stored(build, adapters_dir, old.id, 3)
    assert tags.models == {}
    code, stdout, _ = run("setup")
    assert code == 1
    lines = stdout.splitlines()
    assert f"{LATEST} (version 1) was made again. Its digest is" in stdout
    assert any("locollm-math:latest (version 2) could not be created" in line for line in lines)
    assert "is missing" in stdout
    assert set(tags.models) == {LATEST, f"{MODEL}:{tiny.id}"}
    assert build.ledger.registry.promoted(MODEL).version == 1
    assert f"{LATEST} (version 1) is there." in run("setup")[1]
    assert f"{LATEST} (version 1) was made again." in run("setup", "--all")[1]
    assert run("setup", "math", "--version", "3")[0] == 0
    assert f"{MODEL}:{old.id}" in tags.models
    assert run("setup", "--version", "3")[0] == 2


def test_setup_says_that_a_version_is_unknown(run, build):
    build.promoted()
    code, stdout, stderr = run("setup", "math", "--version", "99")
    assert (code, stdout) == (2, "")
    assert "Adapter math has no version 99." in stderr
    code, _, stderr = run("setup", "maths")
    assert code == 2
    assert "maths" in stderr


def test_setup_makes_models_of_adapters_without_a_recipe_too(run, build, tags, adapters_dir):
    blob = f"sha256:{hashlib.sha256(GGUF).hexdigest()}"
    stored(build, adapters_dir, build.promoted(blob=blob).id, 1)
    build.promoted(blob=blob, model="locollm-math")  # its GGUF is gone
    (adapters_dir / "math" / "adapter.yaml").unlink()
    code, stdout, _ = run("setup")
    assert code == 1
    assert f"{LATEST} (version 1) was made again." in stdout
    assert "locollm-math:latest (version 2) could not be created" in stdout
    assert "is missing" in stdout
    assert "  warning: Not proven: no readable serving_reference.json" in stdout
    assert LATEST in tags.models


class TestVerdicts:
    """What the views say of a job that has ended."""

    @pytest.fixture
    def ended(self, build, tags):
        """Brings a job to its end; answers its ID."""

        def make(verdict: Verdict) -> str:
            job = build.registered()
            tags.models[f"{MODEL}:{job.id}"] = f"digest-{job.id}"
            pointer = build.ledger.registry.promoted(MODEL)
            build.measured(job, verdict, compared=pointer.version if pointer else None)
            follow_all(build.ledger, tags.url)
            return job.id

        return make

    def test_a_promotion_is_said_with_its_reasons(self, run, ended):
        job = ended(Verdict.BETTER)
        code, stdout, _ = run("job", job)
        assert code == 0
        assert f"{MODEL} now serves version 1 (better)" in stdout
        told = " ".join(stdout.split())
        assert (
            "Verdict: better. The adapter solved 57 of 100 problems of held_out, its base" in told
        )
        assert f"So {MODEL} now serves it." in told
        assert "held_out: measured as better." in stdout
        assert f"ollama run {MODEL}" in stdout
        (line,) = [line for line in run("jobs")[1].splitlines() if job in line]
        assert "better" in line

    def test_a_refusal_is_a_success_that_says_what_keeps_serving(self, run, ended):
        ended(Verdict.BETTER)
        job = ended(Verdict.REFUSED)
        code, stdout, _ = run("watch", job)
        assert code == 0
        assert f"version 2 was not promoted: version 1 keeps serving as {MODEL}" in stdout
        assert "held_out: measured as refused." in stdout
        assert "Try a lower rate." in stdout
        assert f"ollama run {MODEL}:{job}" in stdout

    def test_a_refusal_of_what_serves_already_is_no_success(self, run, ended, build):
        ended(Verdict.BETTER)
        job = ended(Verdict.BETTER)
        claim = build.measure_again(build.ledger.job(job))
        build.commit(claim, eval_result(f"{MODEL}:{job}", Verdict.REFUSED))
        assert build.ledger.job(claim.job_id).promotion.promoted
        code, stdout, _ = run("job", claim.job_id)
        assert code == 0
        assert f"version 2 serves as {MODEL}, but the gate now refuses it" in stdout
        assert "now serves" not in stdout
        assert "held_out: measured as refused." in stdout
        assert "Try a lower rate." in stdout
        assert f"loco rollback math --model {MODEL}" in stdout
        assert not is_promoted(build.ledger.job(claim.job_id))
        assert is_promoted(build.ledger.job(job))

    def test_the_first_refusal_leaves_nothing(self, run, ended):
        stdout = run("job", ended(Verdict.REFUSED))[1]
        assert f"nothing serves as {MODEL} yet" in stdout


@pytest.mark.parametrize(("verdict", "plain", "required"), [("better", 0, 0), ("refused", 0, 1)])
def test_require_promoted_decides_the_exit_code(
    live_api, monkeypatch, capsys, hands, tags, verdict, plain, required
):
    monkeypatch.setenv("LOCO_SERVER", live_api.url)
    monkeypatch.setattr(watch, "SERVED_SECONDS", 0.5)
    compared = None
    for words, wanted in (((), plain), (("--require-promoted",), required)):
        arguments = ["submit", "math", "--profile", "tiny", "--wait", *words]
        with ThreadPoolExecutor(1) as pool:
            command = pool.submit(main, arguments)
            job_id = do_the_work(hands, Verdict(verdict), compared)
            assert command.result(60) == wanted
        compared = 1 if verdict == "better" else None
        assert hands.ledger.job(job_id).status == "succeeded"
    stderr = capsys.readouterr().err
    assert ("in Ollama does not show it yet" in stderr) == (verdict == "better")


def test_require_promoted_is_not_met_by_a_refusal_of_what_serves(
    live_api, monkeypatch, build, tags
):
    monkeypatch.setenv("LOCO_SERVER", live_api.url)
    monkeypatch.setattr(watch, "SERVED_SECONDS", 0.5)
    built_job = built(build, tags)
    follow_all(build.ledger, tags.url)
    words = ["submit", "math", "--profile", "tiny", "--stages", "eval", "--wait"]
    for more, wanted in (((), 0), (("--require-promoted",), 1)):
        with ThreadPoolExecutor(1) as pool:
            command = pool.submit(main, [*words, "--from-job", built_job, *more])
            deadline = time.monotonic() + 30
            while not build.ledger.jobs(status=JobStatus.QUEUED)[0]:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            result = eval_result(f"{MODEL}:{built_job}", Verdict.REFUSED)
            build.commit(build.claim(Stage.EVAL), result)
            assert command.result(60) == wanted


def do_the_work(hands, verdict: Verdict, compared: int | None) -> str:
    """Every stage of the job that a command is about to submit."""
    deadline = time.monotonic() + 30
    while not hands.ledger.jobs(status=JobStatus.QUEUED)[0]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for stage in Stage:
        claim = hands.claim(stage)
        result: dict[str, object] = {}
        if stage is Stage.REGISTER:
            result = register_result(claim.job_id)
        if stage is Stage.EVAL:
            result = eval_result(f"{MODEL}:{claim.job_id}", verdict, compared=compared)
        hands.commit(claim, result)
    return str(claim.job_id)


def test_require_promoted_needs_wait(run):
    code, _, stderr = run("submit", "math", "--require-promoted")
    assert code == 2
    assert "add --wait" in stderr
