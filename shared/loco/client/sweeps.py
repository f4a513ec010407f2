"""The client's calls about sweeps: several trainings of one adapter, of which the best goes on."""

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from loco.client.http import Transport, path_of, understood
from loco.contracts.errors import LocoError
from loco.contracts.sweeps import RankBy, Sweep, SweepSummary

#: Seconds between two looks at a sweep that is waited for.
POLL = 1.0


class SweepMethods:
    """What a client can do with sweeps."""

    _transport: Transport
    _patience: float

    def submit_sweep(
        self,
        adapter: str,
        grid: Mapping[str, Sequence[Any]],
        *,
        profile: str = "default",
        seeds: int = 1,
        rank_by: RankBy | str = RankBy.VALIDATION_LOSS,
        export_best: bool = True,
        early_stop: bool = True,
        idempotency_key: str | None = None,
        **overrides: Any,
    ) -> Sweep:
        """Asks for one prepare, a training for each combination, and a job that goes on with the best.

        Args:
            adapter: name of the adapter.
            grid: field of train to its values, e.g. `{"train.learning_rate": [1e-4, 2e-4]}`.
            profile: profile of its recipe.
            seeds: trains each combination with so many seeds.
            rank_by: the loss that decides, `validation_loss` or `train_loss`.
            export_best: export, register and measure the best.
            early_stop: stop a training that is worse than the median of the others.
            idempotency_key: the same key returns the same sweep; none: a fresh one.
            overrides: as for `Client.submit`, `stages` and `from_job` apart.
        """
        body = {
            "adapter": adapter,
            "profile": profile,
            "seeds": seeds,
            "rank_by": str(rank_by),
            "grid": {field: list(values) for field, values in grid.items()},
            "export_best": export_best,
            "early_stop": early_stop,
            **overrides,
        }
        answer = self._transport.request(
            "POST",
            "/sweeps",
            body=body,
            headers={"Idempotency-Key": idempotency_key or uuid.uuid4().hex},
            repeatable=True,
        )
        return understood(Sweep, answer)

    def sweep(self, sweep_id: str) -> Sweep:
        """A sweep as it is now, with its points."""
        return understood(Sweep, self._transport.get(path_of("sweeps", sweep_id)))

    def sweeps(self, *, page_size: int = 50) -> Iterator[SweepSummary]:
        """The sweeps, newest first, without their points; pages are fetched as they are needed."""
        after: str | None = None
        while True:
            page = self._transport.get("/sweeps", after=after, limit=page_size)
            found = [understood(SweepSummary, entry) for entry in page["data"]]
            yield from found
            if not page["has_more"] or not found:
                return
            after = found[-1].id

    def cancel_sweep(self, sweep_id: str) -> Sweep:
        """Cancels all jobs of a sweep. An ended sweep stays as it is."""
        path = f"{path_of('sweeps', sweep_id)}/cancel"
        return understood(Sweep, self._transport.request("POST", path, repeatable=True))

    def wait_sweep(
        self,
        sweep_id: str,
        timeout: float | None = None,
        on_look: Callable[[Sweep], object] | None = None,
    ) -> Sweep:
        """The sweep once it has ended, however it ended. Survives a restart of the server.

        Args:
            sweep_id: the sweep.
            timeout: seconds; none: as long as it takes.
            on_look: called with the sweep at every look, about once a second.

        Raises:
            TimeoutError: it has not ended within `timeout`; it continues.
        """
        started = heard = time.monotonic()
        while True:
            try:
                sweep = self.sweep(sweep_id)
            except LocoError as error:
                if not error.retryable or time.monotonic() - heard > self._patience:
                    raise
            else:
                heard = time.monotonic()
                if on_look is not None:
                    on_look(sweep)
                if sweep.is_terminal:
                    return sweep
            if timeout is not None and time.monotonic() - started >= timeout:
                raise TimeoutError(f"Sweep {sweep_id} has not ended within {timeout} s.")
            time.sleep(POLL)
