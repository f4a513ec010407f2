"""Versions over HTTP: pages, promotion, rollback, restore; who did it; what Ollama makes of it."""

import hashlib
import shutil
from collections.abc import Iterator

import httpx
import pytest
from tags_server import Tags
from versions import MODEL, Builder, built

from loco.contracts.artifacts import Artifact, describe
from loco.contracts.evaluation import Verdict
from loco.contracts.serving import REFERENCE, ReferencePrompt, ServingReference
from loco.contracts.stages import Stage
from loco.ledger.keys import Keys
from loco.serving.withdrawal import clear_withdrawn, remove_version

pytestmark = pytest.mark.redis

JSON = {"Content-Type": "application/json"}
LATEST = f"{MODEL}:latest"
GGUF = b"GGUF of a small model"
REFERENCE_JSON = ServingReference(
    prompts=(
        ReferencePrompt(
            name="plain",
            messages=({"role": "user", "content": "What is 2 + 2?"},),
            rendered="<|user|>What is 2 + 2?",
            tokens=9,
        ),
    ),
    num_predict=64,
    chat_template_sha256="",
    architecture="llama",
    context_length=8192,
    parameter_count=1,
    tensors={},
    vocabulary=1,
    vocabulary_sha256="",
    thinks=False,
).model_dump_json()
BLOB = f"sha256:{hashlib.sha256(GGUF).hexdigest()}"


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


def error(answer: httpx.Response, status: int) -> dict[str, str]:
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


def test_versions_come_in_pages_with_all_that_is_known(http, build, tags):
    jobs = [built(build, tags, v) for v in (Verdict.BETTER, Verdict.REFUSED, Verdict.UNPROVEN)]
    page = http.get("/adapters/math/versions", params={"limit": 2}).json()
    assert (page["object"], page["has_more"]) == ("list", True)
    assert [v["version"] for v in page["data"]] == [3, 2]
    newest, refused = page["data"]
    assert newest["job"] == jobs[2]
    assert newest["scores"]["held_out"]["base"]["accuracy"] == 0.42
    assert [e["action"] for e in newest["events"]] == ["registered", "promoted"]
    assert refused["gate"]["verdict"] == "refused"
    assert refused["promoted"] is False
    page = http.get("/adapters/math/versions", params={"after": 2}).json()
    assert ([v["version"] for v in page["data"]], page["has_more"]) == ([1], False)
    page = http.get("/adapters/math/versions", params={"model": "locollm-math"}).json()
    assert page["data"] == []
    detail = http.get("/adapters/math").json()
    assert [v["version"] for v in detail["versions"]] == [3, 2, 1]


def test_a_version_whose_model_left_ollama_is_marked(http, build, tags, adapters_dir):
    first = built(build, tags)
    built(build, tags)
    del tags.models[f"{MODEL}:{first}"]
    page = http.get("/adapters/math/versions").json()["data"]
    assert [(v["version"], v["missing"]) for v in page] == [(2, False), (1, True)]
    http.post("/adapters/math/promote", json={"version": 2}).raise_for_status()
    assert "missing" not in (adapters_dir / "registry.yaml").read_text()


def test_unknown_adapters_and_wrong_pages(http):
    assert error(http.get("/adapters/maths/versions"), 404)["code"] == "unknown_adapter"
    assert error(http.post("/adapters/maths/promote", json={"version": 1}), 404)
    assert error(http.post("/adapters/..%2f/rollback"), 404)
    assert error(http.get("/adapters/math/versions", params={"limit": 0}), 422)["param"] == "limit"
    assert (
        error(http.post("/adapters/math/promote", json={"version": 0}), 422)["param"] == "version"
    )
    assert error(http.post("/adapters/math/promote", json={"version": 1, "x": 1}), 422)
    assert error(http.post("/adapters/math/promote", json={}), 422)["param"] == "version"
    surrogate = b'{"version": 1, "reason": "\\ud800"}'
    assert error(http.post("/adapters/math/promote", content=surrogate, headers=JSON), 422)
    long = {"version": 1, "reason": "x" * 1001}
    assert error(http.post("/adapters/math/promote", json=long), 422)["param"] == "reason"
    assert (
        error(http.post("/adapters/math/promote", json={"version": 9}), 404)["param"] == "version"
    )


def test_an_adapter_whose_recipe_is_gone_still_shows_its_versions(http, build, tags, adapters_dir):
    built(build, tags)
    (adapters_dir / "math" / "adapter.yaml").unlink()
    assert len(http.get("/adapters/math/versions").json()["data"]) == 1
    (adapters_dir / "math" / "adapter.yaml").write_text("name: [")
    assert len(http.get("/adapters/math/versions").json()["data"]) == 1
    assert http.post("/adapters/math/promote", json={"version": 1}).status_code == 200
    assert error(http.post("/adapters/math/rollback"), 409)


