"""Settings from LOCO_* variables."""

from pathlib import Path

import pytest

from loco.client.target import default_server
from loco.contracts.errors import InvalidRequest
from loco.settings import Settings, ollama_url, variables_here


def test_nothing_set_means_loopback_and_folders_here() -> None:
    settings = Settings.from_environment({})
    assert (settings.host, settings.port, settings.redis_url) == ("127.0.0.1", 8321, None)
    assert settings.adapters_dir == Path.cwd() / "adapters"
    assert settings.data_dir == Path.cwd() / ".loco"
    assert settings.timings.lease == 60


def test_recipes_and_training_venv_are_found_from_any_folder(tmp_path, monkeypatch) -> None:
    checkout, here = tmp_path / "checkout", tmp_path / "here"
    python = checkout / ".venv-train" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    (checkout / "adapters").mkdir()
    (checkout / "adapters" / "base_models.yaml").touch()
    (here / "adapters").mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setattr("loco.settings.CHECKOUT", tmp_path / "nowhere")
    monkeypatch.setattr("sys.prefix", str(tmp_path / "nowhere" / ".venv"))
    settings = Settings.from_environment({})
    assert settings.train_python == here / ".venv-train" / "bin" / "python"
    assert settings.adapters_dir == here / "adapters"
    for name, value in (("loco.settings.CHECKOUT", checkout), ("sys.prefix", checkout / ".venv")):
        with monkeypatch.context() as patched:
            patched.setattr(name, value)
            settings = Settings.from_environment({})
        assert settings.train_python == python
        assert settings.adapters_dir == checkout / "adapters", (
            "an empty folder here holds no recipes"
        )
    monkeypatch.setattr("loco.settings.CHECKOUT", checkout)
    (here / "adapters" / "base_models.yaml").touch()
    assert Settings.from_environment({}).adapters_dir == here / "adapters"
    chosen = Settings.from_environment({"LOCO_ADAPTERS_DIR": "/r", "LOCO_TRAIN_PYTHON": "/p"})
    assert (chosen.adapters_dir, chosen.train_python) == (Path("/r"), Path("/p"))


def test_variables_are_read() -> None:
    settings = Settings.from_environment(
        {
            "LOCO_PORT": "9000",
            "LOCO_DATA_DIR": "/data",
            "LOCO_REDIS_URL": "redis://r:1",
            "LOCO_DATASET_DIRS": "/a:/b",
            "LOCO_PASS_ENV": "WANDB_MODE, JAX_PLATFORMS,",
            "LOCO_LEASE_SECONDS": "2.5",
            "LOCO_CRASH_BUDGET": "5",
            "OLLAMA_HOST": "gpu:1234",
        }
    )
    assert (settings.port, settings.data_dir) == (9000, Path("/data"))
    assert settings.redis_url == "redis://r:1"
    assert settings.dataset_dirs == (Path("/a"), Path("/b"))
    assert settings.pass_env == ("WANDB_MODE", "JAX_PLATFORMS")
    assert Settings.from_environment(settings.environment()) == settings
    assert (settings.timings.lease, settings.timings.crash_budget) == (2.5, 5)
    assert settings.ollama_host == "http://gpu:1234"
    assert settings.models_dir == Path("/data/models")


