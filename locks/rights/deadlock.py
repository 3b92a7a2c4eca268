"""Waits that can never end: found before they begin.

A task that waits for a right waits for *all* blocks that share it to be left, each by the task that runs it. Tasks wait
for other things as well: a scheduler knows which run awaits which run, and puts a `WaitSource` into
`WaitGraph.elsewhere`. So the waits are a graph, in which some nodes need all that they wait for and some (`AnyOf`) any
of it. The search takes away the nodes that need nothing, then those that need only nodes taken away, and so on; the
nodes that are left never go on. A wait for a right is refused when it is left, and waits for itself over any number of
steps.

A wait that has a time limit of its own is over then, whatever it waits for: it is not refused, and another task
may wait for its task. That is a `wait_timeout`, or a cancel scope with a deadline around the wait, inside the run, or
inside the block that others wait for. The deadlines of runs and of leases count only once they have passed: they would
end a ring too, but by failing, later, and in another run.

Not seen: a block whose task waits for something that no source knows, such as a child task; and limits that are in no
cancel scope, such as `asyncio.timeout`. Deadlines bound those.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

from .. import _clock
from ..errors import DeadlockError
from ..holder import Holder
from .open_file import FileClaim, FileQueue

Chain = tuple[tuple[Holder, str, Holder], ...]


class AnyOf(NamedTuple):
    """Something that comes as soon as any of these has; at least one of them."""

    nodes: tuple[object, ...]


WaitSource = Callable[[Any], Iterable[object]]
"""Says for what a task waits by other means than a right: for all of that, and none of it has come yet.

