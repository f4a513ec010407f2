"""The registry: the versions of every adapter, and which one each model's `latest` shall be.

Register and eval change it as part of their commit; people promote and roll back. What is recorded
here is the truth: `MODEL:latest` in Ollama follows (`loco.serving`), and adapters/registry.yaml is
a readable copy.
"""

import json
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from loco.contracts.errors import Conflict, InvalidRequest, NotFound, VersionRefused
from loco.contracts.evaluation import Baseline, GateResult
from loco.contracts.serving import Check
from loco.contracts.stages import Stage
from loco.contracts.versions import Pointer, Version
from loco.grading.gate import refusal
from loco.ledger.connection import Connection
from loco.ledger.scripts import Scripts
from loco.ledger.views import hash_of, legible, pointer_view, readable, version_view

#: What a model's record in the registry says besides the entry that register wrote.
_ELSEWHERE = (
    *(
        "version",
        "promoted",
        "served_at",
        "past",
        "rolled_back",
        "gate",
        "scores",
        "events",
        "missing",
    ),
)


class Registry:
    """The versions of one Redis namespace. Every method raises `RedisUnavailable`."""

    def __init__(self, connection: Connection, scripts: Scripts, *, namespace: str) -> None:
        self._connection = connection
        self._run = scripts.run
        self._namespace = namespace

    # Reading

    def adapters(self) -> list[str]:
        """Adapters that ever had a version, by name."""
        with self._connection.client() as client:
            return sorted(client.hkeys(self._key("version-count")))

    def highest(self) -> dict[str, int]:
        """Adapter to the highest number it ever gave a version, which may be deleted."""
        with self._connection.client() as client:
            stored = client.hgetall(self._key("version-count"))
        return {adapter: int(number) for adapter, number in sorted(stored.items())}

    def version(self, adapter: str, number: int) -> Version:
        """One version.

        Raises:
            NotFound: the adapter has no such version.
            UnreadableRecord: it has, but its record cannot be read.
        """
        stored, view = self._stored(adapter, [str(number)])
        if not stored:
            raise NotFound(
                f"Adapter {adapter} has no version {number}.",
                param="version",
                hint=f"`loco versions {adapter}` lists them.",
            )
        with readable(f"{adapter} version", str(number)):
            return view(*stored[0])

    def versions(
        self, adapter: str, *, after: int | None = None, limit: int = 20, model: str | None = None
    ) -> tuple[list[Version], bool]:
        """A page of an adapter's versions, newest first, and whether there are more.

        One whose record cannot be read is left out.

        Args:
            adapter: its name; one that never registered anything has none.
            after: number of the last version of the page before.
            limit: versions on a page, at least 1.
            model: only those of this model in Ollama.
        """
        below = "+inf" if after is None else f"({after}"
        found: list[Version] = []
        while len(found) <= limit:
            with self._connection.client() as client:
                numbers = client.zrevrangebyscore(
                    self._key("versions", adapter),
                    below,
                    "-inf",
                    start=0,
                    num=limit + 1,
                    withscores=True,
                )
            if not numbers:
                break
            stored, view = self._stored(adapter, [number for number, _ in numbers])
            page = legible(f"{adapter} version", stored, view)
            found += [v for v in page if model is None or v.model == model]
            below = f"({numbers[-1][1]!r}"
        return found[:limit], len(found) > limit

    def of_job(self, adapter: str, job_id: str) -> Version | None:
        """The version a job registered, if it did."""
        with self._connection.client() as client:
            number = client.hget(self._key("versions", adapter, "jobs"), job_id)
        return self.version(adapter, int(number)) if number else None

    def promoted(self, model: str) -> Pointer | None:
        """What a model's `latest` shall be; None: nothing was ever promoted."""
        with self._connection.client() as client:
            fields = client.hgetall(self._key("promoted", model))
        with readable("promotions of model", model):
            return pointer_view(model, fields) if fields else None

    def pointers(self, adapter: str | None = None) -> list[Pointer]:
        """What every model, or every model of an adapter, points to; by model."""
        with self._connection.client() as client:
            models = sorted(client.smembers(self._key("models")))
            pipeline = client.pipeline(transaction=False)
            for model in models:
                pipeline.hgetall(self._key("promoted", model))
            answers = pipeline.execute(raise_on_error=False)
        stored = [(model, fields) for model, fields in zip(models, answers, strict=True) if fields]
        found = legible("promotions of model", stored, lambda m, f: pointer_view(m, hash_of(f)))
        return [p for p in found if adapter is None or p.adapter == adapter]

    def before(self, model: str) -> int | None:
        """The version that was promoted before the present one; None: there is none."""
        with self._connection.client() as client:
            number = client.lindex(self._key("promoted", model, "past"), -1)
        return int(number) if number else None

    # People

    def promote(self, adapter: str, number: int, *, by: str, reason: str, force: bool) -> bool:
        """Has a model's `latest` be this version from now on.

        Args:
            adapter: whose version.
            number: which.
            by: name of the API key, or `local`.
            reason: why, for the audit trail; may be empty.
            force: promote also what the gate refused.

        Returns:
            False when it was promoted already.

        Raises:
            NotFound: no such version.
            VersionRefused: the gate refused it; the message says why.
            Conflict: the model's name belongs to another adapter.
        """
        answer = self._run("promote", adapter, str(number), "1" if force else "0", by, reason)
        if answer == "missing":
            self.version(adapter, number)
        if answer == "refused":
            gate = self.version(adapter, number).gate
            why = " ".join(gate.reasons) if gate else ""
            raise VersionRefused(
                f"The gate refused version {number} of {adapter}: {why}",
                param="version",
                hint="Promote it anyway with `force` (`loco promote --force`), or choose "
                f"another version: `loco versions {adapter}`.",
            )
        if answer == "foreign":
            model = self.version(adapter, number).model
            raise Conflict(
                f"{model}:latest belongs to another adapter.",
                param="version",
                hint=f"Give {adapter} its own model_name and build it again.",
            )
        return str(answer) == "promoted"

    def rollback(self, adapter: str, model: str, to: int, *, by: str, reason: str) -> None:
        """Has a model's `latest` be what was promoted before the present version.

        The gate never promotes again by itself what was rolled back.

        Args:
            adapter: whose model.
            model: its name in Ollama.
            to: the version, as `before` named it.
            by: name of the API key, or `local`.
            reason: why, for the audit trail; may be empty.

        Raises:
            Conflict: something was promoted or rolled back meanwhile.
        """
        nonce = uuid.uuid4().hex
        if self._run("rollback", model, adapter, str(to), by, reason, nonce) != "ok":
            raise Conflict(
                f"Another version of {model} was promoted in the meantime.",
                hint=f"Look at `loco versions {adapter}` and try again.",
            )

    def restored(
        self,
        adapter: str,
        number: int,
        digest: str | None,
        *,
        candidate: str,
        by: str,
        reason: str = "",
    ) -> None:
        """A version's candidate was made again in Ollama.

        Args:
            adapter: whose version.
            number: which.
            digest: of what was made; None: nothing came of it for the version.
            candidate: its name in Ollama. Where the version was deleted meanwhile, it goes.
            by: name of the API key, or `local`.
            reason: what has changed, for the audit trail.

        Raises:
            NotFound: the version was deleted meanwhile.
        """
        told = (candidate, digest or "", by, reason)
        if not self._run("restored", adapter, str(number), *told):
            raise NotFound(
                f"Version {number} of {adapter} was deleted while its model was made again.",
                param="version",
                hint=f"The workers take {candidate} out of Ollama. "
                f"`loco versions {adapter}` lists what is left.",
            )

    # Ollama follows

    def undeployed(self) -> list[str]:
        """Models whose `latest` does not follow yet and is due for a try."""
        with self._connection.client() as client:
            seconds, microseconds = client.time()
            now = int(seconds) * 1000 + int(microseconds) // 1000
            return list(client.zrangebyscore(self._key("undeployed"), "-inf", now))

    def deploy(self, model: str, nonce: str, *, patience: float) -> str:
        """Asks to be the one who has a model's `latest` follow.

        Args:
            model: its name in Ollama.
            nonce: who asks.
            patience: seconds it may take; then somebody else may.

        Returns:
            `yours`, `busy` (somebody is at it) or `none` (nothing to follow).
        """
        return str(self._run("deploy", model, nonce, round(patience * 1000)))

    def deployed(
        self,
        model: str,
        nonce: str,
        *,
        serial: int | Literal["withdrawn"] | None,
        digest: str = "",
        pause: float,
    ) -> bool:
        """Says what came of it.

        Args:
            model: its name in Ollama.
            nonce: who was at it.
            serial: of the pointer that was followed; `withdrawn`: `latest` was taken away, because
                nothing is promoted any more; None: it failed.
            digest: what `latest` was seen to be.
            pause: seconds before it is tried (or, after a deployer that vanished, checked) again.

        Returns:
            False when it failed, or what was copied is not promoted any more: try again.
        """
        number = "" if serial is None else str(serial)
        answer = self._run("deployed", model, nonce, number, digest, round(pause * 1000))
        return str(answer) == "ok"

    # The readable copy

    def untouched(self) -> bool:
        """Whether nothing was ever registered here."""
        with self._connection.client() as client:
            return not client.exists(self._key("registry"))

    def take_over(
        self, history: Mapping[str, Iterable[Version]], highest: Mapping[str, int] | None = None
    ) -> int:
        """Takes versions of an earlier release over, once, into an empty registry.

        Args:
            history: adapter to its versions.
            highest: adapter to the highest number it ever gave; none: that of its versions.

        Returns:
            How many; 0 when anything was ever registered here.
        """
        rows: list[str] = [json.dumps(dict(highest or {}))]
        for adapter, versions in history.items():
            for version in sorted(versions, key=lambda v: v.version):
                entry = version.model_dump(mode="json", exclude=set(_ELSEWHERE))
                rows += [adapter, str(version.version), version.job, version.model]
                rows += [version.candidate, version.digest, json.dumps(entry)]
                rows += [version.gate.model_dump_json() if version.gate else ""]
                rows += [json.dumps(version.scores) if version.scores is not None else ""]
                rows += ["1" if version.promoted else "", "1" if version.rolled_back else ""]
                rows += [json.dumps(version.past), json.dumps(_events(version))]
        return int(self._run("import", *rows))

    def unexported(self) -> int | None:
        """The count of changes the readable copy lacks; None: it lacks none."""
        with self._connection.client() as client:
            changes, exported = client.hmget(self._key("registry"), "changes", "exported")
        return int(changes) if changes and changes != exported else None

    def exported(self, changes: int) -> None:
        """Says that the readable copy holds the first so many changes."""
        with self._connection.client() as client:
            client.hset(self._key("registry"), "exported", changes)

    def _stored(
        self, adapter: str, wanted: list[str]
    ) -> tuple[list[tuple[str, Any]], Callable[[str, Any], Version]]:
        """What is stored under numbers, where there is anything, in that order; and how it is read."""
        with self._connection.client() as client:
            pipeline = client.pipeline(transaction=True)
            for number in wanted:
                pipeline.hgetall(self._key("version", adapter, number))
                pipeline.lrange(self._key("version", adapter, number, "events"), 0, -1)
            answers = pipeline.execute(raise_on_error=False)
        rows = zip(wanted, zip(answers[::2], answers[1::2], strict=True), strict=True)
        pointers = {p.model: p for p in self.pointers(adapter)}
        with self._connection.client() as client:
            past = {m: client.lrange(self._key("promoted", m, "past"), 0, -1) for m in pointers}

        def view(number: str, stored: tuple[Any, Any]) -> Version:
            fields, events = map(hash_of, stored)
            model = fields["model"]
            return version_view(
                int(number), fields, events, pointers.get(model), past.get(model, ())
            )

        return [row for row in rows if row[1][0]], view

    def _key(self, *parts: str) -> str:
        return ":".join((self._namespace, *parts))


