"""What is proven of a served model: the checks so far, and what could not be checked."""

from dataclasses import dataclass, field
from typing import Any

from loco.contracts.serving import Check, ServedBase
from loco.contracts.versions import PromotedVersion


@dataclass(frozen=True)
class Subject:
    """What was sent to the server, and so what it has to serve."""

    #: `MODEL:JOB_ID`.
    model: str
    #: `sha256:…` of the uploaded GGUF, and its bytes.
    blob: str
    size: int
    system: str | None
    parameters: dict[str, Any]
    #: A prompt it must answer and stop; None: one of some questions of the job's rows, or a sum.
    probe: str | None
    #: The base in Ollama, as it is served there.
    base: str
    #: What the adapter in `blob` is put on; None: the blob is the whole model.
    served_base: ServedBase | None
    #: What serves under the same name, if something does.
    promoted: PromotedVersion | None


@dataclass
class Findings:
    """Checks by name, in the order they were made."""

    checks: list[Check] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def add(self, name: str, passed: bool, *, expected: str, seen: str, fix: str) -> None:
        """A check, with what to do where it failed."""
        self.checks.append(
            Check(
                name=name,
                passed=passed,
                expected=expected,
                seen=seen,
                fix=None if passed else fix,
            )
        )

    @property
    def failed(self) -> list[Check]:
        """What does not hold."""
        return [check for check in self.checks if not check.passed]
