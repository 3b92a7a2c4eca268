"""What the harness remembers, to be compared with the files afterwards: acknowledgements, outcomes, recoveries."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

from lanes import Run, RunState
from lanes.errors import RunAbandonedAfterTimeout


def fingerprint(record: Mapping[str, Any]) -> bytes:
    """What two records have in common exactly when they are equal as JSON."""
    return hashlib.blake2b(json.dumps(record, sort_keys=True).encode("utf-8", "surrogatepass"), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A record that the library has promised to keep."""

    path: str
    fingerprint: bytes


class Ledger:
    """The harness's own books. Filled from the event loop's thread; `acknowledge` from worker threads too.

    Invariant: every run that began or ended went through the two hooks, so `posted` minus `told` are the messages whose
    senders still wait.
    """

    def __init__(self) -> None:
        self.instance = os.urandom(4).hex()
        """Tells this process's records from those of others and of earlier starts on the same directory."""
        self.acknowledged: dict[str, Acknowledged] = {}
        self.dead_writes = 0
        """Records that were accepted from a run after its end. Must stay 0."""
        self.posted = 0
        self.told: Counter[str] = Counter()
        """Messages by what became of them: answered, timed_out, failed."""
        self.states: Counter[str] = Counter()
        self.waits_s: list[float] = []
        self.recoveries_s: list[float] = []
        self.on_change: Callable[[], object] | None = None
        self.on_end: Callable[[Run], object] | None = None
        self._numbers = count(1)
        self._overdue: dict[str, float] = {}
        self._last_turn: dict[str, tuple[int, float, float]] = {}

    def new_id(self) -> str:
        """An id for a record, unlike any other on this disk."""
        return f"{self.instance}-{next(self._numbers)}"

    def acknowledge(self, record: Mapping[str, Any], path: str) -> None:
        """Note that an append has returned."""
        self.acknowledged[record["id"]] = Acknowledged(os.path.realpath(path), fingerprint(record))

    def refused(self) -> None:
        """Note a message that was not even accepted; its sender was told by the exception."""
        self.posted += 1
        self.told["failed"] += 1
        self.states["refused"] += 1

    def run_started(self, run: Run) -> None:
        """The hook `on_run_start`."""
        if run.session is not None and run.turn:
            assert run.started_at is not None
            self._last_turn[run.session] = (run.id, run.enqueued_at, run.started_at)
            if (deadline := self._overdue.pop(run.session, None)) is not None:
                self._recovered(run.session, deadline)
        self._changed()

    def run_ended(self, run: Run) -> None:
        """The hook `on_run_end`."""
        outcome = run.outcome
        assert outcome is not None
        overdue = outcome.state is RunState.TIMED_OUT or isinstance(outcome.error, RunAbandonedAfterTimeout)
        if outcome.state is RunState.DONE:
            self.told["answered"] += 1
        else:
            self.told["timed_out" if overdue else "failed"] += 1
        self.states[outcome.state.value] += 1
        self.waits_s.append(outcome.waited_s)
        if overdue and run.turn and run.session is not None and run.started_at is not None and run.deadline is not None:
            # The successor may have begun already: a run lets go of its session before its end is told.
            if self._last_turn[run.session][0] == run.id:
                self._overdue[run.session] = run.deadline
            else:
                self._recovered(run.session, run.deadline)
        if self.on_end is not None:
            self.on_end(run)
        self._changed()

    def _recovered(self, session: str, deadline: float) -> None:
        """The session's next turn has begun; it counts when it was waiting already."""
        _, enqueued_at, started_at = self._last_turn[session]
        if enqueued_at <= deadline:
            self.recoveries_s.append(started_at - deadline)

    def _changed(self) -> None:
        if self.on_change is not None:
            self.on_change()
