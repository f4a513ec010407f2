"""compose.yaml: read by a compose implementation, checked against the official schema and this repository.

Why these two parsers, and no Docker: docs/adr/0006-compose-validation.md.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import dockerfile
import pytest
import yaml
from redis import AuthenticationError, Redis

from loco.box import redis_server
from loco.recipes.frozen import STORE
from loco.settings import Settings, Timings

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(sys.executable).parent
COMPOSE = ROOT / "compose.yaml"
DEPLOY = ROOT / "docs" / "deploy.md"
PASSWORD = "3f9c"
OURS = ("api", "worker", "trainer")
#: Variables of containers that other programs read.
FOREIGN = {
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "HF_HOME",
    "HF_TOKEN",
    "OLLAMA_HOST",
    "REDISCLI_AUTH",
}


def resolve(*files: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """The file as podman-compose reads it; it needs no podman for that."""
    named = [word for file in (files or (COMPOSE,)) for word in ("-f", str(file))]
    return subprocess.run(
        [str(SCRIPTS / "podman-compose"), "--dry-run", *named, "config"],
        env={"PATH": os.environ["PATH"], "LOCO_REDIS_PASSWORD": PASSWORD} | variables,
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )


def services(*files: Path, **variables: str) -> dict[str, Any]:
    """The resolved services."""
    answer = resolve(*files, **variables)
    assert answer.returncode == 0, answer.stderr
    found: dict[str, Any] = yaml.safe_load(answer.stdout)["services"]
    return found


def schema_errors(file: Path) -> str:
    """What the official compose schema says against a file; empty: nothing."""
    answer = subprocess.run(
        [str(SCRIPTS / "check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    return "" if answer.returncode == 0 else answer.stdout + answer.stderr


def volumes() -> dict[str, Any]:
    """The named volumes of the file."""
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["volumes"]
    return found


def last(service: dict[str, Any], instruction: str) -> tuple[str, ...]:
    """The words of the last such instruction in a service's Dockerfile."""
    found = dockerfile.parse_file(str(ROOT / service["build"]["dockerfile"]))
    words: tuple[str, ...] = [line.value for line in found if line.cmd == instruction][-1]
    return words


@pytest.fixture(scope="module")
def resolved() -> dict[str, Any]:
    """The services with nothing set but the password."""
    return services()


@pytest.fixture(scope="module")
def opened() -> dict[str, Any]:
    """The services with other values for what may be set."""
    return services(LOCO_BIND="0.0.0.0", LOCO_PORT="9000", LOCO_GPU="1")


def test_the_file_follows_the_compose_schema(tmp_path: Path) -> None:
    assert schema_errors(COMPOSE) == ""
    misspelt = tmp_path / "compose.yaml"
    misspelt.write_text(COMPOSE.read_text().replace("depends_on:", "depend_on:"))
    assert "depend_on" in schema_errors(misspelt)


