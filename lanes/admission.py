"""Who gets the next slot of a group.

Lanes that could start something stand in a ring per priority class; within a class they take turns. Between classes the
oldest run that each could start competes with the instant it was submitted plus its class's handicap, and the earliest
wins: urgent work goes first, but work that has waited longer than the difference of handicaps goes before it, so
nothing starves. It is the oldest of the class that counts, not the one whose lane has its turn: else a lane that is
always full of young work would hold its whole class back.

Runs of the other classes together never hold more than `slots - reserve`. It is how many they hold that counts, not how
many are free: else foreground that fills every slot would starve them for ever.

A run that waits for another one lends its slot to anyone. When it goes on it takes the next free slot, before everybody
who has not started: it is older than they are, and holds a turn that others wait for. If it is cut short instead, it
goes on at once without a slot, and takes the next free one.

`docs/lanes.md` derives from this how long a run waits at most.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Collection
from itertools import count

import anyio

from .checks import Priority
from .execution import Execution
from .lane import Lane
from .spec import GroupSpec
from .tally import Tally

HANDICAP_S = {Priority.FOREGROUND: 0.0, Priority.NORMAL: 1.0, Priority.BACKGROUND: 5.0}


class Group:
    """The slots of one group.

    Invariants: after `offer` a lane is in the ring of class `p` exactly when the run that it could start is of class
    `p`; `running` counts the executions with `has_slot`, and `others` those of them that are not foreground.
    """

    __slots__ = ("_ages", "_order", "_returning", "_rings", "others", "running", "spec", "tally")

    def __init__(self, spec: GroupSpec) -> None:
        self.spec = spec
        self.running = 0
        self.others = 0
        self.tally = Tally()
        self._rings: dict[Priority, OrderedDict[Lane, None]] = {p: OrderedDict() for p in Priority}
        self._ages: dict[Priority, list[tuple[float, int, Lane]]] = {p: [] for p in Priority}
        """A heap of when the runs that lanes could start were submitted; entries that a lane has left are stale."""
        self._returning: OrderedDict[Execution, anyio.Event | None] = OrderedDict()
        """Runs that have waited for another one, and go on when they have a slot again."""
        self._order = count()

    def __repr__(self) -> str:
        return f"<Group {self.spec.name}: {self.running} of {self.spec.slots} slots taken>"

    def offer(self, lane: Lane) -> None:
        """Note what a lane could start; to be called whenever that may have changed."""
        execution = lane.next()
        if lane.ring is not None and (execution is None or lane.ring is not execution.urgency):
            del self._rings[lane.ring][lane]
            self._left(lane)
        if execution is None:
            return
        at = execution.run.enqueued_at
        if lane.ring is None:
            lane.ring = execution.urgency
            self._rings[lane.ring][lane] = None
        elif lane.ring_at == at:
            return
        lane.ring_at = at
        heapq.heappush(self._ages[lane.ring], (at, next(self._order), lane))

    def admit(self, barred: Collection[Priority] = ()) -> tuple[Lane, Execution] | None:
        """Take a slot and a place for whoever is next; `None` when nobody may start now.

        Args:
            barred: classes that may not start anything now.
        """
        urgency = self.next_class(barred)
        if urgency is None:
            return None
        lane, _ = self._rings[urgency].popitem(last=False)
        self._left(lane)
        execution = lane.take()
        self.take(execution)
        self.offer(lane)
        return lane, execution

    def _left(self, lane: Lane) -> None:
        """Note that a lane is no longer in its ring; what the heap still says of it must not keep it for long."""
        assert lane.ring is not None
        ring, heap = self._rings[lane.ring], self._ages[lane.ring]
        lane.ring = None
        if not ring:
            heap.clear()
        elif len(heap) > 64 + 2 * len(ring):
            heap[:] = [entry for entry in heap if entry[2] in ring and entry[2].ring_at == entry[0]]
            heapq.heapify(heap)

    def next_class(self, barred: Collection[Priority] = ()) -> Priority | None:
        """The class of who would start next; `None` when nobody could."""
        best: Priority | None = None
        best_at = 0.0
        for urgency, ring in self._rings.items():
            if ring and urgency not in barred and self.has_slot(urgency):
                at = self._oldest(urgency) + HANDICAP_S[urgency]
                if best is None or at < best_at:
                    best, best_at = urgency, at
        return best

    def _oldest(self, urgency: Priority) -> float:
        """When the oldest run of a class that could start was submitted."""
        heap = self._ages[urgency]
        while heap[0][2].ring is not urgency or heap[0][2].ring_at != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0]

    def take(self, execution: Execution) -> None:
        """Note that an execution holds a slot."""
        execution.has_slot = True
        self.running += 1
        self.others += execution.urgency is not Priority.FOREGROUND

    def give_back(self, execution: Execution) -> None:
        """Free the slot of an execution, if it has one, or its claim on one."""
        if not execution.has_slot:
            self._returning.pop(execution, None)
            return
        execution.has_slot = False
        self.running -= 1
        self.others -= execution.urgency is not Priority.FOREGROUND
        assert 0 <= self.others <= self.running, "a slot was given back twice"

    def take_again(self, execution: Execution, *, waits: bool) -> anyio.Event | None:
        """Take a slot for a run that goes on after it had lent its own.

        Args:
            waits: whether the run goes on only when it has one.

        Returns:
            What it has to wait for; `None` when it may go on.
        """
        self._returning[execution] = event = anyio.Event() if waits else None
        self.let_return()
        return None if execution.has_slot else event

    def let_return(self) -> None:
        """Give free slots to runs that go on, in order."""
        for execution, event in list(self._returning.items()):
            if self.has_slot(execution.urgency):
                del self._returning[execution]
                self.take(execution)
                if event is not None:
                    event.set()

    def has_slot(self, urgency: Priority) -> bool:
        """Whether one of that class may take a slot now."""
        if self.running >= self.spec.slots:
            return False
        return urgency is Priority.FOREGROUND or self.others < self.spec.slots - self.spec.reserve

    def would_start(self, urgency: Priority) -> bool:
        """Whether one more of that class would start at once: there is a slot, and nobody waits for one."""
        return self.has_slot(urgency) and not self.has_work

    @property
    def has_work(self) -> bool:
        """Whether anybody could go on or start if there were slots."""
        foreground, normal, background = self._rings.values()
        return bool(foreground or normal or background or self._returning)

    @property
    def returning(self) -> int:
        """How many wait to go on."""
        return len(self._returning)
