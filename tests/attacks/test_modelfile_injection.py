"""A system prompt or stop string that writes instructions of its own into the Modelfile.

`\"\"\"\\nFROM /somewhere/else` in a base model's `system` ended the text, and `ollama create` followed
the line after it. What a Modelfile cannot hold is refused where it is written.
"""

import pytest
from pydantic import ValidationError

from loco.contracts.modelfiles import quoted
from loco.contracts.specs import BaseModelSpec

FIELDS = {
    "name": "b",
    "kind": "hub",
    "train": "a/b",
    "merge": "a/b",
    "ollama": "b:1b",
    "parameters_billion": 1,
}
BREAKS = [
    'x"""\nFROM /etc/passwd\nSYSTEM """y',
    '"""',
    'a """" b',
    'two\nlines "quoted"',
    '"quoted"',
    "zero \0 byte",
    "return\r\nFROM x",
]
HOLDS = [
    "You are helpful.",
    "two\nlines",
    'Say "hi"',
    'a "quote" inside\nand a line',
    "FROM x\nPARAMETER stop y",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "ends with a backslash \\",
    "\n\n",
    "# not a comment",
]


@pytest.mark.parametrize("text", BREAKS)
def test_what_breaks_out_is_refused_by_field(text: str) -> None:
    for field, value in (("system", text), ("stop", (text,))):
        with pytest.raises(ValidationError, match="Modelfile") as refused:
            BaseModelSpec.model_validate({**FIELDS, field: value})
        assert refused.value.errors()[0]["loc"][0] == field


@pytest.mark.parametrize("text", HOLDS)
@pytest.mark.parametrize("short", [False, True])
def test_what_is_accepted_is_read_as_it_was_written(text: str, *, short: bool) -> None:
    BaseModelSpec.model_validate({**FIELDS, "system": text, "stop": (text,)})
    modelfile = (
        f"FROM ./x.gguf\nPARAMETER stop {quoted(text, short=short)}\nSYSTEM {quoted(text)}\n"
    )
    assert instructions(modelfile) == [
        ("from", "./x.gguf"),
        ("parameter stop", text),
        ("system", text),
    ]


def instructions(modelfile: str) -> list[tuple[str, str]]:
    """A Modelfile as Ollama's parser reads it: a value ends with its line, or with its three quotes."""
    found = []
    rest = modelfile
    while rest:
        name, _, rest = rest.partition(" ")
        if name.lower() == "parameter":
            which, _, rest = rest.partition(" ")
            name = f"{name} {which}"
        if rest.startswith('"""'):
            value, _, rest = rest[3:].partition('"""')
            rest = rest.removeprefix("\n")
        else:
            value, _, rest = rest.partition("\n")
            if len(value) > 1 and value[0] == value[-1] == '"':
                value = value[1:-1]
        found.append((name.lower(), value))
    return found
