"""Waits that can never end: found before they begin.

A task that waits for a right waits for *all* blocks that share it to be left, each by the task that runs it. So the
waits are a graph of "and" edges, from a task to the tasks of the holder, and a ring of them is a deadlock: whoever
would close it is refused. Deadlines and wait budgets would end it too, but only by failing, later, and for somebody
else.

Tasks wait for other things as well, which others know: a scheduler knows which run awaits which. Whoever knows puts a
`WaitSource` into `WaitGraph.elsewhere`, and rings are found through any mixture of the two kinds.

Not seen: a block whose task waits for something that nobody tells of, such as a child task. Deadlines bound that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from .claim import Claim
from .errors import DeadlockError
from .holder import Holder

WaitSource = Callable[[Any], Iterable[object]]
"""Says for which tasks a task waits by other means than a right: for all of them, and none of them has ended.

Asked on the event loop's thread before a wait for a right begins. It must not raise.
"""


class _Step(NamedTuple):
    """One wait in a ring. The task that is waited for waits in the next step; that of the last one asked."""

    task: object
    claim: Claim | None
    """What it waits for; `None` where it waits for the other task itself."""
    held: Claim | None
    """What stands in its way."""
    other: object
    """The task without which that is not given back."""


class WaitGraph:
    """Which task waits for which claim, in one registry. Changed on the event loop's thread only.

    Invariant: a task is in it exactly while it waits in `Arbiter.acquire`.

    Args:
        elsewhere: what tells of all other waits; whoever has it may change it at any time.
    """

    def __init__(self, elsewhere: list[WaitSource]) -> None:
        self.elsewhere = elsewhere
        self._waits: dict[object, Claim] = {}

    def __len__(self) -> int:
        return len(self._waits)

    def begin(self, task: object, claim: Claim) -> None:
        """Note that a task is about to wait.

        Raises:
            DeadlockError: what it waits for is held by somebody who, over any number of steps, waits for it. Nothing
                was noted.
        """
        ring = self._ring(task, claim)
        if ring is not None:
            chain = _chain(ring, claim, self._waits)
            raise DeadlockError(
                f"waiting for {claim.path} would never end: {_told(ring, chain)}", path=claim.path, chain=chain
            )
        self._waits[task] = claim

    def end(self, task: object) -> None:
        """The task waits no more."""
        self._waits.pop(task, None)

    def in_the_way(self, task: object) -> tuple[Claim, Claim] | None:
        """What a task waits for, and what holds it in this process; `None` when there is nothing like that."""
        claim = self._waits.get(task)
        held = _holder_of(claim) if claim is not None else None
        return (claim, held) if claim is not None and held is not None else None

    def _ring(self, task: object, claim: Claim) -> list[_Step] | None:
        """The ring that would close, from the one who asks back to itself."""
        led_by: dict[object, _Step] = {}
        todo = [task]
        while todo:
            one = todo.pop()
            for step in self._steps(one, claim if one is task else self._waits.get(one)):
                if step.other is task:
                    return _back(step, task, led_by)
                if step.other not in led_by:
                    led_by[step.other] = step
                    todo.append(step.other)
        return None

    def _steps(self, task: object, claim: Claim | None) -> Iterator[_Step]:
        """All that a task waits for, of either kind."""
        held = _holder_of(claim) if claim is not None else None
        if held is not None:
            for owner in tasks_of(held):
                yield _Step(task, claim, held, owner)
        for source in self.elsewhere:
            for other in source(task):
                yield _Step(task, None, None, other)


def tasks_of(claim: Claim) -> tuple[object, ...]:
    """The tasks without which a claim is not given back."""
    if claim.fence is not None and len(claim.tasks) < claim.handles and claim.fence.task is not None:
        return (*claim.tasks, claim.fence.task)  # the scheduler's own, given back when the body ends
    return claim.tasks


def _holder_of(waiting: Claim) -> Claim | None:
    """Who in this process has to give back what a claim waits for, if somebody does."""
    if not waiting.waits() or waiting.queue is None:
        return None  # granted already; its task has not run since
    holder = waiting.queue.holder
    if holder is None or holder.lost is not None or holder.revoke_pending is not None:
        return None  # another process has it, or it is just being passed on, whatever the holder's tasks wait for
    return holder


def _back(last: _Step, task: object, led_by: dict[object, _Step]) -> list[_Step]:
    """The steps from `task` to the last one, in order."""
    ring = [last]
    while ring[-1].task is not task:
        ring.append(led_by[ring[-1].task])
    return ring[::-1]


def _chain(ring: list[_Step], asked: Claim, waits: dict[object, Claim]) -> tuple[tuple[Holder, str, Holder], ...]:
    """The ring by names: each is called as what it waits for or holds in the ring says, else as its task."""
    chain = []
    waiter = asked.holder
    for step in ring:
        if step.claim is not None and step.held is not None:
            waiter, path, other = step.claim.holder, step.claim.path, step.held.holder
        else:
            path, other = "", asked.holder if step is ring[-1] else _name(step.other, waits)
        chain.append((waiter, path, other))
        waiter = other
    return tuple(chain)


def _name(task: object, waits: dict[object, Claim]) -> Holder:
    """Who a task is that is waited for itself: as what it waits for is called, else by its own name."""
    claim = waits.get(task)
    if claim is not None:
        return claim.holder
    name = getattr(task, "name", None) or getattr(task, "get_name", lambda: None)()
    return Holder(task=name if isinstance(name, str) else "")


def _told(ring: list[_Step], chain: tuple[tuple[Holder, str, Holder], ...]) -> str:
    """The ring in words. Tasks may all have one name, so each is told by the epoch of what it holds in the ring."""
    steps = []
    own = _epoch(ring[-1].held)
    for step, (waiter, path, other) in zip(ring, chain, strict=True):
        its = _epoch(step.held)
        steps.append(f"{waiter}{own} waits for " + (f"{path}, which {other}{its} holds" if path else str(other)))
        own = its
    return "; ".join(steps)


def _epoch(held: Claim | None) -> str:
    return "" if held is None else f" [epoch {held.epoch}]"
