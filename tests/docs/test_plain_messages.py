"""What users read is plain: no stilted words, no words of the inside."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: Each with what to write instead.
REFUSED = {
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\banew\b": "again",
    r"\b(go|goes|went|gone|going) on\b": "continue",
    r"\btak(e|es|en|ing) over\b(?! \d)": "reuse",
    r"\bis passed over\b": "skip",
    r"\botherwise than\b": "differently from",
    r"\bany more\b": "no longer",
    r"\bat hand\b": "available",
    r"\bin vain\b": "without success",
    r"\bbeforehand\b": "before",
    r"\bmeanwhile\b": "in the meantime",
    r"\blacks?\b": "has no, is missing",
    r"\bso many at most\b": "at most this many",
    r"\b(stands?|come) (there )?twice\b": "appears twice",
    r"(?<!there )\bis no (?!longer\b|file \{)": "is not a",
    r"; none: ": "default, or null",
    r"\bledger\b": "Redis, jobs, records",
    r"\bfencing token\b": "attempt",
    r"\b(claim|claimed) (a|the) (stage|task|job)\b": "take",
}

#: Strings that are no words to a user: questions to a model and what its answers are searched for, SQL-like
#: patterns, and errors in the words of Ollama.
EXEMPT = {
    "services/loco_modelhost/engine/session.py",
    "services/loco_worker/sampling/texts.py",
    "shared/loco/grading/code.py",
}


def strings(tree: ast.Module, *, commands: bool = False) -> Iterator[tuple[int, str]]:
    """Line and text of every string that may be shown: of docstrings those of routes, contracts and commands."""
    hidden = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and not _is_shown(node, commands=commands):
                hidden.add(first.value)
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
            yield node.lineno, "".join(map(str, parts))
            hidden.update(node.values)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in hidden:
            yield node.lineno, node.value


def _is_shown(node: ast.AST, *, commands: bool) -> bool:
    """Whether a docstring is help or in /openapi.json: of a model, a route, or a function that takes the context."""
    if isinstance(node, ast.ClassDef):
        return any(ast.unparse(base).endswith(("Contract", "Error")) for base in node.bases)
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    if any("router" in ast.unparse(each) for each in node.decorator_list):
        return True
    return commands and not node.name.startswith("_") and "typer." in ast.unparse(node.args)


def faults(text: str) -> list[str]:
    """What is wrong with a text that users read."""
    if " " not in text.strip():  # a key, a field, a command
        return []
    return [
        f"{found[0]!r}: write {instead!r}"
        for pattern, instead in REFUSED.items()
        if (found := re.search(pattern, text, re.IGNORECASE))
    ]


SOURCES = sorted(
    path
    for room in ("shared/loco", "services")
    for path in (ROOT / room).rglob("*.py")
    if path.relative_to(ROOT).as_posix() not in EXEMPT
)


def test_messages_help_and_fields_are_in_plain_words() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {fault} in {text!r:.120}"
        for path in SOURCES
        for line, text in strings(ast.parse(path.read_text()), commands=path.parent.name == "cli")
        for fault in faults(text)
    ]
    assert found == []


def test_comments_of_recipes_are_in_plain_words() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {fault}"
        for path in sorted((ROOT / "adapters").rglob("*.yaml"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for fault in faults(line.partition("#")[2])
    ]
    assert found == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("3 problems to mend.", "'mend'"),
        ("The job goes on.", "'goes on'"),
        ("The ledger does not answer.", "'ledger'"),
        ("units.txt is no Parquet file.", "'is no '"),
        ("Name; none: the file's.", "'; none: '"),
    ],
)
def test_the_words_are_found(text: str, fault: str) -> None:
    assert [each.split(":")[0] for each in faults(text)][:1] == [fault] or fault in faults(text)[0]


@pytest.mark.parametrize(
    "head",
    [
        '@router.get("/jobs")\ndef jobs() -> None:',
        "def jobs(context: typer.Context) -> None:",
        "class Job(Contract):",
    ],
)
def test_help_of_commands_routes_and_fields_is_read(head: str) -> None:
    source = f'{head}\n    """Goes on."""\n\n\ndef inner() -> None:\n    """Goes on."""\n'
    assert sum(text == "Goes on." for _, text in strings(ast.parse(source), commands=True)) == 1