def test_what_is_promoted_is_listed_whatever_became_of_the_recipe(http, build, adapters_dir):
    assert http.get("/promoted").json()["data"] == []
    build.promoted()
    build.promoted(model="locollm-math")
    shutil.rmtree(adapters_dir / "math")
    page = http.get("/promoted").json()
    assert page["has_more"] is False
    assert [(p["adapter"], p["model"], p["version"]) for p in page["data"]] == [
        ("math", "locollm-math", 2),
        ("math", MODEL, 1),
    ]
    assert http.get("/promoted", params={"adapter": "math"}).json() == page
    assert error(http.get("/promoted", params={"adapter": "maths"}), 404)


def test_promote_returns_once_ollama_serves_it(http, build, tags, adapters_dir):
    first = built(build, tags)
    built(build, tags)
    answer = http.post("/adapters/math/promote", json={"version": 1, "reason": "calmer"})
    assert answer.status_code == 200, answer.text
    assert "reason: calmer" in (adapters_dir / "registry.yaml").read_text()
    version = answer.json()
    assert (version["version"], version["promoted"]) == (1, True)
    assert version["served_at"] is not None
    assert tags.models[LATEST] == f"digest-{first}"
    assert version["events"][-1] | {"at": ""} == {
        "at": "",
        "action": "promoted",
        "by": "local",
        "reason": "calmer",
        "forced": False,
    }


def test_a_refused_version_takes_force(http, build, tags):
    built(build, tags)
    refused = built(build, tags, Verdict.REFUSED)
    told = error(http.post("/adapters/math/promote", json={"version": 2}), 409)
    assert told["code"] == "version_refused"
    assert "measured as refused" in told["message"]
    assert "force" in told["hint"]
    assert LATEST not in tags.models
    forced = http.post("/adapters/math/promote", json={"version": 2, "force": True}).json()
    assert forced["events"][-1]["forced"] is True
    assert tags.models[LATEST] == f"digest-{refused}"


def test_rollback_goes_back_one_by_one_until_there_is_none(http, build, tags):
    jobs = [built(build, tags) for _ in range(3)]
    for expected in (2, 1):
        answer = http.post("/adapters/math/rollback", json={"reason": "worse"})
        assert answer.status_code == 200, answer.text
        assert answer.json()["version"] == expected
        assert tags.models[LATEST] == f"digest-{jobs[expected - 1]}"
    told = error(http.post("/adapters/math/rollback"), 409)
    assert "No version was promoted as locollm-math-tiny before version 1" in told["message"]
    assert tags.models[LATEST] == f"digest-{jobs[0]}"


def test_rollback_skips_nothing_silently(http, build, tags):
    jobs = [built(build, tags) for _ in range(3)]
    del tags.models[f"{MODEL}:{jobs[1]}"]
    told = error(http.post("/adapters/math/rollback"), 409)
    assert told["code"] == "candidate_missing"
    assert "loco setup math --version 2" in told["hint"]
    assert http.get("/adapters/math/versions").json()["data"][0]["promoted"] is True


def test_rollback_asks_which_of_several_models(http, build, tags):
    assert (
        "No version of math is promoted"
        in error(http.post("/adapters/math/rollback"), 409)["message"]
    )
    built(build, tags)
    build.promoted(model="locollm-math-other")
    told = error(http.post("/adapters/math/rollback"), 422)
    assert told["param"] == "model"
    assert "locollm-math-other, locollm-math-tiny" in told["message"]
    told = error(http.post("/adapters/math/rollback", json={"model": "nobody"}), 422)
    assert told["param"] == "model"


def test_what_ollama_lacks_is_not_promoted(http, build, tags):
    first = built(build, tags)
    del tags.models[f"{MODEL}:{first}"]
    second = built(build, tags)
    told = error(http.post("/adapters/math/promote", json={"version": 1}), 409)
    assert (told["code"], told["param"]) == ("candidate_missing", "version")
    tags.models[f"{MODEL}:{first}"] = "another"
    told = error(http.post("/adapters/math/promote", json={"version": 1}), 409)
    assert "not the registered model" in told["message"]
    assert build.ledger.registry.promoted(MODEL).candidate == f"{MODEL}:{second}"


def test_ollama_down_is_said_and_changes_nothing(http, build, tags, live_api):
    built(build, tags)
    built(build, tags)
    live_api.stop()
    live_api.settings = live_api.settings.model_copy(update={"ollama_host": "http://127.0.0.1:9"})
    live_api.start()
    told = error(http.post("/adapters/math/promote", json={"version": 1}), 503)
    assert told["code"] == "ollama_unavailable"
    assert build.ledger.registry.promoted(MODEL).version == 2