def change_of(stage: Stage, result: Mapping[str, Any]) -> list[str]:
    """What a stage's result changes in the registry, as arguments of commit.lua.

    A result of another release, without version or gate, changes nothing or no promotion.
    """
    if stage is Stage.REGISTER and isinstance(result.get("version"), dict):
        version = Version.model_validate(result["version"])
        entry = version.model_dump(mode="json", exclude=set(_ELSEWHERE))
        checks = [Check.model_validate(c, extra="ignore") for c in result.get("checks") or ()]
        refused = refusal(checks)
        return [
            *("registered", version.job, version.model),
            *(version.candidate, version.digest, json.dumps(entry)),
            *((refused.model_dump_json(), _why(refused)) if refused else ("", "")),
        ]
    if stage is Stage.EVAL and isinstance(result.get("candidate"), str):
        builder = result["candidate"].partition(":")[2]
        gate, verdict, compared, why = "", "", "", ""
        if result.get("gate"):
            decided = GateResult.model_validate(result["gate"], extra="ignore")
            gate, verdict = decided.model_dump_json(), decided.verdict.value
            compared = str(decided.compared_version or "")
            why = _why(decided)
        scores = json.dumps(scores_of(result.get("comparisons", ())))
        return ["measured", builder, verdict, compared, why, gate, scores]
    return [""]


