"""Settings from LOCO_* variables."""

from pathlib import Path

import pytest

from loco.contracts.errors import InvalidRequest
from loco.settings import Settings, ollama_url


def test_nothing_set_means_loopback_and_folders_here() -> None:
    settings = Settings.from_environment({})
    assert (settings.host, settings.port, settings.redis_url) == ("127.0.0.1", 8321, None)
    assert settings.adapters_dir == Path.cwd() / "adapters"
    assert settings.data_dir == Path.cwd() / ".loco"
    assert settings.timings.lease == 60


def test_variables_are_read() -> None:
    settings = Settings.from_environment(
        {
            "LOCO_PORT": "9000",
            "LOCO_DATA_DIR": "/data",
            "LOCO_REDIS_URL": "redis://r:1",
            "LOCO_DATASET_DIRS": "/a:/b",
            "LOCO_LEASE_SECONDS": "2.5",
            "LOCO_CRASH_BUDGET": "5",
            "OLLAMA_HOST": "gpu:1234",
        }
    )
    assert (settings.port, settings.data_dir) == (9000, Path("/data"))
    assert settings.redis_url == "redis://r:1"
    assert settings.dataset_dirs == (Path("/a"), Path("/b"))
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
