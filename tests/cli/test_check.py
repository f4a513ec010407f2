"""`loco check` on a laptop: the base models are the server's."""

import json

import pytest
import yaml

pytestmark = pytest.mark.redis

RECIPE = {
    "name": "desk",
    "description": "Which desk helps.",
    "base_model": "smollm2-135m-instruct",
    "model_name": "locollm-desk",
    "prepare": {"source": {"kind": "jsonl", "path": "rows.jsonl"}, "validation": 0},
    "eval": {"sets": {}},
}


@pytest.fixture
def checked(loco, tmp_path):
    """Writes a recipe on a machine that has neither a catalog nor a training environment, and checks it."""
    folder = tmp_path / "laptop" / "desk"
    folder.mkdir(parents=True)
    rows = [{"question": f"Who lends book {n}?", "answer": f"Desk {n}"} for n in range(30)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    none = str(tmp_path / "none")

    def check(recipe, **more):
        (folder / "adapter.yaml").write_text(yaml.safe_dump(recipe))
        elsewhere = {"LOCO_ADAPTERS_DIR": none, "LOCO_TRAIN_PYTHON": none}
        return loco("check", "desk", "--from", str(folder), **elsewhere, **more)

    return check


def test_fields_are_checked_against_the_servers_base_models(checked):
    done = checked(RECIPE | {"train": {"epoch": 3}})
    assert done.returncode == 1
    assert "line" in done.stdout
    assert "train.epochs" in done.stdout  # did you mean


def test_a_base_that_the_server_does_not_have_is_a_problem(checked):
    done = checked(RECIPE | {"base_model": "smollm2-135m"})
    assert done.returncode == 1
    assert "Did you mean smollm2-135m-instruct?" in done.stdout


def test_a_recipe_that_is_right_has_nothing_to_fix(checked):
    done = checked(RECIPE)
    assert "nothing to fix" in done.stderr, done.stdout
    assert done.returncode == 0


def test_without_a_server_the_rows_are_checked_and_it_says_what_was_not(checked):
    done = checked(RECIPE, LOCO_SERVER="http://127.0.0.1:9")
    assert "30 rows" in done.stderr
    assert "base models: No answer from http://127.0.0.1:9" in done.stdout
    assert done.returncode == 0


@pytest.fixture
def drafted(loco, tmp_path):
    """Drafts an adapter on a machine that has no catalog."""
    (tmp_path / "desk.csv").write_text(
        "question,answer\n" + "".join(f"Who lends book {n}?,Desk {n}\n" for n in range(30))
    )

    def new(*words, **more):
        none = {"LOCO_ADAPTERS_DIR": str(tmp_path / "none")}
        return loco("new", "desk", "--data", "desk.csv", *words, **none, **more)

    return new


def test_a_draft_on_a_base_that_the_server_does_not_have_is_refused(drafted, loco, tmp_path):
    done = drafted("--base", "smollm2-135m")
    assert done.returncode == 2
    assert done.stderr.startswith("error: No base model 'smollm2-135m'. Base models here: ")
    assert "Did you mean smollm2-135m-instruct?" in done.stderr
    assert not (tmp_path / "desk").exists()
    words = ("--data", "desk.csv", "--base-model", "smollm2-135m")
    done = loco("submit", "desk", *words)
    assert done.stderr.startswith("error: No base model 'smollm2-135m'.")
    assert not (tmp_path / "desk").exists()
    assert drafted("--base", "smollm2-135m-instruct").returncode == 0


def test_a_draft_without_an_answer_from_the_server_is_written_and_says_so(drafted):
    done = drafted("--base", "smollm2-135m", LOCO_SERVER="http://127.0.0.1:9")
    assert done.returncode == 0
    assert "The server was not asked whether it has smollm2-135m: No answer" in done.stderr
