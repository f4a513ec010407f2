"""What the model host refuses, with Ollama's own words and status codes."""


class Refusal(Exception):
    """An answer of the form `{"error": message}`.

    Attributes:
        status: HTTP status when nothing has been sent yet; after the first line of a stream the
            error is a line of its own under status 200, as in Ollama.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def not_found(name: str) -> Refusal:
    """The model is not in the store."""
    return Refusal(404, f"model '{name}' not found")


INVALID_NAME = "invalid model name"
INVALID_DIGEST = "invalid digest format"
BUSY = "server busy, please try again.  maximum pending requests exceeded"