It may name tasks, `AnyOf` several, or whatever else it knows, and is asked about in turn. It is asked on the event
loop's thread before a wait begins. It must not raise.
"""


def never_ending(asking: object, needs: Callable[[object], Iterable[object]]) -> dict[object, list[object]]:
    """All that something waits for, over any number of steps, and that can never come, with what it needs in turn.

    It has `asking` itself exactly when that can never go on.

    Args:
        needs: what a node needs, all of it; of an `AnyOf`, any of its nodes is enough.
    """
    needed: dict[object, list[object]] = {}
    todo = [asking]
    while todo:
        one = todo.pop()
        if one not in needed:
            needed[one] = list(one.nodes if isinstance(one, AnyOf) else needs(one))
            todo += needed[one]
    goes_on: set[object] = set()
    inside_out = list(reversed(needed.items()))  # so that one round is enough for a long queue
    found = True
    while found:
        found = False
        for one, wanted in inside_out:
            enough = any if isinstance(one, AnyOf) else all
            if one not in goes_on and enough(other in goes_on for other in wanted):
                goes_on.add(one)
                found = True
    return {one: wanted for one, wanted in needed.items() if one not in goes_on}


class _Step(NamedTuple):
    """One wait in a ring. The task that is waited for waits in the next step; that of the last one asked."""

    task: object
    claim: FileClaim | None
    """What it waits for; `None` where it waits for the other task itself."""
    held: FileClaim | None
    """What stands in its way."""
    other: object
    """The task without which that is not given back."""


class WaitGraph:
    """Which task waits for which claim, in one registry. Changed on the event loop's thread only.

    Invariant: a task is in it exactly while it waits in `Arbiter.acquire`.

    Args:
        elsewhere: what reports all other waits; its owner may change it at any time.
    """

    def __init__(self, elsewhere: list[WaitSource]) -> None:
        self.elsewhere = elsewhere
        self._waits: dict[object, FileClaim] = {}
        self._limits: dict[object, float] = {}
        """When a wait ends by itself, for those that do: the instant of a cancel scope around it, or minus infinity
        for a `wait_timeout`, which is inside of whatever the task holds."""

    def __len__(self) -> int:
        return len(self._waits)

    def begin(self, task: object, claim: FileClaim, limit: float = math.inf) -> None:
        """Note that a task is about to wait.

        Args:
            limit: see `_limits`.

        Raises:
            DeadlockError: the holder of what it waits for, over any number of steps, waits for it. Nothing
                was noted.
        """
        self._waits[task] = claim
        if limit < math.inf:
            self._limits[task] = limit
        ring = self._ring(task) if self._could_close(task, claim) else None
        if ring is not None:
            chain = _chain(ring, claim, self._waits)
            self.end(task)
            raise DeadlockError(
                f"waiting for {claim.path} would never end: {_told(ring, chain)}", path=claim.path, chain=chain
            )

    def end(self, task: object) -> None:
        """The task waits no more."""
        self._waits.pop(task, None)
        self._limits.pop(task, None)

    def _could_close(self, task: object, claim: FileClaim) -> bool:
        """Whether a task in the way waits as well: mostly none does, and then there is nothing to search."""
        held = _holder_of(claim)
        if held is None:
            return False
        for owner in tasks_of(held):
            waiting = self._waits.get(owner)
            if owner is task or (waiting is not None and waiting.waits()) or (self.elsewhere and self.waits(owner)):
                return True
        return False

    def waits(self, node: object) -> bool:
        """Whether anything is known of what a task, or whatever else the sources know, waits for."""
        claim = self._waits.get(node)
        if claim is not None and claim.waits():  # else it has been granted, and its task has not run since
            return True
        for source in self.elsewhere:
            for _ in source(node):
                return True
        return False

    def needs(self, node: object) -> Iterator[object]:
        """What a task, or whatever else the sources know, waits for: all of it."""
        yield from self.rights_of(node)
        for source in dict.fromkeys(self.elsewhere):  # once each: two supervisors may have put in the same one
            yield from source(node)

    def rights_of(self, task: object) -> Iterator[object]:
        """The tasks that have to go on before a task gets the right that it waits for here.

        Empty when it waits for none, another process has it, or a time limit of its own ends the wait.
        """
        claim = self._waits.get(task)
        held = _holder_of(claim) if claim is not None else None
        if claim is None or held is None:
            return
        if claim.fence is not None and self._limits.get(task, math.inf) < claim.fence.scope_ends:
            return  # the limit is inside its run
        yield from self.keepers(held)

    def keepers(self, held: FileClaim) -> Iterator[object]:
        """The tasks that have to go on before a claim is given back."""
        for owner in () if _was_told_to_end(held) else tasks_of(held):
            # Without a run, a scope around the whole block ends the wait only by ending the block.
            around = math.inf if held.scope_ends is None else held.scope_ends
            if held.fence is not None or self._limits.get(owner, math.inf) >= around:
                yield owner

    def _ring(self, task: object) -> list[_Step] | None:
        """The ring that has closed, from the task that asks back to itself; the shortest."""
        stuck = never_ending(task, self.needs)
        led_by: dict[object, object] = {}
        todo = deque([task])
        while todo and task in stuck:
            one = todo.popleft()
            for other in stuck[one]:
                if other is task:
                    return self._told_steps(_back(one, task, led_by))
                if other in stuck and other not in led_by:
                    led_by[other] = one
                    todo.append(other)
        return None

    def _told_steps(self, ring: list[object]) -> list[_Step]:
        """The waits from each task of a ring to the next one; what is no task has no name, and only leads on."""
        steps = list[_Step]()
        tasks = [ring[0], *(node for node in ring[1:] if name_of(node) is not None), ring[0]]
        for task, other in pairwise(tasks):
            claim = self._waits.get(task)
            held = _holder_of(claim) if claim is not None else None
            if held is not None and other in tasks_of(held):
                steps.append(_Step(task, claim, held, other))
            else:
                steps.append(_Step(task, None, None, other))
        return steps


def tasks_of(claim: FileClaim) -> tuple[object, ...]:
    """The tasks without which a claim is not given back."""
    if claim.fence is not None and len(claim.tasks) < claim.handles and claim.fence.task is not None:
        return (*claim.tasks, claim.fence.task)  # the scheduler's own, given back when the body ends
    return claim.tasks


def _holder_of(waiting: FileClaim) -> FileClaim | None:
    """The claim in this process that has to give back what a claim waits for, if there is one."""
    if not waiting.waits() or waiting.queue is None:
        return None  # granted already; its task has not run since
    return in_the_way(waiting.queue)


def in_the_way(queue: FileQueue) -> FileClaim | None:
    """The claim in this process that has to give back a right before another has it."""
    holder = queue.holder
    if holder is None or holder.lost is not None or holder.revoke_pending is not None:
        return None  # another process has it, or it is just being passed on, whatever the holder's tasks wait for
    return holder


def _was_told_to_end(held: FileClaim) -> bool:
    """Whether a claim is taken away within its grace, whatever its tasks wait for."""
    now = _clock.clock.now()
    return now >= held.time.deadline or (held.fence is not None and now >= held.fence.deadline)


def _back(last: object, first: object, led_by: dict[object, object]) -> list[object]:
    """The nodes from `first` to `last`, in order."""
    ring = [last]
    while ring[-1] is not first:
        ring.append(led_by[ring[-1]])
    return ring[::-1]


def _chain(ring: list[_Step], asked: FileClaim, waits: dict[object, FileClaim]) -> Chain:
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


def _name(task: object, waits: dict[object, FileClaim]) -> Holder:
    """The name of a task that is waited for: the name of what it waits for, else its own."""
    claim = waits.get(task)
    return claim.holder if claim is not None else Holder(task=name_of(task) or "")


def name_of(task: object) -> str | None:
    """The name of a task; `None` for what is none."""
    name = getattr(task, "name", None) or getattr(task, "get_name", lambda: None)()
    return name if isinstance(name, str) else None


def _told(ring: list[_Step], chain: Chain) -> str:
    """The ring in words. Tasks may all have one name, so each is named by the epoch of what it holds in the ring."""
    steps = []
    own = _epoch(ring[-1].held)
    for step, (waiter, path, other) in zip(ring, chain, strict=True):
        its = _epoch(step.held)
        steps.append(f"{waiter}{own} waits for " + (f"{path}, which {other}{its} holds" if path else str(other)))
        own = its
    return "; ".join(steps)


def _epoch(held: FileClaim | None) -> str:
    return "" if held is None else f" [epoch {held.epoch}]"
