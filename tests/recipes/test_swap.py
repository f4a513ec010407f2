"""Recipes in a folder that the server may only read, as compose.yaml mounts it."""

import os
import subprocess
import sys
from pathlib import Path

from loco.recipes.catalog import load_catalog
from loco.recipes.plain import ensure_plain
from loco.recipes.swap import unchanging

PROGRAM = """
import sys
from pathlib import Path
from loco.contracts.errors import LocoError
from loco.recipes.catalog import load_catalog
from loco.recipes.plain import ensure_plain
from loco.recipes.swap import unchanging

adapters = Path(sys.argv[1])
base = load_catalog(adapters)["qwen3-4b"]
print(ensure_plain(adapters, base, "known", "bob"))
for act in (
    lambda: ensure_plain(adapters, base, "new", "bob"),
    *(unchanging(adapters / name).__enter__ for name in ("math", "code", "analysis", "cut")),
):
    try:
        act()
        print("read")
    except LocoError as error:
        print(error.message)
"""


def test_a_folder_that_may_only_be_read_serves_what_it_holds(adapters_dir: Path) -> None:
    ensure_plain(adapters_dir, load_catalog(adapters_dir)["qwen3-4b"], "known", "bob")
    for name in ("math", "code", "cut"):  # analysis: nobody has put a recipe there
        (adapters_dir / name / ".recipes").mkdir(parents=True)
    with unchanging(adapters_dir / "math"):  # makes its lock
        pass
    put = adapters_dir / "cut" / ".recipes"
    (put / "1").mkdir()
    (put / "1" / "adapter.yaml").write_text("")
    (put / "pending.json").write_text('{"version": 1, "files": []}')
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    mount = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && exec "$2" -c "$3" "$1"'
    ran = subprocess.run(
        [
            "unshare",
            "--mount",
            *user,
            "sh",
            "-c",
            mount,
            "sh",
            adapters_dir,
            sys.executable,
            PROGRAM,
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    words = f"The server cannot write to its adapters folder {adapters_dir}: Read-only file system."
    assert ran.stdout.splitlines() == ["None", words, "read", "read", "read", words]
