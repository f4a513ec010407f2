"""The client from the box: a real pip installs it into an empty environment, and it works there."""

import ast
import hashlib
import os
import subprocess
import sys
import sysconfig
import zipfile
from base64 import urlsafe_b64encode
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from packaging.requirements import Requirement

from loco.ledger.keys import Keys
from loco_api.client.modules import LIGHT, Reach, file_of
from loco_api.client.wheel import FILENAME, source, wheel

pytestmark = pytest.mark.redis

#: What no laptop shall have to install.
HEAVY = {"celery", "redis", "torch", "datasets", "transformers", "fastapi", "uvicorn", "ollama"}
#: Runs a command with the packages that the wheel declares, and no others of this environment.
RUN = """
import sys
from importlib import metadata
from importlib.abc import MetaPathFinder
from importlib.metadata import PackageNotFoundError

heavy = set(sys.argv[1].split(","))


class Refuse(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in heavy:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


sys.meta_path.insert(0, Refuse())
known = metadata.version
metadata.version = lambda name: known(name) if name != "locollm" else gone(name)


def gone(name):
    raise PackageNotFoundError(name)


from loco.cli.main import main

import loco

assert loco.__file__.startswith(sys.argv[2]), loco.__file__
sys.exit(main(sys.argv[3:]))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """What a real pip puts into an empty folder, from an address; without an index."""

    def install(address: str) -> Path:
        target = tmp_path_factory.mktemp("laptop")
        words = ["install", "--no-deps", "--no-index", "--no-cache-dir", "--target", str(target)]
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH",)}
        done = subprocess.run(
            [sys.executable, "-m", "pip", *words, address],
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return target

    return install


def test_pip_installs_the_client_from_the_box_and_it_works_alone(live_api, installed, keys_made):
    target = installed(f"{live_api.url}/client")
    assert (target / "bin" / "loco").is_file()
    others = {dist.partition(".")[0] for dist in HEAVY} | {"loco_api", "loco_worker"}

    def laptop(*words: str) -> "subprocess.CompletedProcess[str]":
        packages = sysconfig.get_paths()["purelib"]
        return subprocess.run(
            [sys.executable, "-S", "-P", "-c", RUN, ",".join(others), str(target), *words],
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": f"{target}:{packages}",
                "LOCO_SERVER": live_api.url,
                "LOCO_API_KEY": keys_made,
            },
            cwd=target,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    sent = laptop("submit", "math", "--profile", "tiny", "--json")
    assert sent.returncode == 0, sent.stderr
    shown = laptop("job", "last")
    assert (shown.returncode, "number 1 in line" in shown.stdout) == (0, True), shown.stderr
    told = laptop("up")
    assert (told.returncode, "Only the client is installed" in told.stderr) == (2, True), (
        told.stderr
    )


@pytest.fixture
def keys_made(redis_url, namespace) -> str:
    """A server that asks for a key: pip brings none."""
    keys = Keys.connect(redis_url, namespace=namespace)
    _, key = keys.create("anna")
    keys.close()
    return key


def test_the_wheel_is_one(live_api, keys_made):
    """By the specification of wheels: every file recorded with its digest, and the same bytes again."""
    found = httpx.get(f"{live_api.url}/client/{FILENAME}", trust_env=False)
    assert found.content == wheel().content
    archive = zipfile.ZipFile(BytesIO(found.content))
    info = FILENAME.removesuffix("-py3-none-any.whl") + ".dist-info"
    rows = [line.rsplit(",", 2) for line in archive.read(f"{info}/RECORD").decode().splitlines()]
    assert {name for name, _, _ in rows} == set(archive.namelist())
    for name, digest, size in rows:
        if name != f"{info}/RECORD":
            content = archive.read(name)
            told = urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            assert (digest, size) == (f"sha256={told}", str(len(content))), name
    wheel.cache_clear()
    assert wheel().content == found.content
    assert httpx.get(f"{live_api.url}/jobs", trust_env=False).status_code == 401
    assert httpx.get(f"{live_api.url}/client/other.whl", trust_env=False).status_code == 401
    assert zipfile.ZipFile(BytesIO(source().content)).testzip() is None


def test_it_holds_code_alone_and_declares_what_that_imports():
    reach = Reach()
    archive = zipfile.ZipFile(BytesIO(wheel().content))
    code = {n for n in archive.namelist() if not n.partition("/")[0].endswith(".dist-info")}
    assert all(n.startswith("loco/") and n.endswith((".py", "py.typed")) for n in code)
    [head] = [archive.read(n).decode() for n in archive.namelist() if n.endswith("METADATA")]
    needs = {
        Requirement(line.removeprefix("Requires-Dist: ")).name
        for line in head.splitlines()
        if line.startswith("Requires-Dist")
    }
    assert needs == reach.packages
    assert not needs & HEAVY
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else alias.name).partition(".")[0]
        for module in reach.modules
        for node in ast.walk(ast.parse(file_of(module).read_bytes()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    } - sys.stdlib_module_names
    assert {LIGHT[name] for name in imported if name in LIGHT} <= needs
    commands = {m for m in reach.modules if m.startswith("loco.cli.")}
    assert {"loco.cli.chat", "loco.cli.logs", "loco.cli.watch", "loco.cli.completion"} <= commands
