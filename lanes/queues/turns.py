"""The queue of each session among the runs of this process: in order of arrival, on whichever lane."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from itertools import chain
from typing import Generic

from ..checks import Priority
from .waiter import W


class _Queue(Generic[W]):
    """The run that conducts a session, then the runs that wait for it.

    Invariant: `waiting[p]` counts the runs behind the front that were submitted with class `p`.
    """

    __slots__ = ("line", "order", "waiting")

    def __init__(self) -> None:
        self.order: OrderedDict[W, None] = OrderedDict()
        self.waiting = [0] * len(Priority)
        self.line: dict[W, tuple[W | None, Priority]] | None = None
        """What `Turns.place` returns for each run, since the order last changed."""


class Turns(Generic[W]):
    """A FIFO per session file. The run at its front may conduct it, or is about to; the others hold nothing.

    Invariant: a file has an entry exactly while an execution that conducts it is queued or running.
    """

    def __init__(self) -> None:
        self._by_file: dict[str, _Queue[W]] = {}

    def __len__(self) -> int:
        return len(self._by_file)

    def join(self, file: str, execution: W) -> bool:
        """Queue up for a session, last; returns whether it is at the front."""
        queue = self._by_file.get(file)
        if queue is None:
            queue = self._by_file[file] = _Queue()
        first = not queue.order
        queue.order[execution] = None
        queue.line = None
        if not first:
            queue.waiting[execution.given_urgency] += 1
        return first

    def join_next(self, file: str, execution: W) -> W | None:
        """Queue up before all waiting runs. Returns the run that was at the front and now has to wait, if there is one.

        A run that conducts the session, or is about to take its turn, stays at the front; and an answer goes behind
        older ones that go next.
        """
        queue = self._by_file.get(file)
        if queue is None or not queue.order:
            self.join(file, execution)
            return None
        order = list(queue.order)
        front = order[0]
        resets = [place for place, one in enumerate(order) if one.goes_first]
        place = resets[-1] + 1 if resets else 0 if front.is_queued() else 1
        while place < len(order) and 0 < order[place].answer_id < execution.answer_id:
            place += 1
        if place:
            self._insert(queue, execution, order[place - 1])
            return None
        queue.order[execution], queue.line = None, None
        queue.order.move_to_end(execution, last=False)
        queue.waiting[front.given_urgency] += 1
        return front

    def join_behind(self, file: str, ahead: W, execution: W) -> None:
        """Queue up right behind a run that is in the queue."""
        self._insert(self._by_file[file], execution, ahead)

    @staticmethod
    def _insert(queue: _Queue[W], execution: W, ahead: W) -> None:
        order = list(queue.order)
        behind = order.index(ahead) + 1
        for one in order[behind:]:
            del queue.order[one]
        queue.order |= dict.fromkeys([execution, *order[behind:]])
        queue.line = None
        queue.waiting[execution.given_urgency] += 1

    def leave(self, file: str, execution: W) -> W | None:
        """Leave the queue, from any place; returns the run that has come to the front by it."""
        queue = self._by_file.get(file)
        if queue is None or execution not in queue.order:
            return None  # an interrupt came before it had joined, or after it had left
        first = next(iter(queue.order)) is execution
        del queue.order[execution]
        queue.line = None
        if not first:
            queue.waiting[execution.given_urgency] -= 1
            return None
        if not queue.order:
            del self._by_file[file]
            return None
        front = next(iter(queue.order))
        queue.waiting[front.given_urgency] -= 1
        return front

    def replace(self, file: str, old: W, new: W) -> None:
        """Put the next attempt of a run in the place of the one at the front."""
        queue = self._by_file[file]
        order, queue.line = queue.order, None
        assert next(iter(order)) is old, "only the run that conducts a session is tried again"
        del order[old]
        order[new] = None
        order.move_to_end(new, last=False)

    def front(self, file: str) -> W | None:
        """The run that conducts a session, or will next."""
        queue = self._by_file.get(file)
        return next(iter(queue.order)) if queue is not None else None

    def next_after(self, file: str, execution: W) -> W | None:
        """The run that comes to the front of a session when a run leaves that is there."""
        queue = self._by_file.get(file)
        if queue is None or len(queue.order) < 2:
            return None
        order = iter(queue.order)
        return next(order) if next(order) is execution else None

    def place(self, file: str, execution: W) -> tuple[W | None, Priority]:
        """The run right before a run in its session, `None` at the front; and the class that it will have at the front.

        Asked of all runs of a session, it takes time in proportion to their number.
        """
        queue = self._by_file[file]
        if queue.line is None:
            urgency, urgencies = Priority.BACKGROUND, list[Priority]()
            for one in reversed(queue.order):
                urgency = min(urgency, one.given_urgency)
                urgencies.append(urgency)
            before = chain((None,), queue.order)
            queue.line = dict(zip(queue.order, zip(before, reversed(urgencies), strict=False), strict=True))
        return queue.line[execution]

    def last(self, file: str) -> W | None:
        """The run that came last of those that conduct a session or wait for it."""
        queue = self._by_file.get(file)
        return next(reversed(queue.order)) if queue is not None else None

    def most_urgent(self, file: str) -> Priority:
        """The class of the most urgent run at a session's front or behind it: the front goes on with that."""
        queue = self._by_file[file]
        front = next(iter(queue.order))
        if len(queue.order) == 1:
            return front.given_urgency
        waiting = next((p for p in Priority if queue.waiting[p]), Priority.BACKGROUND)
        return min(front.given_urgency, waiting)

    def of(self, file: str) -> Iterator[W]:
        """The runs that conduct a session or wait for it, in order."""
        queue = self._by_file.get(file)
        return iter(list(queue.order)) if queue is not None else iter(())

    def waiting(self) -> dict[str, int]:
        """The number of runs behind the front, by session file."""
        return {file: len(queue.order) - 1 for file, queue in self._by_file.items()}
