"""Settings, read once from LOCO_* variables in each process's composition root.

Variables come from the environment, then from `.env` in the current folder, then from the files of
the folder LOCO_SECRETS_DIR (of either) names (as Docker and Podman mount secrets).
"""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from pydantic import Field, IPvAnyNetwork, ValidationError

from loco.contracts.base import Contract
from loco.contracts.errors import InvalidRequest

DEFAULT_PORT = 8321
DEFAULT_OLLAMA = "http://127.0.0.1:11434"
#: The checkout this code lies in, if it lies in one.
CHECKOUT = Path(__file__).absolute().parents[2]
#: In an adapters folder: the base models that recipes may name.
CATALOG = "base_models.yaml"
#: In the current folder: variables as Docker Compose reads them. Never committed.
ENV_FILE = ".env"
#: Fields of `Settings` that no LOCO_FIELD gives as it is. LOCO_OLLAMA_HOST in a `.env` is Compose's, and
#: names a host that only its containers know.
_NAMED_OTHERWISE = ("timings", "dataset_dirs", "pass_env", "ollama_host", "trusted_proxies")


class Timings(Contract):
    """Leases and patience, in seconds. Measured starting points: docs/adr/0002."""

    lease: float = Field(
        60,
        gt=0,
        description="After this long without a sign of life from its worker, a stage goes to another.",
    )
    renew: float = Field(2, gt=0, description="Time between two signs of life of a running stage.")
    reap: float = Field(
        5, gt=0, description="Time between two searches for stages whose worker is gone."
    )
    stale_child: float = Field(
        40,
        gt=0,
        description="A worker stops its stage program this long after its last sign of life reached "
        "Redis.",
    )
    watchdog: float = Field(
        45, gt=0, description="A stage program exits by itself after this long without its worker."
    )
    stop_grace: float = Field(
        15, gt=0, description="Time a stage program has to stop before it is killed."
    )
    rehint: float = Field(
        15, gt=0, description="After this long, the workers are told again about a waiting stage."
    )
    crash_budget: int = Field(
        3, ge=1, description="How often a stage may crash without a new checkpoint before it fails."
    )
    retry_backoff: float = Field(
        5, ge=0, description="First pause before a retry. It doubles each time."
    )
    retries: int = Field(
        3, ge=0, description="How often to retry a failure that may go away by itself."
    )


class Settings(Contract):
    """Everything a process of locollm reads from its environment."""

    host: str = Field("127.0.0.1", description="Address the API listens on.")
    port: int = Field(
        DEFAULT_PORT, ge=0, le=65535, description="Port of the API. 0: any free port."
    )
    data_dir: Path = Field(Path(".loco"), description="Redis data, logs, base models, locks.")
    adapters_dir: Path = Field(
        Path("adapters"), description="Recipes, and what jobs build from them."
    )
    dataset_dirs: tuple[Path, ...] = Field(
        (), description="More folders that a jsonl source may read from."
    )
    pass_env: tuple[str, ...] = Field(
        (), description="More environment variables for services and stage programs."
    )
    redis_url: str | None = Field(None, description="The Redis server. None: `loco up` starts one.")
    namespace: str = Field("loco", description="Prefix of every Redis key.")
    ollama_host: str = Field(DEFAULT_OLLAMA, description="Base URL of Ollama (OLLAMA_HOST).")
    train_python: Path = Field(
        Path(".venv-train/bin/python"), description="Python of the training venv."
    )
    gpu: str | None = Field(
        None, description="CUDA_VISIBLE_DEVICES of the trainer. None: unchanged."
    )
    trusted_proxies: tuple[IPvAnyNetwork, ...] = Field(
        (), description="Proxies whose X-Forwarded-For is trusted: addresses or networks."
    )
    requests_per_minute: int = Field(
        1200, ge=1, le=1_000_000, description="Requests per minute and API key."
    )
    submits_per_minute: int = Field(
        60, ge=1, le=1_000_000, description="Jobs, replays and plans per minute and API key."
    )
    refusals_per_minute: int = Field(
        10,
        ge=1,
        le=1_000_000,
        description="Answers 401 and 403 per minute and address. After that: 429.",
    )
    dataset_mb: int = Field(
        512, ge=1, le=2048, description="Largest uploaded data set, in megabytes (2^20 bytes)."
    )
    datasets_mb: int = Field(
        4096, ge=1, le=10_000_000, description="Megabytes of data sets per owner."
    )
    datasets: int = Field(200, ge=1, le=100_000, description="Data sets per owner.")
    timings: Timings = Timings()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Self:
        """Settings of this process.

        Args:
            environment: the variables; none: `variables_here()`.

        Raises:
            InvalidRequest: a variable has a wrong value; names the variable.
        """
        if environment is None:
            environment = variables_here()
        values: dict[str, object] = {}
        for field in cls.model_fields:
            raw = environment.get(f"LOCO_{field.upper()}")
            if raw and field not in _NAMED_OTHERWISE:
                values[field] = raw
        if raw := environment.get("LOCO_DATASET_DIRS"):
            values["dataset_dirs"] = [Path(p).absolute() for p in raw.split(os.pathsep) if p]
        if raw := environment.get("LOCO_TRUSTED_PROXIES"):
            values["trusted_proxies"] = raw.replace(",", " ").split()
        if raw := environment.get("LOCO_PASS_ENV"):
            values["pass_env"] = [name.strip() for name in raw.split(",") if name.strip()]
        if raw := environment.get("OLLAMA_HOST"):
            values["ollama_host"] = ollama_url(raw)
        values["timings"] = {
            name: raw
            for name, field in Timings.model_fields.items()
            if (raw := environment.get(_timing_variable(name, field.annotation)))
        }
        values.setdefault("train_python", _found(".venv-train", "bin/python"))
        values.setdefault("adapters_dir", _found("adapters", CATALOG).parent)
        try:
            settings = cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            field, *rest = (str(part) for part in first["loc"])
            name = f"LOCO_{field.upper()}"
            if field == "timings":
                name = _timing_variable(rest[0], Timings.model_fields[rest[0]].annotation)
            raise InvalidRequest(
                f"{name}: {first['msg']}", param=name, hint="Correct the variable, or unset it."
            ) from error
        return settings.model_copy(
            update={
                "data_dir": settings.data_dir.absolute(),
                "adapters_dir": settings.adapters_dir.absolute(),
                # not resolve(): the venv's python is a link, and following it leaves the venv
                "train_python": settings.train_python.absolute(),
            }
        )

    def environment(self) -> dict[str, str]:
        """The variables that give a child process these settings; what is not set is empty."""
        variables = {
            f"LOCO_{name.upper()}": "" if (value := getattr(self, name)) is None else str(value)
            for name in type(self).model_fields
            if name not in _NAMED_OTHERWISE
        }
        variables["LOCO_DATASET_DIRS"] = os.pathsep.join(str(p) for p in self.dataset_dirs)
        variables["LOCO_TRUSTED_PROXIES"] = ",".join(str(n) for n in self.trusted_proxies)
        variables["LOCO_PASS_ENV"] = ",".join(self.pass_env)
        variables["OLLAMA_HOST"] = self.ollama_host
        for name, field in Timings.model_fields.items():
            variables[_timing_variable(name, field.annotation)] = str(getattr(self.timings, name))
        return variables

    @property
    def models_dir(self) -> Path:
        """Cache of base models."""
        return self.data_dir / "models"

    @property
    def answers_dir(self) -> Path:
        """Answers that models have given, to eval and prepare."""
        return self.data_dir / "answers"

    @property
    def locks_dir(self) -> Path:
        """GPU lock files."""
        return self.data_dir / "locks"


