"""Deleting versions: out of the registry in one transition, then out of Ollama (`loco.serving`).

The look for jobs that work on a version happens outside Redis, as with jobs (`removals`): the script
checks that nothing was submitted, claimed or committed since.
"""

import json
from typing import Any

from loco.contracts.errors import Busy, Conflict
from loco.contracts.removals import VersionRemoval
from loco.contracts.versions import Version
from loco.ledger.at_work import AtWork, Look
from loco.ledger.connection import Connection
from loco.ledger.scripts import Scripts

#: A deletion may be repeated for so long (ms) after its answer was lost.
_REPEAT_MS = 600_000
_LOOKS = 5


class Withdrawals:
    """Deletes the versions of one Redis namespace."""

    def __init__(self, connection: Connection, scripts: Scripts, *, namespace: str) -> None:
        self._connection = connection
        self._run = scripts.run
        self._namespace = namespace

    def remove(
        self, adapter: str, version: Version, *, owner: str | None, digests: list[str], force: bool
    ) -> VersionRemoval:
        """Takes a version out of the registry; its number is never given again.

        Args:
            adapter: whose version.
            version: which.
            owner: of the job that built it, who may ask again.
            digests: of the model's versions. With the version that serves, `latest` is taken away
                where it is one of them, or what the ledger itself knows it may be.
            force: delete it also where it serves.

        Raises:
            Conflict: it serves, or a job works on it or compares with it; the message names that.
            Busy: jobs come so fast that nobody can tell.
        """
        removal = VersionRemoval(
            adapter=adapter,
            version=version.version,
            job=version.job,
            model=version.model,
            candidate=version.candidate,
        )
        answer = json.dumps({"owner": owner, "removal": removal.model_dump(mode="json")})
        for _ in range(_LOOKS):
            with self._connection.client() as client:
                counts = client.mget(*map(self._key, ("seq", "commits", "tokens")))
            if at_work := self._at_work(adapter, version):
                raise Conflict(
                    f"Version {version.version} of {adapter} cannot be deleted while job {at_work.job} "
                    f"{at_work.does} it.",
                    param="version",
                    hint=f"Wait until it ends, or end it: `loco cancel {at_work.job}`.",
                )
            told = self._run(
                "withdraw",
                adapter,
                str(version.version),
                "1" if force else "0",
                json.dumps(digests),
                *(str(count or "0") for count in counts),
                answer,
                _REPEAT_MS,
            )
            if told == "serves":
                raise _serves(adapter, version)
            if told != "changed":  # missing: somebody else was quicker
                return removal.model_copy(update={"stopped": told == "stopped"})
        raise Busy(
            "Jobs changed while the server searched for those that work on the version.",
            hint="Try again in a moment.",
        )

    def removed(self, adapter: str, number: int) -> tuple[str | None, VersionRemoval] | None:
        """The owner of a version that was deleted a few minutes ago, and what went."""
        with self._connection.client() as client:
            answer = client.get(self._key("removed-version", adapter, str(number)))
        if not answer:
            return None
        known = json.loads(answer)
        return known["owner"], VersionRemoval.model_validate(known["removal"], extra="ignore")

    # Ollama follows

    def candidates(self, *, due: bool = True) -> list[str]:
        """Names of deleted versions that Ollama may still have: those due for a try, or all."""
        with self._connection.client() as client:
            until: Any = "+inf"
            if due:
                seconds, microseconds = client.time()
                until = int(seconds) * 1000 + int(microseconds) // 1000
            return list(client.zrangebyscore(self._key("withdrawing"), "-inf", until))

    def put_off(self, candidate: str, *, pause: float) -> None:
        """Has a candidate that could not be taken out of Ollama be tried again later (seconds)."""
        with self._connection.client() as client:
            seconds, microseconds = client.time()
            due = int(seconds) * 1000 + int(microseconds) // 1000 + round(pause * 1000)
            client.zadd(self._key("withdrawing"), {candidate: due}, xx=True)

    def gone(self, candidate: str) -> None:
        """Says that Ollama has a candidate no more."""
        with self._connection.client() as client:
            client.zrem(self._key("withdrawing"), candidate)

    def latest_of(self, model: str) -> set[str]:
        """The digests that a model's `latest` is taken away with; empty: it stays."""
        with self._connection.client() as client:
            stored = client.hget(self._key("withdrawn"), model)
        return set(json.loads(stored)) if stored else set()

    def _at_work(self, adapter: str, version: Version) -> AtWork | None:
        with self._connection.client() as client:
            return Look(client, self._key).find(adapter, version)

    def _key(self, *parts: str) -> str:
        return ":".join((self._namespace, *parts))


def _serves(adapter: str, version: Version) -> Conflict:
    return Conflict(
        f"Version {version.version} of {adapter} serves as {version.model}:latest.",
        param="version",
        hint="Promote another version first (`loco promote`, `loco rollback`). Or delete it with "
        f"`loco rm {adapter} --version {version.version} --force`: then nothing serves under that "
        "name.",
    )