def test_a_copy_that_lies_is_recorded_but_said(http, build, tags):
    built(build, tags)
    built(build, tags)
    tags.models[LATEST] = "old"
    tags.lies = True
    told = error(http.post("/adapters/math/promote", json={"version": 1}), 500)
    assert told["code"] == "ollama_refused"
    assert told["message"].startswith(
        "Version 1 is promoted, but Ollama does not serve it as latest yet"
    )
    assert build.ledger.registry.promoted(MODEL).version == 1
    assert build.ledger.registry.promoted(MODEL).served_at is None
    tags.lies = False
    assert http.post("/adapters/math/promote", json={"version": 1}).status_code == 200
    assert tags.models[LATEST] == tags.models[build.ledger.registry.promoted(MODEL).candidate]


def test_the_name_of_the_key_is_in_the_audit_trail(http, build, tags, live_settings):
    built(build, tags)
    built(build, tags)
    keys = Keys.connect(live_settings.redis_url, namespace=live_settings.namespace)
    _, key = keys.create("anna's laptop")
    keys.close()
    assert error(http.post("/adapters/math/rollback"), 401)
    answer = http.post("/adapters/math/rollback", headers={"Authorization": f"Bearer {key}"})
    assert answer.json()["events"][-1]["by"] == "anna's laptop"
    rolled_back = http.get(
        "/adapters/math/versions", headers={"Authorization": f"Bearer {key}"}
    ).json()["data"][0]
    assert rolled_back["events"][-1]["action"] == "rolled_back"
    assert rolled_back["events"][-1]["by"] == "anna's laptop"


