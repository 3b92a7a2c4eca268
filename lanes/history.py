"""Runs that are over: what is still known of them, who was told the same run twice, and what waits to be looked at."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from locks import _effects
from locks._events import log

from .message import Message
from .run import Run

DedupeKey = tuple[str, str | None, str]
"""Lane, session, and the sender's own key."""


@dataclass(frozen=True, slots=True)
class Parked:
    """A run that failed in its last attempt, kept until somebody decides. It holds what it takes to submit it again."""

    run: Run
    """The run, with its outcome."""
    messages: tuple[Message, ...]
    """What was to be answered; empty for work that was no message."""
    parked_at: float
    """When it was parked (`time.monotonic`)."""
    again: Callable[[], Run] = field(repr=False)
    """Submits it anew, as a run of its own; it is parked no more, unless that is refused."""


class History:
    """The last finished runs, by id.

    Invariant: a dedupe key is known while its run is live or among the finished ones that are kept.
    """

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._finished: dict[int, Run] = {}
        self._order: deque[int] = deque()
        """Their ids, oldest first: a plain dictionary is slow to find its first entry when many before it are gone."""
        self._known: dict[DedupeKey, Run] = {}
        self._keys: dict[int, list[DedupeKey]] = {}
        self.parked: OrderedDict[int, Parked] = OrderedDict()

    def add(self, run: Run) -> None:
        """Keep a finished run; the oldest ones go."""
        self._finished[run.id] = run
        self._order.append(run.id)
        if len(self._order) > self._keep:
            gone = self._order.popleft()
            _effects.release(self._finished.pop(gone))
            for key in self._keys.pop(gone, ()):
                self._known.pop(key, None)

    def find(self, run_id: int) -> Run | None:
        """A finished run that is still kept."""
        found = self._finished.get(run_id)
        if found is None and (parked := self.parked.get(run_id)) is not None:
            return parked.run
        return found

    def known(self, key: DedupeKey) -> Run | None:
        """The run that this key was given to."""
        return self._known.get(key)

    def know(self, key: DedupeKey, run: Run) -> None:
        """Give the same run to whoever comes with this key again."""
        if run.outcome is not None and run.id not in self._finished:
            return  # it ended as it was submitted, and is forgotten already: nothing would ever take the key away
        self._known[key] = run
        self._keys.setdefault(run.id, []).append(key)

    def park(self, parked: Parked) -> None:
        """Keep a run for somebody to decide; as many as finished ones, and the oldest go."""
        self.parked[parked.run.id] = parked
        while len(self.parked) > max(self._keep, 1):
            gone, forgotten = self.parked.popitem(last=False)
            _effects.release(forgotten)
            log("parked_run_forgotten", level="warning", run=gone, kept=self._keep)

    def forget_parked(self, run_id: int) -> None:
        """Keep a parked run no longer."""
        _effects.release(self.parked.pop(run_id, None))