def _why(decided: GateResult) -> str:
    return f"{decided.verdict}: {' '.join(decided.reasons)}"


def scores_of(comparisons: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Set to its comparison with the base; what else it was compared with is in `others`."""
    scores: dict[str, Any] = {}
    for comparison in comparisons:
        told = {name: value for name, value in comparison.items() if name != "set"}
        against = comparison.get("against", Baseline.BASE.value)
        entry = scores.setdefault(comparison["set"], {})
        if against == Baseline.BASE:
            entry |= told
        else:
            entry.setdefault("others", {})[against] = told
    return scores


def _events(version: Version) -> list[str]:
    """Its audit trail as the ledger keeps it."""
    return [
        json.dumps(
            {
                **event.model_dump(mode="json", exclude_none=True),
                "at": str(round(event.at.timestamp() * 1000)),
            }
        )
        for event in version.events
    ]


def rollback_target(registry: Registry, adapter: str, model: str) -> int:
    """The version a rollback of a model goes to.

    Raises:
        InvalidRequest: nothing of this adapter is promoted under that name.
        Conflict: nothing was promoted before the present version.
    """
    pointer = registry.promoted(model)
    if pointer is None or pointer.adapter != adapter:
        raise InvalidRequest(
            f"No version of {adapter} is promoted as {model}.",
            param="model",
            hint=f"`loco versions {adapter}` lists the versions.",
        )
    before = registry.before(model)
    if before is None:
        raise Conflict(
            f"No version was promoted as {model} before version {pointer.version}.",
            param="model",
            hint=f"Promote another version by hand: `loco versions {adapter}` lists them.",
        )
    return before
