"""Answers of a model, piece by piece: the API passes the conversation on to Ollama."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from httpx_sse import EventSource, SSEError

from loco.client.http import Transport
from loco.contracts.errors import LocoError, ServerUnreachable, from_payload

#: Seconds without a byte: a large model is loaded inside the request.
_PATIENCE = 600.0
#: What ends a stream.
_DONE = "[DONE]"


def chat(
    transport: Transport,
    model: str,
    messages: Sequence[Mapping[str, str]],
    options: Mapping[str, Any],
) -> Iterator[str]:
    """The pieces of an answer, as they come.

    Args:
        transport: to the server.
        model: its name in Ollama.
        messages: the conversation, `{"role", "content"}` each.
        options: further fields of the request, as OpenAI calls them.

    Raises:
        ServerUnreachable: the answer broke off.
        LocoError: the class the server raised, or what Ollama says.
    """
    body = {"model": model, "messages": list(messages), "stream": True, **options}
    headers = {"Accept": "text/event-stream"}
    with transport.stream(
        "/v1/chat/completions", method="POST", body=body, headers=headers, read_timeout=_PATIENCE
    ) as response:
        try:
            for event in EventSource(response).iter_sse():
                if event.data == _DONE:
                    return
                if not event.data:
                    continue
                piece = event.json()
                if piece.get("error"):
                    raise from_payload(piece, fallback="The model stopped with an error.")
                for choice in piece.get("choices", ()):
                    if text := choice.get("delta", {}).get("content"):
                        yield str(text)
        except (SSEError, ValueError, AttributeError, TypeError) as error:
            raise LocoError(
                f"The server's answer is not a chat stream: {error!r:.200}.",
                hint="Client and server may be different releases. `loco version` shows both.",
            ) from error
    raise ServerUnreachable("The answer broke off.", hint="Ask again.")
