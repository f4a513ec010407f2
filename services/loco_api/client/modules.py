"""Which modules of `loco` a laptop needs: what the command line reaches and light packages can run.

Read off the import statements. What a command imports only once it runs (`loco up` its supervisor)
comes along where it is light, too; where it is not, that command says that it belongs on the server.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import loco

#: Import names a laptop may need, and what a package index calls them. No service, no model library.
LIGHT = {
    "dotenv": "python-dotenv",
    "httpx": "httpx",
    "httpx_sse": "httpx-sse",
    "packaging": "packaging",
    "pydantic": "pydantic",
    "pydantic_core": "pydantic",
    "pynvml": "nvidia-ml-py",
    "re2": "google-re2",
    "rich": "rich",
    "typer": "typer",
    "yaml": "pyyaml",
}
_ROOT = Path(loco.__file__).parent
_START = "loco.cli.main"


@dataclass(frozen=True)
class Imports:
    """What a module imports."""

    #: With the module, and once something in it runs.
    eager: set[str] = field(default_factory=set)
    lazy: set[str] = field(default_factory=set)


class Reach:
    """The modules that the command line and `loco`'s public names reach."""

    def __init__(self) -> None:
        self._imports: dict[str, Imports] = {}
        #: Every module that comes along, packages too.
        self.modules: set[str] = set()
        public = {getattr(loco, name).__module__ for name in loco.__all__}
        waiting = [_START, *sorted(public)]
        while waiting:
            module = waiting.pop()
            if module in self.modules:
                continue
            if heavy := self._heavy(module):
                raise RuntimeError(f"{module}, which the client needs, imports {sorted(heavy)}.")
            self.modules |= {module, *_packages(module)}
            found = self._of(module)
            waiting += (m for m in found.eager if _is_ours(m))
            waiting += (m for m in found.lazy if _is_ours(m) and not self._heavy(m))

    @property
    def packages(self) -> set[str]:
        """What the index calls the packages that these modules import."""
        named = {
            name.partition(".")[0]
            for module in self.modules
            for name in self._of(module).eager | self._of(module).lazy
        }
        return {LIGHT[name] for name in named if name in LIGHT}

    def _heavy(self, module: str) -> set[str]:
        """Packages beyond the light ones that come with a module."""
        seen: set[str] = set()
        waiting, found = [module], set()
        while waiting:
            name = waiting.pop()
            if name in seen:
                continue
            seen.add(name)
            for needed in self._of(name).eager:
                if _is_ours(needed):
                    waiting.append(needed)
                elif needed.partition(".")[0] not in LIGHT:
                    found.add(needed)
        return found

    def _of(self, module: str) -> Imports:
        if module not in self._imports:
            self._imports[module] = _read(file_of(module))
        return self._imports[module]


def file_of(module: str) -> Path:
    """Where the code of a module of `loco` lies."""
    place = _ROOT.joinpath(*module.split(".")[1:])
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


def _is_ours(name: str) -> bool:
    return name == "loco" or name.startswith("loco.")


def _packages(module: str) -> Iterator[str]:
    parts = module.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts)))


def _read(file: Path) -> Imports:
    found = Imports()
    waiting: list[tuple[ast.AST, bool]] = [(ast.parse(file.read_bytes()), False)]
    while waiting:
        node, lazy = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue  # for the type checker alone
        names = found.lazy if lazy else found.eager
        names.update(name for name in _named(node) if name.partition(".")[0] not in _STDLIB)
        inner = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        waiting += ((child, inner) for child in ast.iter_child_nodes(node))
    return found


_STDLIB = sys.stdlib_module_names


def _named(node: ast.AST) -> Iterator[str]:
    """The modules an import statement names."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        yield node.module
        if _is_ours(node.module):  # `from loco.cli import chat` names a module, too
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                if file_of(module).is_file():
                    yield module
