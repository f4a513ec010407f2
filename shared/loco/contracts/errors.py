"""Every error a user can meet. The message says what is wrong, the hint says what to do.

An error travels as `{"error": {"code", "message", "param", "hint"}}` and is the same class again
in the client (`from_payload`).
"""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from pydantic import Field, ValidationError

from loco.contracts.base import Contract
from loco.contracts.fields import nearest


class ErrorBody(Contract):
    """What the API says about an error."""

    code: str = Field(description="Stable code for programs.")
    message: str = Field(description="What is wrong, for people.")
    param: str | None = Field(None, description="The field or header that caused it, if any.")
    hint: str | None = Field(None, description="What to do about it.")


class LocoError(Exception):
    """Something went wrong inside locollm.

    Attributes:
        code: stable word for programs.
        status: HTTP status the API answers with.
        user_fault: whether a changed request or setting fixes it.
        retryable: whether the same attempt may succeed later.
    """

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    user_fault: ClassVar[bool] = False
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, param: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.hint = hint
        #: HTTP headers the answer carries besides (`WWW-Authenticate`, `Content-Range`).
        self.headers: dict[str, str] = {}

    @property
    def body(self) -> ErrorBody:
        """The error as the API sends it."""
        return ErrorBody(code=self.code, message=self.message, param=self.param, hint=self.hint)


class InvalidRequest(LocoError):
    """A field of the request, recipe or spec has a wrong value."""

    code = "invalid_request"
    status = 422
    user_fault = True


class NotFound(LocoError):
    """There is no such job, task, artifact or route."""

    code = "not_found"
    status = 404
    user_fault = True


class UnknownAdapter(NotFound):
    """There is no adapter of that name."""

    code = "unknown_adapter"


class UnknownProfile(InvalidRequest):
    """The recipe has no profile of that name."""

    code = "unknown_profile"


class UnknownBaseModel(InvalidRequest):
    """The catalog has no base model of that name."""

    code = "unknown_base_model"


class StageGap(InvalidRequest):
    """The stage list leaves out a stage that a later one needs."""

    code = "stage_gap"


class Conflict(LocoError):
    """The request does not fit the current state."""

    code = "conflict"
    status = 409
    user_fault = True


class IdempotencyConflict(Conflict):
    """The idempotency key was used with another body."""

    code = "idempotency_conflict"


class AdapterInUse(Conflict):
    """Versions or jobs of an adapter are left, so it is not deleted."""

    code = "adapter_in_use"


class RecipeChanged(Conflict):
    """The adapter has another recipe than `If-Match` says."""

    code = "recipe_changed"
    status = 412


class Unseen(Conflict):
    """This machine cannot show how the model sees rows: no training environment, or no tokenizer."""

    code = "unseen"


class VersionRefused(Conflict):
    """The gate refused the version, and `force` was not given."""

    code = "version_refused"


class CandidateMissing(Conflict):
    """Ollama no longer has the version's model, or has another one under its name."""

    code = "candidate_missing"


class ArtifactChanged(Conflict):
    """A committed file no longer has the content that was committed."""

    code = "artifact_changed"


class UnsafePath(LocoError):
    """A path leads outside its folder. Nothing was read or written there."""

    code = "unsafe_path"
    status = 409


class UnreadableRecord(LocoError):
    """The server's record under this ID cannot be read: another program or a newer release wrote it."""

    code = "unreadable_record"


class Unauthorized(LocoError):
    """No valid API key came with the request."""

    code = "unauthorized"
    status = 401
    user_fault = True


class Forbidden(LocoError):
    """The key may not do this, or no key exists yet and the request comes from another machine."""

    code = "forbidden"
    status = 403
    user_fault = True


class TooManyRequests(LocoError):
    """Too many requests with this key or from this address. Wait as long as Retry-After says."""

    code = "too_many_requests"
    status = 429
    retryable = True


class RangeNotSatisfiable(LocoError):
    """The asked byte range lies outside the artifact."""

    code = "range_not_satisfiable"
    status = 416
    user_fault = True


class BodyTooLarge(LocoError):
    """The body of the request is larger than the server reads."""

    code = "body_too_large"
    status = 413
    user_fault = True


class TooManyStreams(LocoError):
    """Too many live event streams are open. Poll, or try again later."""

    code = "too_many_streams"
    status = 503
    retryable = True


class Busy(LocoError):
    """Too many requests of this kind are running. Try again in a moment."""

    code = "busy"
    status = 503
    retryable = True


class DataError(InvalidRequest):
    """The training or eval data cannot be used (the message names file and line)."""

    code = "bad_data"


class SourceUnreachable(LocoError):
    """A hub or file source could not be read."""

    code = "source_unreachable"
    status = 503
    user_fault = True


class DiskFull(LocoError):
    """There is not enough free disk space for what a stage will write."""

    code = "disk_full"
    status = 507
    user_fault = True
    retryable = True


class QuotaExceeded(LocoError):
    """The owner has reached the server's limit for data sets or their bytes."""

    code = "quota_exceeded"
    status = 403
    user_fault = True


