"""The client's calls about versions: what was registered, and what serves of it."""

from collections.abc import Iterator
from typing import Any

from loco.client.http import Transport, path_of, understood
from loco.contracts.removals import VersionRemoval
from loco.contracts.versions import Pointer, Restored, Version

#: Seconds: a copy in Ollama waits for others; a GGUF of several gigabytes is uploaded.
_COPY_SECONDS = 180.0
_UPLOAD_SECONDS = 3600.0


class VersionMethods:
    """What a client can do with registered versions."""

    _transport: Transport

    def versions(
        self,
        adapter: str,
        *,
        model: str | None = None,
        after: int | None = None,
        page_size: int = 50,
    ) -> Iterator[Version]:
        """An adapter's versions, newest first; pages are fetched as they are needed.

        Args:
            adapter: its name.
            model: only those of this model in Ollama.
            after: only those older than this version.
            page_size: versions a page, at most 100.
        """
        path = f"{path_of('adapters', adapter)}/versions"
        while True:
            page = self._transport.get(path, after=after, limit=page_size, model=model)
            found = [_version(entry) for entry in page["data"]]
            yield from found
            if not page["has_more"] or not found:
                return
            after = found[-1].version

    def promoted(self, adapter: str | None = None) -> list[Pointer]:
        """What each model's `latest` shall be, by model; also of adapters whose recipe is gone.

        Args:
            adapter: only its models; none: those of all.
        """
        page = self._transport.get("/promoted", adapter=adapter)
        return [understood(Pointer, entry) for entry in page["data"]]

    def promote(
        self, adapter: str, version: int, *, force: bool = False, reason: str = ""
    ) -> Version:
        """Has a version serve as `MODEL:latest`; returns once it was seen to.

        Args:
            adapter: its name.
            version: number of the version.
            force: promote also what the gate refused.
            reason: why, for the audit trail.

        Raises:
            VersionRefused: the gate refused it; `force` overrules that.
            CandidateMissing: Ollama does not hold it any more; `restore` makes it again.
        """
        body = {"version": version, "force": force, "reason": reason}
        return _version(self._change(adapter, "promote", body, repeatable=True))

    def rollback(self, adapter: str, *, model: str | None = None, reason: str = "") -> Version:
        """Has what was promoted before serve again; returns the version that serves now.

        Args:
            adapter: its name.
            model: which of its models; none: the recipe's, or the only one promoted.
            reason: why, for the audit trail.

        Raises:
            Conflict: nothing was promoted before.
        """
        body = {"model": model, "reason": reason}
        return _version(self._change(adapter, "rollback", body, repeatable=False))

    def restore(self, adapter: str, version: int, *, anew: bool = False) -> Restored:
        """Makes a version's model again in an Ollama that lacks it, from its GGUF.

        Args:
            adapter: its name.
            version: number of the version.
            anew: make it also where Ollama has it.

        Raises:
            RegistrationFailed: what Ollama made of it is not what was registered; it does not serve.
        """
        path = f"versions/{version}/restore"
        answer = self._change(adapter, path, {"anew": anew}, repeatable=True)
        return understood(Restored, answer)

    def remove_version(self, adapter: str, version: int, *, force: bool = False) -> VersionRemoval:
        """Deletes a version and takes its model out of Ollama; its job and files stay.

        Args:
            adapter: its name.
            version: number of the version.
            force: delete it also where it serves; takes an admin key.

        Raises:
            Conflict: it serves, or a job works on it or compares with it; the message says which.
        """
        answer = self._transport.request(
            "DELETE",
            f"{path_of('adapters', adapter)}/versions/{version}",
            params={"force": True if force else None},
            repeatable=True,
            read_timeout=_COPY_SECONDS,
        )
        return understood(VersionRemoval, answer)

    def _change(self, adapter: str, path: str, body: dict[str, Any], *, repeatable: bool) -> Any:
        """Asks for a change of an adapter's versions, and waits for Ollama."""
        return self._transport.request(
            "POST",
            f"{path_of('adapters', adapter)}/{path}",
            body=body,
            repeatable=repeatable,
            read_timeout=_UPLOAD_SECONDS if path.endswith("restore") else _COPY_SECONDS,
        )


def _version(answer: Any) -> Version:
    return understood(Version, answer)
