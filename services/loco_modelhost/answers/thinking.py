"""Reasoning between <think> and </think>, kept apart from the answer."""

from typing import Any

OPEN, CLOSE = "<think>", "</think>"


class ThinkingSplitter:
    """Splits generated text into thinking and content while it comes."""

    def __init__(self, prompt: str, *, active: bool) -> None:
        """A splitter for one answer.

        Args:
            prompt: the rendered prompt; it may open the tag already.
            active: whether thinking is on; if not, everything is content.
        """
        self._state = "content" if not active else "start"
        if active and prompt.rstrip().endswith(OPEN):
            self._state = "thinking"
        self._held = ""
        self._trim = True  # white space at the start of thinking, and of the answer after it, goes
        self._trim_content = False

    def add(self, text: str) -> tuple[str, str]:
        """(thinking, content) that are certain now."""
        if self._state == "content":
            return "", self._trimmed(text) if self._trim_content else text
        self._held += text
        if self._state == "start" and not self._opened():
            return "", self._content() if self._state == "content" else ""
        before, found, after = self._held.partition(CLOSE)
        if found:
            self._state, self._held = "content", ""
            thinking = self._trimmed(before).rstrip()
            self._trim = self._trim_content = True
            return thinking, self._trimmed(after)
        keep = next((n for n in range(len(CLOSE) - 1, 0, -1) if before.endswith(CLOSE[:n])), 0)
        self._held = before[len(before) - keep :]
        return self._trimmed(before[: len(before) - keep]), ""

    def flush(self) -> tuple[str, str]:
        """What was held back at the end."""
        rest, self._held = self._held, ""
        return (rest, "") if self._state == "thinking" else ("", rest)

    def _opened(self) -> bool:
        """Looks for the opening tag at the start of the answer."""
        start = self._held.lstrip()
        if start.startswith(OPEN):
            self._state, self._held = "thinking", start[len(OPEN) :].lstrip()
            return True
        if not OPEN.startswith(start):
            self._state = "content"
        return False

    def _trimmed(self, text: str) -> str:
        """Text without the white space that starts a part."""
        if self._trim:
            text = text.lstrip()
            self._trim = not text
        return text

    def _content(self) -> str:
        rest, self._held = self._held, ""
        return rest


def without_thinking(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The conversation with the reasoning of earlier answers left out, as Ollama does for Qwen3."""
    last_user = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=-1)
    return [
        {**m, "content": m["content"].partition(CLOSE)[2].lstrip()}
        if m["role"] == "assistant" and i < last_user and CLOSE in m["content"]
        else m
        for i, m in enumerate(messages)
    ]
