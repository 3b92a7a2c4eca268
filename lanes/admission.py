"""Who gets the next slot of a group.

Lanes that could start something stand in a ring per priority class; within a class they take turns. Between classes the
front of each ring competes with the instant it was submitted plus its class's handicap, and the earliest wins: urgent
work goes first, but work that has waited longer than the difference of handicaps goes before it, so nothing starves.
The last `reserve` slots are for foreground runs only.
"""

from __future__ import annotations

from collections import deque

from .execution import Execution
from .lane import Lane
from .spec import GroupSpec, Priority

HANDICAP_S = {Priority.FOREGROUND: 0.0, Priority.NORMAL: 1.0, Priority.BACKGROUND: 5.0}


class Group:
    """The slots of one group.

    Invariant: a lane with a ready run and a free place is in exactly one ring; `running` counts the executions that
    hold a slot, which are those in `Lane.running` of its lanes.
    """

    __slots__ = ("_rings", "running", "spec")

    def __init__(self, spec: GroupSpec) -> None:
        self.spec = spec
        self.running = 0
        self._rings: dict[Priority, deque[Lane]] = {p: deque() for p in Priority}

    def __repr__(self) -> str:
        return f"<Group {self.spec.name}: {self.running} of {self.spec.slots} slots taken>"

    def offer(self, lane: Lane) -> None:
        """Put a lane into the ring if it could start something."""
        if not lane.in_ring and (execution := lane.next()) is not None:
            lane.in_ring = True
            self._rings[lane.class_of_next(execution)].append(lane)

    def admit(self) -> tuple[Lane, Execution] | None:
        """Take a slot and a place for whoever is next; `None` when nobody may start now."""
        while (ring := self._next_ring()) is not None:
            lane = ring.popleft()
            lane.in_ring = False
            if lane.next() is None:
                continue
            execution = lane.take()
            self.running += 1
            self.offer(lane)
            return lane, execution
        return None

    def give_back(self) -> None:
        """Free a slot."""
        self.running -= 1
        assert self.running >= 0, "a slot was given back twice"

    def _next_ring(self) -> deque[Lane] | None:
        free = self.spec.slots - self.running
        best: deque[Lane] | None = None
        best_at = float("inf")
        for cls, ring in self._rings.items():
            if not ring or free <= (0 if cls is Priority.FOREGROUND else self.spec.reserve):
                continue
            while ring:
                execution = ring[0].next()
                if execution is not None:
                    at = execution.run.enqueued_at + HANDICAP_S[cls]
                    if at < best_at:
                        best, best_at = ring, at
                    break
                ring.popleft().in_ring = False
        return best
