"""Texts in a Modelfile. Ollama's parser knows no escape: three quotes end a text wherever they stand."""

from typing import Annotated

from pydantic import AfterValidator, Field

from loco.contracts.bounds import LONGEST_PROMPT


def _quotable(text: str) -> str:
    """A text that stands in a Modelfile as it is.

    Raises:
        ValueError: it cannot.
    """
    if '"""' in text:
        raise ValueError(
            "has three quotes in a row, which would end the text in a Modelfile. Write two of them"
        )
    if "\0" in text or "\r" in text:
        raise ValueError("has a zero byte or carriage return, which a Modelfile cannot hold")
    if text.endswith('"') and ("\n" in text or text.startswith('"')):
        raise ValueError(
            "ends with a quote, which a Modelfile cannot hold in a text like this. End it "
            "with another character"
        )
    return text


ModelfileText = Annotated[str, Field(max_length=LONGEST_PROMPT), AfterValidator(_quotable)]


def quoted(text: str, *, short: bool = False) -> str:
    """The text as the value of an instruction, e.g. `SYSTEM`.

    Its form follows Ollama's parser: a bare text ends with its line, one in a quote with the quote that
    ends the line, one in three with the next three.

    Args:
        text: a `ModelfileText`.
        short: one quote where that does.
    """
    if short and '"' not in text and "\n" not in text:
        return f'"{text}"'
    return text if text.endswith('"') else f'"""{text}"""'