def test_empty_variables_count_as_unset() -> None:
    assert Settings.from_environment({"LOCO_PORT": "", "LOCO_REDIS_URL": ""}) == (
        Settings.from_environment({})
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LOCO_PORT", "http"),
        ("LOCO_PORT", "70000"),
        ("LOCO_LEASE_SECONDS", "0"),
        ("LOCO_LEASE_SECONDS", "long"),
        ("LOCO_CRASH_BUDGET", "0"),
    ],
)
def test_a_wrong_value_names_its_variable(name: str, value: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Settings.from_environment({name: value})
    assert caught.value.param == name


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_dotenv_file_here_is_read_below_the_environment(here: Path) -> None:
    (here / ".env").write_text(
        "# as Docker Compose reads it\nLOCO_PORT=9000\nexport LOCO_NAMESPACE='mine'\n"
        "LOCO_GPU=1\nLOCO_LEASE_SECONDS=7\nOLLAMA_HOST=box\nLOCO_UID=1000\nBARE\n"
    )
    settings = Settings.from_environment(
        variables_here({"LOCO_PORT": "9001", "LOCO_GPU": ""})  # empty: as if the file had none
    )
    assert (settings.port, settings.namespace, settings.gpu) == (9001, "mine", None)
    assert (settings.timings.lease, settings.ollama_host) == (7, "http://box:11434")


def test_the_process_itself_reads_them(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCO_NAMESPACE", raising=False)
    (here / ".env").write_text("LOCO_NAMESPACE=mine\n")
    assert Settings.from_environment().namespace == "mine"


def test_secrets_are_files_named_like_the_variables(here: Path) -> None:
    secrets = here / "secrets"
    secrets.mkdir()
    (secrets / "loco_redis_url").write_text("redis://:word@r:1\n")
    (secrets / "LOCO_NAMESPACE").write_text("secret")
    (secrets / "LOCO_GPU").write_text("3")
    (secrets / "other_programs_key").write_bytes(b"\xff")
    (here / ".env").write_text("LOCO_NAMESPACE=file\nLOCO_GPU=2\n")
    variables = {"LOCO_SECRETS_DIR": str(secrets), "LOCO_GPU": "1"}
    settings = Settings.from_environment(variables_here(variables))
    assert settings.redis_url == "redis://:word@r:1"
    assert (settings.namespace, settings.gpu) == ("file", "1")


def test_what_cannot_be_read_is_named(here: Path) -> None:
    with pytest.raises(InvalidRequest, match="LOCO_SECRETS_DIR cannot be read") as caught:
        variables_here({"LOCO_SECRETS_DIR": str(here / "none")})
    assert caught.value.param == "LOCO_SECRETS_DIR"
    (here / ".env").write_bytes(b"LOCO_NAMESPACE=\xff\n")
    with pytest.raises(InvalidRequest, match=r"\.env cannot be read"):
        variables_here({})


def test_a_line_that_cannot_be_read_is_named_and_not_shown(here: Path) -> None:
    (here / ".env").write_text("LOCO_PORT=9000\n\nthe secret word\n")
    with pytest.raises(InvalidRequest, match=r"\.env cannot be read: line 3") as caught:
        variables_here({})
    assert caught.value.param == ".env"
    assert "secret" not in f"{caught.value}{caught.value.hint}"
    (here / ".env").write_text('LOCO_PORT=9000\nLOCO_GPU="1\n')
    with pytest.raises(InvalidRequest, match=r"line 2") as caught:
        variables_here({})


def test_a_dollar_in_a_dotenv_file_stands_for_itself(here: Path) -> None:
    (here / ".env").write_text(
        "A='pa${HOME}d'\nB=\"pa${HOME}d\"\nC=pa${HOME}d\nD=pa$HOMEd  # a password\n"
    )
    found = variables_here({"HOME": "/root"})
    assert [found[name] for name in "ABCD"] == ["pa${HOME}d"] * 3 + ["pa$HOMEd"]


def test_a_dotenv_file_may_name_the_folder_of_secrets(here: Path) -> None:
    (here / "secrets").mkdir()
    (here / "secrets" / "loco_redis_url").write_text("redis://:word@r:1\n")
    (here / ".env").write_text("LOCO_SECRETS_DIR=secrets\n")
    assert Settings.from_environment(variables_here({})).redis_url == "redis://:word@r:1"
    none = variables_here({"LOCO_SECRETS_DIR": ""})
    assert Settings.from_environment(none).redis_url is None


def test_the_address_that_containers_call_ollama_by_is_none_of_ours(here: Path) -> None:
    (here / ".env").write_text("LOCO_OLLAMA_HOST=http://host.docker.internal:11434\n")
    assert Settings.from_environment(variables_here({})) == Settings.from_environment({})


def test_a_child_keeps_what_its_parent_decided(here: Path) -> None:
    """`loco up` gives its children every setting; the `.env` beside them changes none."""
    given = Settings.from_environment({"LOCO_PORT": "7000", "LOCO_REDIS_URL": "redis://up"})
    (here / ".env").write_text(
        "".join(f"{name}=9\n" for name in (*given.environment(), "LOCO_GPU"))
    )
    child = Settings.from_environment(variables_here(given.environment()))
    assert child == given


def test_a_dotenv_file_names_no_server_that_a_key_would_follow(here: Path) -> None:
    (here / ".env").write_text("LOCO_SERVER=http://elsewhere:1\n")
    assert default_server({"LOCO_DATA_DIR": str(here)}) == "http://127.0.0.1:8321"


def test_the_link_to_the_training_python_is_kept(tmp_path: Path) -> None:
    link = tmp_path / "python"
    link.symlink_to("/usr/bin/env")
    settings = Settings.from_environment({"LOCO_TRAIN_PYTHON": str(link)})
    assert settings.train_python == link, "following it would leave the venv"


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:11434"),
        ("box:8080", "http://box:8080"),
        ("http://box", "http://box:11434"),
        ("https://box", "https://box:443"),
        ("https://box/ollama/", "https://box:443/ollama"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:5000", "http://127.0.0.1:5000"),
        ("[::1]", "http://[::1]:11434"),
        ("[::1]:99", "http://[::1]:99"),
    ],
)
def test_ollama_host_as_ollama_reads_it(host: str, url: str) -> None:
    assert ollama_url(host) == url
