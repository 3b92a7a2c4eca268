"""Runs that are over: their outcomes, the keys of `dedupe`, and failed runs that are parked (`parking` parks them)."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from locks import _effects
from locks._events import log

from ..message import Message
from ..run import Run, RunState
from ..spec import DedupeKeeps
from .execution import execution_of

DedupeKey = tuple[str, str | None, str]
"""Lane, session, and the sender's own key."""


class Said(NamedTuple):
    """What was sent under a key."""

    run: Run
    """The run that answers it."""
    digest: bytes
    """Of the message's body, which must not live as long."""


@dataclass(frozen=True, slots=True)
class Parked:
    """A run that failed in its last attempt, kept until it is submitted again or forgotten, with all that takes."""

    run: Run
    """The run, with its outcome."""
    messages: tuple[Message, ...]
    """What was to be answered; empty for work that was no message."""
    parked_at: float
    """When it was parked (`time.monotonic`)."""
    again: Callable[[], Run] = field(repr=False)
    """Submits its work as a new run; unless that is refused, this one is parked no longer."""


class History:
    """The last finished runs, by id.

    Invariant: a dedupe key is in `_known` while its run is live or among the finished ones that are kept, unless a
    newer run has it by then; `_keys` has the keys of each run in `_known`.
    """

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._finished: dict[int, Run] = {}
        self._order: deque[int] = deque()
        """Their ids, oldest first: a plain dictionary is slow to find its first entry when many before it are gone."""
        self._known: dict[DedupeKey, Said] = {}
        self._keys: dict[int, list[DedupeKey]] = {}
        self.parked: OrderedDict[int, Parked] = OrderedDict()

    def add(self, run: Run) -> None:
        """Keep a finished run; beyond the limit the oldest are dropped."""
        self._finished[run.id] = run
        self._order.append(run.id)
        if len(self._order) > self._keep:
            gone = self._order.popleft()
            _effects.release(self._finished.pop(gone))
            for key in self._keys.pop(gone, ()):
                del self._known[key]

    def latest(self, at_most: int) -> list[Run]:
        """The finished runs that are kept, the latest first."""
        return [self._finished[one] for one in islice(reversed(self._order), at_most)]

    def find(self, run_id: int) -> Run | None:
        """A finished run that is still kept."""
        found = self._finished.get(run_id)
        if found is None and (parked := self.parked.get(run_id)) is not None:
            return parked.run
        return found

    def known(self, key: DedupeKey, keeps: DedupeKeeps) -> Said | None:
        """What was sent under this key before, if its run counts."""
        said = self._known.get(key)
        if said is None or keeps == "ended" or _stands(said.run) or self._is_parked(said.run):
            return said
        return None

    def _is_parked(self, run: Run) -> bool:
        """Whether a run, or the run that has read its message, is parked."""
        return run.id in self.parked or run.answered_by in self.parked

    def know(self, key: DedupeKey, said: Said) -> None:
        """Keep what was sent under a key for the next message with this key; what was sent before it is forgotten."""
        run = said.run
        if run.outcome is not None and run.id not in self._finished:
            return  # it ended as it was submitted, and is forgotten already: nothing would ever take the key away
        older = self._known.get(key)
        if older is not None:
            keys = self._keys[older.run.id]
            keys.remove(key)
            if not keys:
                del self._keys[older.run.id]
        self._known[key] = said
        self._keys.setdefault(run.id, []).append(key)

    def park(self, parked: Parked) -> None:
        """Keep a failed run. As many are kept as finished ones; beyond that the oldest are dropped."""
        self.parked[parked.run.id] = parked
        while len(self.parked) > max(self._keep, 1):
            gone, forgotten = self.parked.popitem(last=False)
            _effects.release(forgotten)
            log("parked_run_forgotten", level="warning", run=gone, kept=self._keep)

    def forget_parked(self, run_id: int) -> None:
        """Keep a parked run no longer."""
        _effects.release(self.parked.pop(run_id, None))

    def resubmitted(self, run_id: int, run: Run) -> None:
        """Keep a parked run no longer, since a new run does its work, and takes its dedupe keys over."""
        self.forget_parked(run_id)
        for key, said in list(self._known.items()):
            if run_id in (said.run.id, said.run.answered_by):  # repeated, the message must not be answered twice
                self.know(key, said._replace(run=run))


def _stands(run: Run) -> bool:
    """Whether a run is done, or may still come to be: it waits, runs, or will be tried again or parked."""
    if run.outcome is not None:
        return run.outcome.state is RunState.DONE
    execution = execution_of(run)
    if execution is None:
        return True
    if execution.steered_into is not None and run.state is RunState.RUNNING:
        execution = execution.steered_into  # whose outcome it shares
    if execution.cause is None:
        return True
    retry = execution.spec.retry
    return retry is not None and retry.timeouts and execution.cause[0] is RunState.TIMED_OUT
