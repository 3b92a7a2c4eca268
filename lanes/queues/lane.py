"""A lane: a FIFO of runs with a capacity."""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from operator import attrgetter
from typing import Generic

from ..checks import Priority
from ..spec import LaneSpec
from .totals import Tally
from .waiter import W

_SUBMITTED = attrgetter("run.enqueued_at")


class Lane(Generic[W]):
    """The queue of a lane, and the runs on it.

    Invariants: an execution is in `queued` from being submitted until it starts or ends, first come first; in `running`
    from its start until it ends or is abandoned. A ready run needs nothing but a place and a slot: then `queued` has
    its rank, and `ready` an entry with that rank. Other entries are stale.
    """

    __slots__ = (
        "_came_back",
        "_latest",
        "joined",
        "name",
        "queued",
        "ready",
        "retires",
        "ring",
        "ring_at",
        "running",
        "spec",
        "tally",
        "urgency",
    )

    def __init__(self, name: str, spec: LaneSpec) -> None:
        self.name = name
        self.spec = spec
        self.retires = spec.wild
        """Whether the scheduler forgets it when it is idle."""
        self.urgency: Priority = spec.urgency
        self.queued: OrderedDict[W, int | None] = OrderedDict()
        self._came_back: set[W] = set()
        """Those of `queued` that may be older than others before them: the others stand in the order of their age."""
        self._latest = -math.inf
        """When the youngest was submitted that has been in the queue."""
        self.joined = 0
        """Messages that joined a queued run, over all of `queued`: they count for the queue's limit too."""
        self.ready: list[tuple[int, W]] = []
        self.running: dict[W, None] = {}
        self.ring: Priority | None = None
        """The class in whose ring of lanes that could start something the group has it."""
        self.ring_at = 0.0
        """When the run that it could start was submitted, as the ring knows it."""
        self.tally = Tally()

    def __repr__(self) -> str:
        return f"<Lane {self.name}: {len(self.running)} of {self.spec.capacity} running, {len(self.queued)} queued>"

    def respec(self, spec: LaneSpec) -> None:
        """Go on with other limits. Work that it has keeps those it was submitted under."""
        self.spec, self.retires, self.urgency = spec, spec.wild, spec.urgency

    @property
    def idle(self) -> bool:
        """Whether nothing runs or waits on it."""
        return not self.queued and not self.running

    @property
    def waiting(self) -> int:
        """How much of the queue's limit is used."""
        return len(self.queued) + self.joined

    def enqueue(self, execution: W) -> None:
        """Put a run into the queue, last."""
        self.queued[execution] = None
        self.joined += execution.joined
        if execution.run.enqueued_at >= self._latest:
            self._latest = execution.run.enqueued_at
        else:
            self._came_back.add(execution)

    def enqueue_first(self, execution: W) -> None:
        """Put a run into the queue before all others."""
        self.enqueue(execution)
        self.queued.move_to_end(execution, last=False)
        self._came_back.add(execution)

    def oldest(self) -> W | None:
        """The run in the queue that was submitted first. Looks at those alone that came back to the queue."""
        first = next((one for one in self.queued if one not in self._came_back), None)
        return min(self._came_back if first is None else (first, *self._came_back), key=_SUBMITTED, default=None)

    def make_ready(self, execution: W) -> None:
        """Queue a run for a place: by age, so that a run that had to wait for another process does not wait twice."""
        if self.queued[execution] != execution.rank:
            self.queued[execution] = execution.rank
            heapq.heappush(self.ready, (execution.rank, execution))

    def make_unready(self, execution: W) -> None:
        """Note that a run waits for something else than a place and a slot after all."""
        self.queued[execution] = None
        self._drop_stale()

    def _drop_stale(self) -> None:
        if len(self.ready) > 64 + 2 * len(self.queued):  # else a full lane would collect cancelled runs for ever
            self.ready = [entry for entry in self.ready if self._is_valid(entry)]
            heapq.heapify(self.ready)

    def forget(self, execution: W) -> None:
        """Remove a run that has ended or leaves to be tried again, wherever it stands."""
        if execution in self.running:
            del self.running[execution]
        elif execution in self.queued:
            self._leave(execution)
            self._drop_stale()

    def next(self) -> W | None:
        """The run that would start next; `None` when no run is ready or the lane is full."""
        if len(self.running) >= self.spec.capacity:
            return None
        ready = self.ready
        while ready:
            if self._is_valid(ready[0]):
                return ready[0][1]
            heapq.heappop(ready)
        return None

    def least_urgent_before(self, rank: int) -> Priority:
        """The class of the least urgent ready run that starts before a run of that rank."""
        least, look_at = Priority.FOREGROUND, [0]
        while look_at:
            at = look_at.pop()
            if at < len(self.ready) and self.ready[at][0] < rank:  # else no run below it in the heap goes before
                if self._is_valid(self.ready[at]):
                    least = max(least, self.ready[at][1].urgency)
                look_at += (2 * at + 1, 2 * at + 2)
        return least

    def take(self) -> W:
        """Move the run that `next` returns to the running ones."""
        execution = heapq.heappop(self.ready)[1]
        self._leave(execution)
        self.running[execution] = None
        return execution

    def put_back(self, execution: W) -> None:
        """Undo `take`: it has to wait for something else after all."""
        del self.running[execution]
        self.enqueue_first(execution)

    def _leave(self, execution: W) -> None:
        del self.queued[execution]
        self.joined -= execution.joined
        if self._came_back:
            self._came_back.discard(execution)

    def is_ready(self, execution: W) -> bool:
        """Whether a run needs nothing but a place and a slot."""
        return self.queued.get(execution) is not None

    def _is_valid(self, entry: tuple[int, W]) -> bool:
        rank, execution = entry
        return self.queued.get(execution) == rank
