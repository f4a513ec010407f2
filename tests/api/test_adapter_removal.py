"""DELETE /adapters/{name}: only an empty one, whole, also after a crash; a push that changes nothing."""

import threading
from pathlib import Path

import httpx
import pytest
from units_recipe import PROBLEMS, RECIPE, ROWS, upload

from loco.contracts.keys import Scope
from loco.contracts.recipes import RecipePut
from loco.contracts.stages import Stage
from loco.drafting import shelf
from loco.ledger.keys import Keys
from loco.recipes.plain import MADE_BY
from loco.recipes.swap import unchanging
from loco.running import adapter_removal

pytestmark = pytest.mark.redis


@pytest.fixture
def http(live_api):
    with httpx.Client(base_url=live_api.url, trust_env=False, timeout=30) as http:
        yield http


@pytest.fixture
def files(http) -> dict[str, str]:
    return {"rows.jsonl": upload(http, ROWS), "problems.jsonl": upload(http, PROBLEMS, "problems")}


@pytest.fixture
def pushed(http, files, adapters_dir: Path) -> Path:
    """The folder of an adapter that was pushed."""
    http.put("/adapters/units", json={"recipe": RECIPE, "files": files}).raise_for_status()
    return adapters_dir / "units"


def error(answer: httpx.Response, status: int) -> dict[str, str]:
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


def test_a_pushed_adapter_goes_with_all_that_it_had(http, pushed, files):
    (pushed / "gguf").mkdir()
    (pushed / "gguf" / "unsloth.Q4_K_M.gguf").write_bytes(b"x" * 1000)
    (pushed / "runs").mkdir()
    gone = http.delete("/adapters/units")
    assert gone.status_code == 200, gone.text
    size = len(ROWS) + len(PROBLEMS) + 1000
    assert gone.json() == {"name": "units", "size": size, "files": 4, "kept": []}
    assert not pushed.exists()
    assert "units" not in [a["name"] for a in http.get("/adapters").json()["data"]]
    error(http.get("/adapters/units/recipe"), 404)
    assert error(http.delete("/adapters/units"), 404)["code"] == "unknown_adapter"
    assert http.put("/adapters/units", json={"recipe": RECIPE, "files": files}).status_code == 201


def test_what_was_not_pushed_stays_and_is_named(http, pushed):
    (pushed / "notes.txt").write_text("mine")
    assert http.delete("/adapters/units").json()["kept"] == ["notes.txt"]
    assert [p.name for p in pushed.iterdir()] == ["notes.txt"]


def test_a_recipe_put_there_by_hand_is_left_alone(http, adapters_dir: Path):
    told = error(http.delete("/adapters/math"), 409)
    assert "was not pushed" in told["message"]
    assert http.put("/adapters/math", json={"recipe": RECIPE}).status_code in (412, 422)
    error(http.delete("/adapters/math"), 409)
    assert (adapters_dir / "math" / "adapter.yaml").is_file()


def test_a_link_to_another_adapters_folder_deletes_nothing(http, pushed, adapters_dir: Path):
    (adapters_dir / "alias").symlink_to(pushed)
    assert error(http.delete("/adapters/alias"), 409)["code"] == "unsafe_path"
    assert (pushed / "adapter.yaml").is_file()


def test_a_fine_tuning_adapter_of_which_the_recipe_is_gone_can_be_deleted(http, adapters_dir: Path):
    """What a deletion that was cut off left: it counted against its owner's adapters for good."""
    (adapters_dir / "ft-x").mkdir()
    (adapters_dir / "ft-x" / MADE_BY).write_text("local")
    assert http.delete("/adapters/ft-x").status_code == 200
    assert not (adapters_dir / "ft-x").exists()


def test_while_a_job_is_left_it_stays(http, pushed, hands):
    job = http.post("/jobs", json={"adapter": "units", "profile": "tiny"}).json()["id"]
    hands.commit(hands.claim(Stage.PREPARE), {}, {"training_data.jsonl": b"rows\n"})
    told = error(http.delete("/adapters/units"), 409)
    assert told["message"] == f"Adapter units cannot be deleted. It still has job {job}."
    assert f"`loco cancel {job}`, then `loco rm {job}`" in told["hint"]
    assert (pushed / "adapter.yaml").is_file()
    http.post(f"/jobs/{job}/cancel").raise_for_status()
    error(http.delete("/adapters/units"), 409)
    assert http.delete(f"/jobs/{job}").status_code == 200
    assert http.delete("/adapters/units").status_code == 200
    assert not pushed.exists()