def homes() -> tuple[Path, ...]:
    """Where adapters and the training venv are looked for: here, or where this program comes from."""
    # beside the venv this runs in, whether the code is installed there or lies in the checkout
    return tuple(dict.fromkeys(f.absolute() for f in (Path(), CHECKOUT, Path(sys.prefix).parent)))


def _found(folder: str, mark: str) -> Path:
    """The first of these folders that holds a file, or the one here."""
    places = [home / folder / mark for home in homes()]
    return next((place for place in places if os.path.exists(place)), places[0])


def variables_here(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment, and below it `.env` and secrets: what is set in it wins, even when empty.

    Raises:
        InvalidRequest: `.env`, a line of it or the folder of secrets cannot be read.
    """
    given = {**_env_file(Path(ENV_FILE)), **environment}
    secrets: dict[str, str] = {}
    if folder := given.get("LOCO_SECRETS_DIR"):
        with _readable("LOCO_SECRETS_DIR"):
            secrets = {
                file.name.upper(): file.read_text(encoding="utf-8").strip()
                for file in Path(folder).iterdir()
                if file.is_file() and file.name.upper().startswith(("LOCO_", "OLLAMA_HOST"))
            }
    return {**secrets, **given}


def _env_file(file: Path) -> dict[str, str]:
    """Its variables; `$` stands for itself, in whatever quotes."""
    if not file.is_file():
        return {}
    from dotenv.parser import parse_stream  # noqa: PLC0415 (25 ms that only those with a file pay)

    with _readable(ENV_FILE), file.open(encoding="utf-8") as content:
        bindings = list(parse_stream(content))
    for binding in bindings:
        if binding.error:
            text, first = binding.original  # with the empty lines before it
            number = first + text[: len(text) - len(text.lstrip())].count("\n")
            line = f"line {number}"  # not its text: it may be a password
            raise InvalidRequest(
                f"{ENV_FILE} cannot be read: {line} is not NAME=value.",
                param=ENV_FILE,
                hint=f"Correct {line}: close its quotes, or start it with # if it is a comment.",
            )
    return {binding.key: binding.value or "" for binding in bindings if binding.key is not None}


@contextmanager
def _readable(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeDecodeError) as error:
        hint = f"Make {name} readable for this user, as UTF-8, or remove it."
        raise InvalidRequest(f"{name} cannot be read: {error}", param=name, hint=hint) from error


def _timing_variable(name: str, kind: object) -> str:
    """`LOCO_LEASE_SECONDS` for durations, `LOCO_CRASH_BUDGET` for counts."""
    return f"LOCO_{name.upper()}" + ("_SECONDS" if kind is float else "")


def ollama_url(host: str) -> str:
    """The base URL OLLAMA_HOST means: scheme and port may be missing, as for `ollama` itself."""
    url = host if "://" in host else f"http://{host}"
    scheme, _, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    if ":" not in authority.rpartition("]")[2]:
        authority += ":11434" if scheme == "http" else ":443"
    if authority.startswith("0.0.0.0:"):
        authority = "127.0.0.1:" + authority.rpartition(":")[2]
    return f"{scheme}://{authority}{slash}{path}".rstrip("/")
