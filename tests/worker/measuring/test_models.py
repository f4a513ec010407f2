"""Who is measured: what lies in Ollama under the names, and what the ledger says lies there."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from loco.contracts.errors import RegistrationFailed
from loco.contracts.specs import Inputs, JobSpec
from loco.contracts.stages import Stage
from loco.serving.host import OllamaHost
from loco_worker.measuring.models import Contest, contest

NEW, OLD, LATEST = "locollm-math:j2", "locollm-math:j1", "locollm-math:latest"
MODELS = {"smollm2:135m": "base", OLD: "one", LATEST: "one", NEW: "two"}
PROMOTED = {"version": 1, "candidate": OLD, "digest": "one"}


@pytest.fixture
def chosen(
    answering: Any, tiny: JobSpec, inputs_of: Callable[..., Inputs], heard: Any
) -> Iterator[Callable[..., Contest]]:
    answering.models = dict(MODELS)
    with OllamaHost(answering.url) as host:

        def choose(**inputs: Any) -> Contest:
            registered = {Stage.REGISTER: {"candidate": NEW, "digest": "two"}}
            fields = {"results": registered, "promoted": PROMOTED, **inputs}
            spec = tiny.eval.model_copy(update={"baselines": ("base", "promoted")})
            return contest(spec, inputs_of(**fields), host, heard.emit)

        yield choose


def promoted(contest: Contest) -> str | None:
    return next((c.model for c in contest.contestants if c.role == "promoted"), None)


def test_the_version_that_serves_is_measured_under_its_own_name(chosen: Any) -> None:
    assert promoted(chosen()) == OLD


@pytest.mark.parametrize("now", [None, "another"])
def test_where_its_own_name_is_gone_latest_is_measured(
    chosen: Any, answering: Any, now: str | None
) -> None:
    answering.models.pop(OLD)
    if now:
        answering.models[OLD] = now
    found = chosen()
    assert promoted(found) == LATEST
    assert {c.digest for c in found.contestants} == {"base", "one", "two"}
    assert found.left_out == {}


def test_where_latest_is_another_one_it_is_left_out(chosen: Any, answering: Any) -> None:
    answering.models |= {OLD: "another", LATEST: "another"}
    found = chosen()
    assert promoted(found) is None
    assert "is not the promoted model" in found.left_out["promoted"]
    del answering.models[OLD]
    assert chosen().left_out == {"promoted": f"{OLD} is no longer in Ollama"}


def test_a_candidate_that_is_another_model_is_not_measured(chosen: Any, answering: Any) -> None:
    answering.models[NEW] = "another"
    with pytest.raises(RegistrationFailed, match="is not the registered model") as caught:
        chosen()
    assert "Run stage register again" in str(caught.value.hint)
    version = {"version": 7, "candidate": NEW, "digest": "two"}
    with pytest.raises(RegistrationFailed) as caught:
        chosen(candidate=version)
    assert "`loco setup math --version 7`" in str(caught.value.hint)
    # made again since, and the ledger knows it
    assert promoted(chosen(candidate={**version, "digest": "another"})) == OLD
    del answering.models[NEW]
    with pytest.raises(RegistrationFailed, match=f"has no {NEW}") as caught:
        chosen(candidate=version)
    assert "`loco setup math --version 7`" in str(caught.value.hint)