def test_the_resolved_file_follows_the_schema_too(resolved: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "resolved.yaml"
    file.write_text(yaml.safe_dump({"services": resolved, "volumes": volumes()}))
    assert schema_errors(file) == ""


def test_it_refuses_to_start_without_a_redis_password() -> None:
    answer = resolve(LOCO_REDIS_PASSWORD="")
    assert answer.returncode != 0
    assert "LOCO_REDIS_PASSWORD" in answer.stderr
    assert "openssl rand" in answer.stderr  # the message teaches the fix


def test_services_wait_for_the_health_of_what_they_need(resolved: dict[str, Any]) -> None:
    assert set(resolved) == {"redis", "ollama", *OURS}
    for name in OURS:
        needs = resolved[name]["depends_on"]
        assert "redis" in needs
        for need, how in needs.items():
            assert how["condition"] == "service_healthy"
            assert resolved[need]["healthcheck"]["test"], need
    assert resolved["worker"]["depends_on"]["ollama"]["required"] is False


def test_every_command_runs_a_program_of_this_repository(resolved: dict[str, Any]) -> None:
    for name in OURS:
        *python, module = resolved[name]["command"]
        assert python == ["python", "-P", "-m"]  # -P: what lies in the current folder is no module
        assert (ROOT / "services" / module / "__main__.py").is_file(), module
        assert last(resolved[name], "CMD") == (*python, module)


def test_own_variables_are_settings_with_the_values_meant(resolved: dict[str, Any]) -> None:
    for name in OURS:
        environment = resolved[name]["environment"]
        known = {f"LOCO_{field.upper()}" for field in Settings.model_fields}
        assert set(environment) <= known | FOREIGN, name
        settings = Settings.from_environment(environment)
        redis = urlsplit(str(settings.redis_url))
        assert (redis.hostname, redis.port, redis.password) == ("redis", 6379, PASSWORD)
        assert urlsplit(settings.ollama_host).hostname == "ollama"
        assert str(settings.adapters_dir) == "/adapters"
        assert str(settings.data_dir) == "/data"
        assert str(settings.models_dir) == "/data/models"
    assert resolved["redis"]["environment"] == {"REDISCLI_AUTH": PASSWORD}


def test_the_api_listens_inside_and_only_loopback_reaches_it(
    resolved: dict[str, Any], opened: dict[str, Any]
) -> None:
    settings = Settings.from_environment(resolved["api"]["environment"])
    assert settings.host == "0.0.0.0"
    assert resolved["api"]["ports"] == [f"127.0.0.1:8321:{settings.port}"]
    assert f":{settings.port}/readyz" in " ".join(last(resolved["api"], "HEALTHCHECK"))
    published = [port for service in resolved.values() for port in service.get("ports", [])]
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert not resolved["redis"].get("ports")
    assert opened["api"]["ports"] == ["0.0.0.0:9000:8321"]
    assert opened["ollama"]["ports"] == resolved["ollama"]["ports"]  # it knows no keys


@pytest.mark.redis
def test_redis_keeps_every_write_and_its_password_to_itself(
    resolved: dict[str, Any], tmp_path: Path
) -> None:
    shell, flag, script = resolved["redis"]["command"]
    assert (shell, flag) == ("sh", "-c")
    (tmp_path / "redis-server").symlink_to(redis_server.find_server())
    socket = tmp_path / "s"
    here = f"--dir {tmp_path} --port 0 --unixsocket {socket}"
    process = subprocess.Popen(
        ["sh", "-c", script.replace("--dir /data", here)],
        env={"REDISCLI_AUTH": PASSWORD, "PATH": f"{tmp_path}:/usr/bin:/bin"},
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while not socket.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert PASSWORD not in Path(f"/proc/{process.pid}/cmdline").read_text()
        with Redis(unix_socket_path=str(socket)) as stranger, pytest.raises(AuthenticationError):
            stranger.ping()
        with Redis(
            unix_socket_path=str(socket), password=PASSWORD, decode_responses=True
        ) as client:
            for name, value in {
                "appendonly": "yes",
                "appendfsync": "always",
                "save": "",
                "maxmemory-policy": "noeviction",
            }.items():
                assert client.config_get(name)[name] == value
    finally:
        process.terminate()
        process.wait()
    assert "redis:/data" in resolved["redis"]["volumes"]


def test_folders_and_volumes_exist(resolved: dict[str, Any]) -> None:
    used = set()
    for name, service in resolved.items():
        targets = {}
        for volume in service["volumes"]:
            source, target, *_ = volume.split(":")
            targets[target] = source
            if source.startswith("."):
                assert (ROOT / source).is_dir(), source
            else:
                used.add(source)
        if name in ("worker", "trainer"):
            assert set(targets) == {"/adapters", "/data", "/data/models"}
            made = " ".join(last(service, "RUN"))
            # a new volume takes its owner from the image's folder
            assert re.search(r"install -d -o \S+ -g \S+ /data /data/models\b", made)
    assert used == set(volumes())


def test_the_api_takes_recipes_deletes_jobs_files_and_only_reads_models(
    resolved: dict[str, Any],
) -> None:
    """With the adapters folder read-only `loco adapters push` was refused, and `loco rm` freed nothing."""
    api = resolved["api"]
    assert api["volumes"] == ["./adapters:/adapters", "models:/data/models:ro"]
    kept = ROOT / "adapters" / STORE / ".gitignore"
    assert kept.is_file(), "a folder that the engine makes would belong to root"
    assert str(Settings.from_environment(api["environment"]).models_dir) == "/data/models"
    assert "models:/data/models" in resolved["trainer"]["volumes"]
    # the hub's cache too is looked for where the trainer keeps it
    words = last(resolved["trainer"], "ENV")
    image = dict(zip(words[::2], words[1::2], strict=True))
    assert api["environment"]["HF_HOME"] == image["HF_HOME"]


def test_the_trainer_is_pinned_to_one_gpu(resolved: dict[str, Any], opened: dict[str, Any]) -> None:
    (device,) = resolved["trainer"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    for gpu, environment in (
        ("0", resolved["trainer"]["environment"]),
        ("1", opened["trainer"]["environment"]),
    ):
        assert environment["CUDA_VISIBLE_DEVICES"] == gpu
        assert Settings.from_environment(environment).gpu == gpu
    assert resolved["trainer"]["shm_size"] == "2gb"
    assert all("deploy" not in resolved[name] for name in ("api", "worker", "ollama"))


def test_a_stopping_worker_gets_the_time_it_needs(resolved: dict[str, Any]) -> None:
    timings = Timings()
    needed = timings.renew + timings.stop_grace + 10
    for name in ("worker", "trainer"):
        grace = resolved[name]["stop_grace_period"]
        assert float(grace.removesuffix("s")) > needed
        # Celery would then end its pool child at once, before the stage could be drained
        assert "REMAP_SIGTERM" not in resolved[name]["environment"]
        assert resolved[name]["init"] is True


def test_services_have_no_more_rights_than_they_need(resolved: dict[str, Any]) -> None:
    for name, service in resolved.items():
        assert service["restart"] == "unless-stopped"
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert not service.get("privileged")
        if name in OURS:
            assert last(service, "USER") == ("loco",)
    assert resolved["redis"]["user"] == "redis"
    assert all(resolved[name]["read_only"] for name in ("redis", "api", "worker"))


def test_images_are_pinned(resolved: dict[str, Any]) -> None:
    for service in resolved.values():
        assert re.fullmatch(r"[a-z/-]+:\d+\.\d+\.\d+(-[a-z]+)?", service["image"])


def test_every_variable_of_the_file_is_documented() -> None:
    variables = set(re.findall(r"(?<!\$)\$\{([A-Z_]+)", COMPOSE.read_text()))
    assert variables >= {"LOCO_REDIS_PASSWORD", "LOCO_BIND", "LOCO_GPU", "LOCO_UID"}
    text = DEPLOY.read_text()
    assert [name for name in sorted(variables) if f"`{name}`" not in text] == []


def overrides() -> list[str]:
    """The override files that docs/deploy.md shows."""
    return re.findall(r"```yaml\n(.*?)```", DEPLOY.read_text(), flags=re.DOTALL)


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The services under each documented override, by the override's first line."""
    found = {}
    for text in overrides():
        folder = tmp_path_factory.mktemp("override")
        (folder / COMPOSE.name).write_bytes(COMPOSE.read_bytes())
        override = folder / "compose.override.yaml"
        override.write_text(text)
        plain = folder / "plain.yaml"  # the schema knows no merge tags
        plain.write_text(text.replace("!reset ", ""))
        assert schema_errors(plain) == ""
        found[text.splitlines()[0].removeprefix("# ")] = services(COMPOSE, override)
    return found


def test_documented_overrides_do_what_the_text_says(merged: dict[str, dict[str, Any]]) -> None:
    assert len(merged) == len(overrides()) == 4
    assert "ollama" not in merged["another Ollama"]
    gpu = merged["Ollama on the GPU"]["ollama"]["deploy"]["resources"]["reservations"]["devices"]
    assert gpu[0]["capabilities"] == ["gpu"]
    cpu = merged["no GPU"]["trainer"]
    assert not cpu.get("deploy")
    assert cpu["environment"]["CUDA_VISIBLE_DEVICES"] == ""
    assert "GPU=0" in cpu["build"]["args"]
    second = merged["a second GPU"]["trainer-1"]
    assert second["extends"]["service"] == "trainer"
    assert Path(second["extends"]["file"]).name == COMPOSE.name
    assert second["environment"]["CUDA_VISIBLE_DEVICES"] == "1"


def test_documented_commands_name_services_and_subcommands_that_exist() -> None:
    text = DEPLOY.read_text()
    ran = re.findall(r"docker compose (?:run --rm|exec|logs -f|build|up -d) ([a-z]+)\b", text)
    assert set(ran) <= {"redis", "ollama", *OURS}
    assert "docker compose run --rm api loco keys create" in text
    listed = subprocess.run(
        [sys.executable, "-m", "loco.cli.main", "keys", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "create" in listed.stdout
