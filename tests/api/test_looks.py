"""POST /looks over HTTP, with the real training environment."""

from pathlib import Path

import httpx
import pytest

pytestmark = pytest.mark.redis

REPOSITORY = Path(__file__).parents[2]
ROW = {
    "line": 1,
    "conversations": [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "It is 4."},
    ],
}
BODY = {"base_model": "smollm2-135m-instruct", "max_length": 64, "rows": [ROW]}


@pytest.fixture
def live_settings(live_settings):
    python = REPOSITORY / ".venv-train" / "bin" / "python"
    return live_settings.model_copy(update={"train_python": python})


def test_rows_come_back_as_the_model_sees_them(live_api):
    strange = {"line": 2, "conversations": [{"from": "user", "value": "2 + 2?"}]}
    body = {**BODY, "rows": [ROW, strange]}
    answer = httpx.post(f"{live_api.url}/looks", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    good, bad = answer.json()["rows"]
    assert "".join(p["text"] for p in good["pieces"] if p["trained"]) == "It is 4.<|im_end|>"
    assert 0 < good["trained"] < good["tokens"] < 64
    assert (bad["line"], bad["problem"]) == (2, "a turn needs role and content")


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"base_model": "gpt-9"}, 422, "base_model"),
        ({"rows": []}, 422, "rows"),
        ({"max_length": 8}, 422, "max_length"),
        ({"lines": 3}, 422, "lines"),
    ],
)
def test_a_body_that_is_wrong_is_refused_by_its_field(live_api, change, status, param):
    answer = httpx.post(f"{live_api.url}/looks", json={**BODY, **change}, timeout=60)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param)
    assert error["hint"]
