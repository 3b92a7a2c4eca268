"""Waits that can never end: found before they begin.

A task that waits for a right waits for *all* blocks that share it to be left, each by the task that runs it. So the
waits are a graph of "and" edges, from a task to the tasks of the holder, and a ring of them is a deadlock: whoever
would close it is refused. Deadlines and wait budgets would end it too, but only by failing, later, and for somebody
else.

Not seen: a block whose task waits for something that is no right, such as a child task. Deadlines bound that.
"""

from __future__ import annotations

from .claim import Claim
from .errors import DeadlockError

_Ring = tuple[tuple[Claim, Claim], ...]
"""Steps: what is waited for, and what holds it. A holder's task waits in the next step; the last one's task asked."""


class WaitGraph:
    """Which task waits for which claim, in one registry. Changed on the event loop's thread only.

    Invariant: a task is in it exactly while it waits in `Arbiter.acquire`.
    """

    def __init__(self) -> None:
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
            chain = tuple((waiting.holder, waiting.path, held.holder) for waiting, held in ring)
            raise DeadlockError(
                f"waiting for {claim.path} would never end: {_told(ring)}", path=claim.path, chain=chain
            )
        self._waits[task] = claim

    def end(self, task: object) -> None:
        """The task waits no more."""
        self._waits.pop(task, None)

    def _ring(self, task: object, claim: Claim) -> _Ring | None:
        """The ring that would close, from the one who asks back to itself."""
        todo: list[tuple[Claim, _Ring]] = [(claim, ())]
        seen = {claim}
        while todo:
            waiting, so_far = todo.pop()
            holder = waiting.queue.holder if waiting.queue is not None else None
            if holder is None or holder.lost is not None or holder.revoke_pending is not None:
                continue  # another process has it, or it is just being passed on, whatever the holder's tasks wait for
            ring = (*so_far, (waiting, holder))
            for owner in _tasks_of(holder):
                if owner is task:
                    return ring
                further = self._waits.get(owner)
                if further is not None and further not in seen and further.waits():
                    seen.add(further)
                    todo.append((further, ring))
        return None


def _told(ring: _Ring) -> str:
    """The ring in words. Tasks may all have one name, so each is told by the epoch of what it holds in the ring."""
    held_by_waiter = [ring[-1][1], *(held for _, held in ring[:-1])]
    return "; ".join(
        f"{waiting.holder} [epoch {own.epoch}] waits for {waiting.path}, which {held.holder} [epoch {held.epoch}] holds"
        for own, (waiting, held) in zip(held_by_waiter, ring, strict=True)
    )


def _tasks_of(claim: Claim) -> tuple[object, ...]:
    """The tasks without which a claim is not given back."""
    if claim.fence is not None and len(claim.tasks) < claim.handles and claim.fence.task is not None:
        return (*claim.tasks, claim.fence.task)  # the scheduler's own, given back when the body ends
    return claim.tasks
