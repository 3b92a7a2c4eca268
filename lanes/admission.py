"""Who gets the next slot of a group.

Lanes that could start something stand in a ring per priority class; within a class they take turns. Between classes the
front of each ring competes with the instant it was submitted plus its class's handicap, and the earliest wins: urgent
work goes first, but work that has waited longer than the difference of handicaps goes before it, so nothing starves.
Runs of the other classes together never hold more than `slots - reserve`. It is how many they hold that counts, not how
many are free: else foreground that fills every slot would starve them for ever.
"""

from __future__ import annotations

from collections import deque

from .execution import Execution
from .lane import Lane
from .spec import GroupSpec, Priority

HANDICAP_S = {Priority.FOREGROUND: 0.0, Priority.NORMAL: 1.0, Priority.BACKGROUND: 5.0}


class Group:
    """The slots of one group.

    Invariants: a lane with a ready run and a free place is in exactly one ring; `running` counts the executions that
    hold a slot, which are those in `Lane.running` of its lanes, and `others` those of them that are not foreground.
    """

    __slots__ = ("_rings", "others", "running", "spec")

    def __init__(self, spec: GroupSpec) -> None:
        self.spec = spec
        self.running = 0
        self.others = 0
        self._rings: dict[Priority, deque[Lane]] = {p: deque() for p in Priority}

    def __repr__(self) -> str:
        return f"<Group {self.spec.name}: {self.running} of {self.spec.slots} slots taken>"

    def offer(self, lane: Lane) -> None:
        """Put a lane into the ring of the class that its next run is of, if it could start one."""
        execution = lane.next()
        if execution is None or lane.ring is execution.urgency:
            return
        if lane.ring is not None:  # its next run is another one than when it came into the ring
            self._rings[lane.ring].remove(lane)
        lane.ring = execution.urgency
        self._rings[execution.urgency].append(lane)

    def admit(self) -> tuple[Lane, Execution] | None:
        """Take a slot and a place for whoever is next; `None` when nobody may start now."""
        ring = self._next_ring()
        if ring is None:
            return None
        lane = ring.popleft()
        lane.ring = None
        execution = lane.take()
        self.running += 1
        self.others += execution.urgency is not Priority.FOREGROUND
        self.offer(lane)
        return lane, execution

    def give_back(self, execution: Execution) -> None:
        """Free the slot of an execution."""
        self.running -= 1
        self.others -= execution.urgency is not Priority.FOREGROUND
        assert 0 <= self.others <= self.running, "a slot was given back twice"

    def has_slot(self, urgency: Priority) -> bool:
        """Whether one of that class may take a slot now."""
        if self.running >= self.spec.slots:
            return False
        return urgency is Priority.FOREGROUND or self.others < self.spec.slots - self.spec.reserve

    def would_start(self, urgency: Priority) -> bool:
        """Whether one more of that class would start at once: there is a slot, and nobody waits for one."""
        return self.has_slot(urgency) and self._next_ring() is None

    def _next_ring(self) -> deque[Lane] | None:
        """The ring whose front goes next; the fronts of all rings are lanes that could start a run of that class."""
        if not any(self._rings.values()):
            return None
        for urgency, ring in self._rings.items():
            if ring:
                self._put_right(urgency, ring)  # all of them first: a lane may move to one that was looked at before
        best: deque[Lane] | None = None
        best_at = float("inf")
        for urgency, ring in self._rings.items():
            if not ring or not self.has_slot(urgency):
                continue
            execution = ring[0].next()
            if execution is not None and (at := execution.run.enqueued_at + HANDICAP_S[urgency]) < best_at:
                best, best_at = ring, at
        return best

    def _put_right(self, urgency: Priority, ring: deque[Lane]) -> None:
        """See that the front of a ring could start a run of that class; others leave, or move to where they belong."""
        while ring:
            execution = ring[0].next()
            if execution is not None and execution.urgency is urgency:
                return
            lane = ring.popleft()
            lane.ring = None
            self.offer(lane)
