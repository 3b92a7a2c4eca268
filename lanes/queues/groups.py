"""The next run for a slot of a group.

Lanes that could start something stand in a ring per priority class; within a class they take turns. A class is *due*
when the oldest run that it could start was submitted longer ago than the class's handicap; foreground always is. Of the
due classes each gets a share of the slots, so no class starves another, however much work it has. When none is due,
the most urgent class goes first.

The shares are kept by stride scheduling: a class that is given a slot moves on by its stride, and the class that is
least far goes next. A class that could take nothing for a while (nothing to do, or no slot that is not reserved) stays
where it is, and so goes next when it can; then it catches up with the others: it must not get their share for all that
time. The oldest run of a class makes it due, not the run whose lane has its turn: else a lane that is always full of
young work would hold its whole class back. Rejected: the longest waiting run of all goes first, after handicaps. Then a
backlog of background work, once it is old, goes before every user's new message, to its end.

Runs of the other classes together never hold more than `slots - reserve`. What counts is how many they hold, not how
many are free: else foreground that fills every slot would starve them for ever.

A run that waits for another run lends its slot to any run. When the other run has ended, it takes the next free slot,
before all runs that have not started: it is older than they are, and holds a turn that others wait for. If it is cut
short instead, it goes on at once without a slot, and takes the next free slot.

`docs/lanes.md` derives from this how long a run waits at most.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Collection
from itertools import count
from typing import Generic

import anyio

from locks import _clock

from ..checks import Priority
from ..spec import GroupSpec
from .lane import Lane
from .totals import Tally
from .waiter import W

HANDICAP_S = {Priority.FOREGROUND: 0.0, Priority.NORMAL: 1.0, Priority.BACKGROUND: 5.0}
"""Seconds that a class leaves the slots to more urgent ones."""
STRIDE = {Priority.FOREGROUND: 1, Priority.NORMAL: 2, Priority.BACKGROUND: 3}
"""How far a slot takes a class: of eleven slots that all three want, they get six, three and two."""


class Group(Generic[W]):
    """The slots of one group.

    Invariants: after `offer` a lane is in the ring of class `p` exactly when the run that it could start is of class
    `p`; `holders` are the executions that have a slot, each with the class by which it took it.
    """

    __slots__ = ("_ages", "_got", "_order", "_passed", "_returning", "_rings", "holders", "others", "spec", "tally")

    def __init__(self, spec: GroupSpec) -> None:
        self.spec = spec
        self.holders: dict[W, Priority] = {}
        self.others = 0
        """The number of holders that have taken their slots as another class than foreground."""
        self.tally = Tally()
        self._rings: dict[Priority, OrderedDict[Lane[W], None]] = {p: OrderedDict() for p in Priority}
        self._ages: dict[Priority, list[tuple[float, int, Lane[W]]]] = {p: [] for p in Priority}
        """A heap of when the runs that lanes could start were submitted; entries that a lane has left are stale."""
        self._returning: OrderedDict[W, anyio.Event | None] = OrderedDict()
        """Runs that have waited for another run and take a slot again; with what their bodies wait for, while they do.
        A body that goes on without its slot stays here, and waits for nothing."""
        self._order = count()
        self._got = dict.fromkeys(Priority, 0)
        """How far each class has come."""
        self._passed = 0
        """How far the class was that got the last slot."""

    def __repr__(self) -> str:
        return f"<Group {self.spec.name}: {self.running} of {self.spec.slots} slots taken>"

    @property
    def running(self) -> int:
        """How many slots are taken."""
        return len(self.holders)

    def offer(self, lane: Lane[W]) -> None:
        """Note what a lane could start; to be called whenever that may have changed."""
        execution = lane.next()
        if lane.ring is not None and (execution is None or lane.ring is not execution.urgency):
            self._rings[lane.ring].pop(lane, None)  # an interrupt may have come between the ring and the lane
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

    def admit(self, barred: Collection[Priority] = ()) -> tuple[Lane[W], W] | None:
        """Take a slot and a place for the next run; `None` when no run may start now.

        Args:
            barred: classes that may not start anything now.
        """
        if self._returning:
            self.let_return()
        urgency = self.next_class(barred)
        if urgency is None:
            return None
        self._passed = max(self._passed, self._got[urgency])
        self._got[urgency] = self._passed + STRIDE[urgency]
        lane, _ = self._rings[urgency].popitem(last=False)
        self._left(lane)
        execution = lane.take()
        self.take(execution)
        self.offer(lane)
        return lane, execution

    def _left(self, lane: Lane[W]) -> None:
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
        """The class of the run that would start next; `None` when no run could."""
        able = [p for p, ring in self._rings.items() if ring and p not in barred and self.has_slot(p)]
        if len(able) < 2:
            return able[0] if able else None
        now = _clock.clock.now()
        due = [p for p in able if p is Priority.FOREGROUND or self._oldest(p) + HANDICAP_S[p] <= now]
        return min(due, key=self._got.__getitem__) if due else able[0]

    def _oldest(self, urgency: Priority) -> float:
        """When the oldest run of a class that could start was submitted."""
        heap = self._ages[urgency]
        while heap[0][2].ring is not urgency or heap[0][2].ring_at != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0]

    def take(self, execution: W) -> None:
        """Note that an execution holds a slot."""
        # The class is kept here: an execution's own may change while it holds the slot.
        self.holders[execution] = execution.urgency
        self.others += execution.urgency is not Priority.FOREGROUND

    def give_back(self, execution: W) -> None:
        """Free the slot of an execution, or its claim on a slot; no effect without either."""
        if execution not in self.holders:
            event = self._returning.pop(execution, None)
            if event is not None:
                event.set()  # its run has ended without it; a body that still waits must not do so for ever
            return
        self.others -= self.holders.pop(execution) is not Priority.FOREGROUND

    def take_again(self, execution: W) -> None:
        """Take a slot for a run that goes on after it had lent its own: now, or when the next slot is free."""
        execution.want_slot()
        self._returning[execution] = None
        self.let_return()

    def let_return(self) -> None:
        """Give free slots to runs that go on, in order."""
        for execution, event in list(self._returning.items()):
            if self.has_slot(execution.urgency):
                del self._returning[execution]
                self.take(execution)
                execution.has_slot_again()
                if event is not None:
                    event.set()

    def turn_of(self, execution: W) -> anyio.Event | None:
        """What a run that goes on has to wait for; `None` when it need not."""
        if execution not in self._returning:
            return None
        event = self._returning[execution]
        if event is None:
            event = self._returning[execution] = anyio.Event()
        return event

    def waits_no_more(self, execution: W) -> None:
        """Note that a run goes on, with a slot or without; without a slot, it still takes the next free one."""
        if execution in self._returning:
            self._returning[execution] = None

    def keeps_waiting(self, execution: W) -> bool:
        """Whether a run that goes on waits for its slot: exactly while its body does."""
        return self._returning.get(execution) is not None

    def has_slot(self, urgency: Priority) -> bool:
        """Whether a run of that class may take a slot now."""
        if len(self.holders) >= self.spec.slots:
            return False
        return urgency is Priority.FOREGROUND or self.others < self.spec.slots - self.spec.reserve

    def would_start(self, urgency: Priority) -> bool:
        """Whether a new run of that class would start at once: a slot is free, and no run waits for one."""
        return self.has_slot(urgency) and not self.has_work

    @property
    def has_work(self) -> bool:
        """Whether a run could go on or start if there were slots."""
        foreground, normal, background = self._rings.values()
        return bool(foreground or normal or background or self._returning)

    @property
    def returning(self) -> int:
        """How many wait to go on."""
        return len(self._returning)