class OutOfMemory(LocoError):
    """The GPU or the machine ran out of memory."""

    code = "out_of_memory"
    status = 422
    user_fault = True


class TrainingFailed(LocoError):
    """Training diverged or the engine cannot run here."""

    code = "training_failed"


class ExportFailed(LocoError):
    """The exported GGUF is missing something or does not generate."""

    code = "export_failed"


class SandboxUnavailable(LocoError):
    """This machine cannot run a model's code safely, so it runs none (the message names what is missing)."""

    code = "sandbox_unavailable"
    status = 501
    user_fault = True


class OllamaUnavailable(LocoError):
    """No Ollama answers at the configured address."""

    code = "ollama_unavailable"
    status = 503
    retryable = True


class OllamaRefused(LocoError):
    """Ollama answered with an error."""

    code = "ollama_refused"


class RegistrationFailed(LocoError):
    """Ollama answered, but the model it holds is not what was exported."""

    code = "registration_failed"


class RedisUnavailable(LocoError):
    """Redis does not answer."""

    code = "redis_unavailable"
    status = 503
    retryable = True


class WorkerCrashed(LocoError):
    """A stage program was killed or died without saying why."""

    code = "worker_crashed"
    retryable = True


class ServerUnreachable(LocoError):
    """No locollm API answers at the client's server address."""

    code = "server_unreachable"
    status = 503
    retryable = True


def _subclasses(cls: type[LocoError]) -> list[type[LocoError]]:
    return [cls] + [s for c in cls.__subclasses__() for s in _subclasses(c)]


def from_payload(payload: Any, *, fallback: str) -> LocoError:
    """The error an API answer carries, as the class that was raised there.

    Args:
        payload: decoded JSON of the answer, of any shape.
        fallback: message when the payload is not an error of ours.
    """
    error = payload.get("error") if isinstance(payload, dict) else None
    if not isinstance(error, dict):
        return LocoError(fallback)
    known = {c.code: c for c in reversed(_subclasses(LocoError))}
    cls = known.get(str(error.get("code")), LocoError)
    param, hint = (
        None if (value := error.get(name)) is None else str(value) for name in ("param", "hint")
    )
    return cls(str(error.get("message", fallback)), param=param, hint=hint)


def invalid(
    error: ValidationError, document: Any = None, *, where: str = "", known: Iterable[str] = ()
) -> InvalidRequest:
    """A pydantic error as one of ours: the first fault, its field, and what is allowed there.

    Args:
        error: what pydantic found.
        document: what it looked at: a field of a union is then named as it is written there, without
            the union's choice (`prepare.source.path`, not `prepare.source.jsonl.path`).
        where: named in front of the field at fault.
        known: fields that there are, to name the one that was meant.
    """
    faults = error.errors(include_url=False)
    first = faults[0]
    field = _field(first, document)
    place = f"{where}: {field}" if where else field
    if first["type"] == "extra_forbidden":
        return InvalidRequest(f"{place}: unknown field.", param=field, hint=spelling(field, known))
    # of a union each choice has its fault; who writes YAML or JSON knows no tuples
    same = (f["msg"] for f in faults if _field(f, document) == field)
    wrong = dict.fromkeys(said.replace("a valid tuple", "a list") for said in same)
    return InvalidRequest(
        f"{place}: {', or: '.join(wrong)} (got {quoted(first['input'])}).",
        param=field,
        hint="docs/recipes.md and GET /openapi.json list the allowed values of each field.",
    )


def spelling(field: str, known: Iterable[str]) -> str:
    """What to do about a field that there is not."""
    meant = nearest(field, tuple(known))
    lists = "GET /openapi.json and docs/recipes.md list every field."
    return f"Did you mean {meant}? {lists}" if meant else f"Check the spelling. {lists}"


def quoted(value: Any) -> str:
    """The start of a value as Python writes it, also of one that Python refuses to write whole."""
    try:
        return f"{value!r:.80}"
    except (ValueError, RecursionError):  # an integer of over 4,300 digits; a list a thousand deep
        return f"a value of type {type(value).__name__} that is too large to show"


def _field(fault: Mapping[str, Any], document: Any) -> str:
    parts = _written(fault["loc"], document, missing=fault["type"] == "missing")
    return ".".join(parts).replace("register_", "register")


def _written(loc: tuple[int | str, ...], document: Any, *, missing: bool) -> list[str]:
    """The parts of a location that the document has, or could have: no tags of unions.

    Without a document only what is no name at all is left out (`tuple[str, ...]`).
    """
    parts: list[str] = []
    place, known = document, document is not None
    for number, part in enumerate(loc):
        try:
            place = place[part]
        except (KeyError, IndexError, TypeError):
            is_tag = isinstance(part, str) and not part.isidentifier()
            if known and isinstance(place, dict | list | tuple | str | int | float | None):
                is_tag = not (missing and number == len(loc) - 1)
            if is_tag:
                continue
            place, known = None, False
        parts.append(str(part))
    return parts
