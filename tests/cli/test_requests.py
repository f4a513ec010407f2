"""What the command line makes of its words, before anything is sent."""

import json
from pathlib import Path

import pytest

from loco.cli.artifacts import _below
from loco.cli.jobs import _stages
from loco.cli.main import global_options_first
from loco.cli.overrides import parse_assignments, parse_metadata
from loco.client.http import checked_server, path_of
from loco.client.target import default_server
from loco.contracts.artifacts import Artifact
from loco.contracts.errors import InvalidRequest
from loco.contracts.stages import Stage


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("2e-4", 2e-4),
        ("true", True),
        ("null", None),
        ("", None),
        ("peft", "peft"),
        ("[q_proj, v_proj]", ["q_proj", "v_proj"]),
        ("{kind: arithmetic}", {"kind": "arithmetic"}),
        ("a=b", "a=b"),
        ("NaN", "NaN"),
    ],
)
def test_values_have_the_types_of_yaml(text, value):
    assert parse_assignments([f"train.x={text}"]) == {"train": {"x": value}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Answer with one of: a, b", "Answer with one of: a, b"),
        ("[one word] # or two", "[one word] # or two"),
        ('"One of: a" or "b"', '"One of: a" or "b"'),
        ('"One of: a"', "One of: a"),
        ("'One of: a'", "One of: a"),
        ("{", "{"),
        ("5", "5"),
        ("null", None),
    ],
)
def test_a_field_of_text_keeps_it_as_written(text, value):
    assert parse_assignments([f"eval.instruction={text}"]) == {"eval": {"instruction": value}}


def test_other_fields_keep_the_types_of_yaml():
    assert parse_assignments(["eval.num_predict=5", "base_model=7", "eval.sets={a: {}}"]) == {
        "eval": {"num_predict": 5, "sets": {"a": {}}},
        "base_model": "7",
    }


def test_assignments_nest_and_the_last_one_wins():
    words = ["train.lora.r=8", "train.lora.alpha=16", "seed=1", "train.epochs=2", "train.epochs=3"]
    assert parse_assignments(words) == {
        "train": {"lora": {"r": 8, "alpha": 16}, "epochs": 3},
        "seed": 1,
    }


@pytest.mark.parametrize("word", ["train.epochs", "=5", ".epochs=5", "train.=5", "a.b={"])
def test_a_word_that_is_no_assignment_is_refused(word):
    with pytest.raises(InvalidRequest) as refused:
        parse_assignments([word])
    assert word in refused.value.message
    assert refused.value.hint


def test_a_field_below_a_value_is_refused():
    with pytest.raises(InvalidRequest, match="lora already has a value"):
        parse_assignments(["train.lora=8", "train.lora.r=8"])


def test_metadata_keeps_everything_after_the_first_equals_sign():
    assert parse_metadata(["owner=ada", "note=a=b", "empty="]) == {
        "owner": "ada",
        "note": "a=b",
        "empty": "",
    }
    with pytest.raises(InvalidRequest, match="must be KEY=VALUE"):
        parse_metadata(["owner"])


def test_stages():
    assert _stages("export, register") == [Stage.EXPORT, Stage.REGISTER]
    assert _stages(None) is None
    with pytest.raises(InvalidRequest, match="Stages: prepare, train, export, register, eval"):
        _stages("export,")


@pytest.mark.parametrize(
    ("given", "sorted_out"),
    [
        (["jobs", "--server", "X", "--json"], ["--server", "X", "jobs", "--json"]),
        (["jobs", "--server=X"], ["--server=X", "jobs"]),
        (
            ["--api-key", "K", "job", "J", "--server", "X"],
            ["--api-key", "K", "--server", "X", "job", "J"],
        ),
        (["job", "--", "--server", "X"], ["job", "--", "--server", "X"]),
        (["jobs", "--server"], ["--server", "jobs"]),
    ],
)
def test_global_options_may_stand_anywhere(given, sorted_out):
    assert global_options_first(given) == sorted_out


def test_no_artifact_leaves_the_download_folder(artifact_of, tmp_path):
    assert _below(tmp_path, artifact_of("gguf/x.gguf")) == tmp_path / "export" / "gguf" / "x.gguf"
    for name in ("../x", "/etc/passwd", "a/../../../x", "../export2/x"):
        with pytest.raises(InvalidRequest):
            _below(tmp_path, artifact_of(name))


@pytest.fixture
def artifact_of():
    def make(name: str) -> Artifact:
        # what a server of ours never sends
        return Artifact.model_construct(
            name=name,
            stage=Stage.EXPORT,
            path="x",
            size=0,
            sha256="0" * 64,
            media_type="text/plain",
        )

    return make


# Where the server is


def test_the_server_of_the_environment_goes_first(tmp_path):
    write_up_file(tmp_path, server="http://127.0.0.1:7000")
    environment = {"LOCO_SERVER": "http://neurocore:8321", "LOCO_DATA_DIR": str(tmp_path)}
    assert default_server(environment) == "http://neurocore:8321"


def test_then_a_running_loco_up_then_the_default_port(tmp_path):
    environment = {"LOCO_DATA_DIR": str(tmp_path)}
    assert default_server(environment) == "http://127.0.0.1:8321"
    write_up_file(tmp_path, server="http://127.0.0.1:7000")
    assert default_server(environment) == "http://127.0.0.1:7000"
    (tmp_path / "up.json").write_text("{half")
    assert default_server(environment) == "http://127.0.0.1:8321"


def test_a_left_address_on_another_machine_gets_no_key(tmp_path):
    write_up_file(tmp_path, server="http://evil.example:80")
    with pytest.raises(InvalidRequest, match="evil") as refused:
        default_server({"LOCO_DATA_DIR": str(tmp_path)})
    assert "export LOCO_SERVER=http://evil.example:80" in str(refused.value.hint)


def write_up_file(folder: Path, **content: str) -> None:
    (folder / "up.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("neurocore:8321", "http://neurocore:8321"),
        ("https://box.example/loco/", "https://box.example/loco"),
        ("http://[::1]:8321", "http://[::1]:8321"),
    ],
)
def test_addresses(given, url):
    assert checked_server(given) == url


@pytest.mark.parametrize("given", ["ftp://x", "http://", "http://x:port", "http://x:99999", " "])
def test_what_is_no_address_is_refused(given):
    with pytest.raises(InvalidRequest, match="not the address"):
        checked_server(given)


def test_paths_are_quoted():
    assert path_of("jobs", "a/b?c#d") == "/jobs/a%2Fb%3Fc%23d"
    with pytest.raises(InvalidRequest):
        path_of("jobs", "..")
