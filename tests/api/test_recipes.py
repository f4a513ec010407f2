"""Recipes that are put over HTTP: looked at before anything changes, whole or not at all, kept."""

from pathlib import Path

import httpx
import pytest
from units_recipe import PROBLEMS, RECIPE, ROWS, upload

from loco.contracts.recipes import RecipePut
from loco.contracts.requests import JobRequest
from loco.drafting import shelf
from loco.recipes import swap
from loco.recipes.resolve import resolve


@pytest.fixture
def http(live_api):
    with httpx.Client(base_url=live_api.url, trust_env=False) as http:
        yield http


@pytest.fixture
def files(http) -> dict[str, str]:
    return {"rows.jsonl": upload(http, ROWS), "problems.jsonl": upload(http, PROBLEMS, "problems")}


def test_an_adapter_is_put_read_back_and_built_from(http, files, adapters_dir: Path) -> None:
    answer = http.put("/adapters/units", json={"recipe": RECIPE, "files": files})
    assert answer.status_code == 201, answer.text
    assert answer.headers["ETag"].strip('"') == answer.json()["etag"]
    assert (adapters_dir / "units" / "rows.jsonl").read_text() == ROWS
    found = http.get("/adapters/units/recipe").json()
    assert (found["recipe"], found["version"]) == (RECIPE, 1)
    assert set(found["files"]) == {"rows.jsonl", "problems.jsonl"}
    assert http.get("/adapters/units/files/rows.jsonl").text == ROWS
    assert "units" in [a["name"] for a in http.get("/adapters").json()["data"]]
    job = http.post("/jobs", json={"adapter": "units", "profile": "tiny"})
    assert job.status_code == 202, job.text
    assert {"adapter.yaml", "rows.jsonl", "problems.jsonl"} <= set(job.json()["spec"]["inputs"])


def test_if_match_guards_a_change_and_every_text_is_kept(http, files, adapters_dir: Path) -> None:
    first = http.put("/adapters/units", json={"recipe": RECIPE, "files": files}).json()
    changed = RECIPE.replace("Units.", "More units.")
    for headers in ({}, {"If-Match": '"0123"'}):
        refused = http.put("/adapters/units", json={"recipe": changed}, headers=headers)
        assert refused.status_code == 412, refused.text
        assert refused.json()["error"]["code"] == "recipe_changed"
    tag = {"If-Match": f'"{first["etag"]}"'}
    second = http.put("/adapters/units", json={"recipe": changed}, headers=tag)
    assert (second.status_code, second.json()["version"]) == (200, 2), second.text
    assert http.put("/adapters/units", json={"recipe": RECIPE}, headers=tag).status_code == 412
    kept = http.get("/adapters/units/recipes").json()["data"]
    assert [(v["version"], v["recipe"]) for v in kept] == [(2, changed), (1, RECIPE)]
    assert (adapters_dir / "units" / "rows.jsonl").read_text() == ROWS, "what is not named stays"
    # rows that are edited on the server change the tag, too
    (adapters_dir / "units" / "rows.jsonl").write_text(ROWS * 2)
    tag = {"If-Match": f'"{second.json()["etag"]}"'}
    assert http.put("/adapters/units", json={"recipe": RECIPE}, headers=tag).status_code == 412


def test_names_and_paths_stay_where_they_belong(http, files, adapters_dir: Path) -> None:
    for name in ("Units", "..%2Fx", ".inputs", "a" * 64):
        answer = http.put(f"/adapters/{name}", json={"recipe": RECIPE, "files": files})
        assert answer.status_code in (404, 422), (name, answer.text)
    http.put("/adapters/units", json={"recipe": RECIPE, "files": files}).raise_for_status()
    for file in ("adapter.yaml", "..%2F..%2Fbase_models.yaml", ".recipes", "put.json"):
        assert http.get(f"/adapters/units/files/{file}").status_code in (404, 422), file
    (adapters_dir / "units" / "rows.jsonl").unlink()
    (adapters_dir / "units" / "rows.jsonl").symlink_to("/etc/hostname")
    assert http.get("/adapters/units/files/rows.jsonl").status_code in (404, 422)


def test_a_change_that_was_cut_off_is_ended_by_whoever_comes_next(
    http, files, adapters_dir: Path, settings, monkeypatch
) -> None:
    http.put("/adapters/units", json={"recipe": RECIPE, "files": files}).raise_for_status()
    folder = adapters_dir / "units"
    changed = RECIPE.replace("Units.", "More units.")
    other = tmp_file(adapters_dir.parent / "other.jsonl", ROWS * 3)

    # the power fails after the rows have moved and before the recipe has
    monkeypatch.setattr(swap, "write_text", stop_at(folder / "adapter.yaml", swap.write_text))
    tag = shelf.recipe_text(settings, "units").etag
    asked = RecipePut(recipe=changed, files={"rows.jsonl": "any"})
    with pytest.raises(KeyboardInterrupt):
        shelf.put(settings, "units", asked, lambda _: other, by="me", if_match=tag)
    monkeypatch.undo()
    assert (folder / "rows.jsonl").read_text() == ROWS * 3
    assert "More units" not in (folder / "adapter.yaml").read_text(), "some of each"
    assert http.get("/adapters/units/recipe").json()["recipe"] == changed
    assert resolve(adapters_dir, JobRequest(adapter="units", profile="tiny"))


def stop_at(path: Path, write):
    """A write that fails as a power cut does, where it would write a file."""

    def wrapped(target: Path, text: str) -> None:
        if target == path:
            raise KeyboardInterrupt
        write(target, text)

    return wrapped


def tmp_file(path: Path, text: str) -> Path:
    path.write_text(text)
    return path