@pytest.mark.parametrize("dies_at", ["rows.jsonl", "gguf", "problems.jsonl"])
def test_a_deletion_that_was_cut_off_can_be_asked_for_again(
    http, pushed, ledger, adapters_dir: Path, monkeypatch, dies_at: str
):
    (pushed / "gguf").mkdir()
    delete = adapter_removal._delete

    def dying(place: Path):
        if place.name == dies_at:
            raise KeyboardInterrupt
        return delete(place)

    with monkeypatch.context() as cut:
        cut.setattr(adapter_removal, "_delete", dying)
        with pytest.raises(KeyboardInterrupt):
            adapter_removal.remove_adapter(ledger, adapters_dir, "units")
    assert pushed.exists()
    error(http.get("/adapters/units/recipe"), 404)
    assert http.delete("/adapters/units").status_code == 200
    assert not pushed.exists()


def test_a_push_that_waited_for_the_deletion_makes_it_new(pushed, ledger, settings, tmp_path):
    """It holds the lock of a folder that is gone, and must not put anything there."""
    (tmp_path / "rows").write_text(ROWS)
    (tmp_path / "problems").write_text(PROBLEMS)
    asked = RecipePut(recipe=RECIPE, files={"rows.jsonl": "rows", "problems.jsonl": "problems"})
    found = []

    def push() -> None:
        found.append(shelf.put(settings, "units", asked, lambda name: tmp_path / name, by="me"))

    late = threading.Thread(target=push)
    delete = adapter_removal._delete

    def slow(place: Path):
        if not late.ident:
            late.start()
            late.join(0.5)  # it waits for the lock now
        return delete(place)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(adapter_removal, "_delete", slow)
        adapter_removal.remove_adapter(ledger, settings.adapters_dir, "units")
    late.join(20)
    ((text, is_new),) = found
    assert (text.version, is_new) == (1, True)
    assert (pushed / "rows.jsonl").read_text() == ROWS
    with unchanging(pushed):
        assert (pushed / ".recipes" / "1").is_dir()


def test_only_admins_may(live_api, http, pushed, redis_url, namespace):
    keys = Keys.connect(redis_url, namespace=namespace)
    ben = {"Authorization": f"Bearer {keys.create('ben', scope=Scope.SUBMIT)[1]}"}
    root = {"Authorization": f"Bearer {keys.create('root', scope=Scope.ADMIN)[1]}"}
    error(http.delete("/adapters/units", headers=ben), 403)
    assert http.delete("/adapters/units", headers=root).status_code == 200
    trail = http.get("/audit", headers=root).json()["data"]
    assert [(e["by"], e["target"]) for e in trail if e["action"] == "deleteAdapter"] == [
        ("root", "/adapters/units")
    ]
    keys.close()


def test_a_push_that_changes_nothing_makes_no_new_recipe(http, pushed, files):
    now = http.get("/adapters/units/recipe").json()
    tag = {"If-Match": f'"{now["etag"]}"'}
    again = http.put("/adapters/units", json={"recipe": RECIPE, "files": files}, headers=tag)
    assert (again.status_code, again.json()) == (200, now)
    assert len(http.get("/adapters/units/recipes").json()["data"]) == 1
    other = {**files, "rows.jsonl": upload(http, ROWS * 2, "more")}
    changed = http.put("/adapters/units", json={"recipe": RECIPE, "files": other}, headers=tag)
    assert changed.json()["version"] == 2


def test_a_recipe_that_became_what_is_put_by_hand_gets_a_number(http, pushed):
    """The answer had no version, and `loco adapters push` said `recipe None`."""
    edited = RECIPE + "# by hand\n"
    (pushed / "adapter.yaml").write_text(edited)
    tag = {"If-Match": http.get("/adapters/units/recipe").headers["ETag"]}
    put = http.put("/adapters/units", json={"recipe": edited, "files": {}}, headers=tag)
    assert put.status_code == 200, put.text
    assert put.json()["version"] == 2