class TestRestore:
    @pytest.fixture
    def stored(self, build, tags, adapters_dir) -> str:
        """A promoted version whose GGUF is on disk; answers its job."""
        job = build.registered(blob=BLOB)
        build.measured(job, Verdict.BETTER)
        path = adapters_dir / build.ledger.registry.version("math", 1).gguf
        path.parent.mkdir(parents=True)
        path.write_bytes(GGUF)
        return str(job.id)

    def test_the_same_version_serves_again(self, http, build, tags, stored):
        answer = http.post("/adapters/math/versions/1/restore")
        assert answer.status_code == 200, answer.text
        made = answer.json()
        assert (made["version"], made["created"], made["promoted"]) == (1, True, True)
        assert made["previous_digest"] == f"digest-{stored}"
        assert made["digest"] == tags.models[f"{MODEL}:{stored}"] == tags.models[LATEST]
        version = build.ledger.registry.version("math", 1)
        assert version.digest == made["digest"]
        assert version.events[-1].action == "restored"
        assert "digest changed" in version.events[-1].reason
        assert len(build.ledger.registry.versions("math")[0]) == 1

    def test_what_is_there_is_not_made_again_unless_asked(self, http, build, tags, stored):
        http.post("/adapters/math/versions/1/restore")
        made = http.post("/adapters/math/versions/1/restore").json()
        assert made["created"] is False
        del tags.models[LATEST]
        build.ledger.registry.promote("math", 1, by="me", reason="", force=False)
        assert http.post("/adapters/math/versions/1/restore").json()["created"] is False
        assert LATEST in tags.models
        before = build.ledger.registry.version("math", 1)
        assert before.served_at is not None
        made = http.post("/adapters/math/versions/1/restore", json={"anew": True}).json()
        assert made["created"] is True
        assert made["digest"] == made["previous_digest"]
        # the same digest is the same version: nothing happened to it
        after = build.ledger.registry.version("math", 1)
        assert (after.digest, after.events) == (before.digest, before.events)
        del tags.models[f"{MODEL}:{stored}"]
        http.post("/adapters/math/versions/1/restore")
        assert "same digest" in build.ledger.registry.version("math", 1).events[-1].reason

    @pytest.mark.parametrize("change", ["other digest", "same digest", "not as registered"])
    def test_what_is_deleted_meanwhile_leaves_no_model_behind(
        self, http, build, tags, stored, change
    ):
        """The version goes, and its names in Ollama, before Ollama has made it again."""
        candidate, create = f"{MODEL}:{stored}", tags.create
        if change == "same digest":
            http.post("/adapters/math/versions/1/restore").raise_for_status()
        tags.models[LATEST] = "foreign"

        def made_late(body):
            version = build.ledger.registry.version("math", 1)
            remove_version(build.ledger, tags.url, "math", version, owner=None, force=True)
            if change == "not as registered":
                body["parameters"] = {}
            return create(body)

        tags.create = made_late
        told = error(http.post("/adapters/math/versions/1/restore", json={"anew": True}), 404)
        assert "was deleted while its model was made again" in told["message"]
        assert candidate in tags.models
        clear_withdrawn(build.ledger, tags.url)
        assert tags.models == {LATEST: "foreign"}

    def test_a_gguf_that_is_gone_or_changed_is_said(self, http, build, stored, adapters_dir):
        path = adapters_dir / build.ledger.registry.version("math", 1).gguf
        path.write_bytes(b"edited")
        told = error(http.post("/adapters/math/versions/1/restore"), 409)
        assert "has changed" in told["message"]
        path.unlink()
        told = error(http.post("/adapters/math/versions/1/restore"), 404)
        assert "is missing" in told["message"]
        assert "loco submit math" in told["hint"]

    @pytest.fixture
    def proven(self, build, tags, adapters_dir) -> str:
        """A promoted version whose export left a reference; answers its job."""

        def exported(job_id: str) -> tuple[Artifact, ...]:
            path = adapters_dir / "math" / "runs" / job_id / "export" / "a1" / REFERENCE
            path.parent.mkdir(parents=True)
            path.write_text(REFERENCE_JSON)
            return (describe(adapters_dir, path, name=REFERENCE, stage=Stage.EXPORT),)

        job = build.registered(blob=BLOB, exported=exported)
        build.measured(job, Verdict.BETTER)
        path = adapters_dir / build.ledger.registry.version("math", 1).gguf
        path.parent.mkdir(parents=True)
        path.write_bytes(GGUF)
        return str(job.id)

    def test_prompts_as_in_training_leave_no_warning(self, http, tags, proven):
        tags.render = lambda messages: f"<|user|>{messages[-1]['content']}"
        made = http.post("/adapters/math/versions/1/restore").json()
        assert (made["created"], made["warnings"]) == (True, [])
        assert LATEST in tags.models

    @pytest.mark.parametrize("again", [False, True])
    def test_other_prompts_than_in_training_do_not_serve(self, http, build, tags, proven, again):
        tags.render = lambda messages: f"<|user|>\n{messages[-1]['content']}"
        told = error(http.post("/adapters/math/versions/1/restore"), 500)
        if again:  # what is there by now is no more trusted
            told = error(http.post("/adapters/math/versions/1/restore"), 500)
        assert told["code"] == "registration_failed"
        assert "prompt plain is rendered differently from training, from char" in told["message"]
        assert "`latest` did not move." in told["hint"]
        assert LATEST not in tags.models
        version = build.ledger.registry.version("math", 1)
        assert version.digest == f"digest-{proven}"
        assert version.events[-1].action == "promoted"

    def test_lost_parameters_and_system_prompt_do_not_serve(self, http, tags, stored, monkeypatch):
        kept = {"parameters": 'stop "<|end|>"\ntemperature 0', "system": "You are another."}
        monkeypatch.setattr(Tags, "show", lambda *_: kept)
        told = error(http.post("/adapters/math/versions/1/restore"), 500)
        assert "stop is ['<|end|>'] instead of" in told["message"]
        assert "temperature" not in told["message"], "0 is 0.0"
        assert (
            "the system prompt differs from character 0 on 'You are another.' instead of ''"
            in told["message"]
        )
        assert LATEST not in tags.models

    def test_what_is_not_proven_is_a_warning(self, http, tags, stored):
        tags.version = "0.16.0"
        made = http.post("/adapters/math/versions/1/restore").json()
        holes, unproven = made["warnings"]
        assert "CVE-2026-7482" in holes
        assert unproven.startswith(f"Not proven: no readable {REFERENCE} of job {stored}")
        assert LATEST in tags.models

    def test_a_server_that_cannot_show_prompts_and_a_changed_reference_are_warnings(
        self, http, tags, proven, adapters_dir
    ):
        (warning,) = http.post("/adapters/math/versions/1/restore").json()["warnings"]
        assert "_debug_render_only" in warning
        (reference,) = adapters_dir.glob(f"math/runs/*/export/a1/{REFERENCE}")
        reference.write_text(REFERENCE_JSON.replace("user", "none"))
        (warning,) = http.post("/adapters/math/versions/1/restore").json()["warnings"]
        assert "no readable" in warning

    def test_a_gguf_outside_the_adapter_is_not_read(self, http, build, tags, adapters_dir):
        secret = adapters_dir.parent / "secret"
        secret.write_bytes(GGUF)
        for number, place in enumerate(("../secret", str(secret), "math/link"), 1):
            if place == "math/link":
                (adapters_dir / "math" / "link").symlink_to(secret)
            build.registered(blob=BLOB, gguf=place)
            assert error(http.post(f"/adapters/math/versions/{number}/restore"), 404)
        assert tags.blobs == set()
