"""Stored XSS: a run leaves a page or a picture with a script among its artifacts.

`report.html` was served as text/html and `plot.svg` as image/svg+xml. They came as attachments; a
viewer that ignores that (or a record that says so) would have run the script under the server's
address, where a browser's session may do everything.
"""

import re
from http import HTTPStatus

import httpx
import pytest
import redis

from loco.contracts.stages import Stage

pytestmark = pytest.mark.redis

SCRIPT = b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
ACTIVE = ("report.html", "page.xhtml", "plot.svg", "feed.xml", "x.js", "x.HTML", "f.pdf")
PASSIVE = {"result.json", "rows.jsonl", "run.log", "gguf/m.gguf", "Modelfile"}


@pytest.fixture
def artifacts(live_api, hands):
    """The answers to GETs of a job's hostile artifacts, by name."""
    with httpx.Client(base_url=live_api.url, trust_env=False, timeout=60) as http:
        job = http.post("/jobs", json={"adapter": "math", "profile": "tiny"}).json()
        hands.commit(hands.claim(Stage.PREPARE), {}, dict.fromkeys((*ACTIVE, *PASSIVE), SCRIPT))
        # a record of an earlier release, or a forged one, names the type itself
        settings = live_api.settings
        with redis.Redis.from_url(settings.redis_url, decode_responses=True) as client:
            key = f"{settings.namespace}:task:{job['id']}-prepare"
            forged = client.hget(key, "artifacts").replace("application/octet-stream", "text/html")
            client.hset(key, "artifacts", forged)
        yield {
            name: http.get(f"/jobs/{job['id']}/artifacts/prepare/{name}")
            for name in (*ACTIVE, *PASSIVE)
        }


def test_nothing_is_served_that_a_browser_would_run(artifacts):
    for name, answer in artifacts.items():
        assert answer.status_code == HTTPStatus.OK
        assert answer.content == SCRIPT
        kind = answer.headers["Content-Type"].partition(";")[0]
        expected = {"application/octet-stream"} if name in ACTIVE else {
            "application/json", "application/jsonl", "text/plain", "application/vnd.gguf"
        }  # fmt: skip
        assert kind in expected, name
        assert answer.headers["Content-Disposition"].startswith("attachment;")
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "sandbox" in answer.headers["Content-Security-Policy"]


def test_an_error_that_quotes_a_script_is_json(live_api):
    answer = httpx.get(f"{live_api.url}/jobs/<script>alert(1)<%2Fscript>", trust_env=False)
    assert answer.status_code == HTTPStatus.NOT_FOUND
    assert answer.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/healthz", 200),
        ("/jobs", 200),
        ("/openapi.json", 200),
        ("/docs", 200),
        ("/docs/oauth2-redirect", 200),
        ("/nowhere", 404),
        ("/jobs?limit=x", 422),
    ],
)
def test_every_answer_tells_browsers_to_run_and_keep_nothing(live_api, path, status):
    """`/docs` could be framed, and answers with jobs were kept by caches."""
    answer = httpx.get(f"{live_api.url}{path}", trust_env=False)
    assert answer.status_code == status
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-store"
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'; frame-ancestors 'none'" in policy
    assert ("script-src" in policy) == path.startswith("/docs")
    refused = httpx.get(f"{live_api.url}{path}", headers={"Host": "evil"}, trust_env=False)
    assert "frame-ancestors 'none'" in refused.headers["Content-Security-Policy"]


def test_the_page_of_docs_loads_only_what_its_policy_names(live_api):
    answer = httpx.get(f"{live_api.url}/docs", trust_env=False)
    policy = answer.headers["Content-Security-Policy"]
    loaded = set(re.findall(r'(?:src|href)="(https?://[^/"]+)', answer.text))
    assert loaded
    assert all(origin in policy for origin in loaded)
