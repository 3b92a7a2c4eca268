"""One request for a right, from asking to the end of holding."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from itertools import count
from typing import TYPE_CHECKING, Any, Self

from .. import _clock
from ..errors import LeaseLost, Revoked
from ..holder import Holder
from .fence import Fence
from .hold_time import HoldTime

if TYPE_CHECKING:
    import anyio

    from .._loop import Signal


_epochs = count(1)
"""Epochs rise over all files and registries of a process."""


class ClaimState(Enum):
    """Where a claim stands; it only moves downwards."""

    WAITING = "waiting"
    HELD = "held"
    LOST = "lost"
    OVER = "over"


WAITING, HELD, LOST, OVER = ClaimState
"""By short names: a member of an enumeration takes ten times as long to look up as a name of a module."""


class Claim:
    """What one run or task asked of one right of one file: it waits, holds, has lost it, or is over.

    A claim has no cancel scope: its owner has one, such as a scheduler (`Lease` adds one). The owner must give it back
    through `Arbiter.release`, in whatever state it is; that is synchronous and cannot be interrupted.

    Invariants: only the event loop's thread moves a claim to HELD or OVER; LOST may be set by any thread, inside the
    file's mutex; it is its queue's `holder` exactly while HELD, or LOST and not yet given back.
    """

    # A claim is made per acquisition. What hardly any claim needs has its default on the class; what each one is asked
    # for is set in `__init__`, because a default of the class takes several times as long to read.
    revoke_pending: LeaseLost | None = None
    """Set by a thread that could not have the mutex; the thread that has it finishes the revocation on leaving."""
    failed: Exception | None = None
    """Why a waiter cannot go on waiting."""
    makes_room = False
    """It is for deleting, so a full disk must not refuse it: it goes without what guards the right beside the lock."""
    path = ""
    """The name by which the file was asked for."""
    scope_ends: float | None = None
    """As `bound`, on the loop's clock, if it is known: a limit of its wait, and around the block."""
    waiter: object = None
    """The task that waits for it."""
    sleeping: anyio.CancelScope | None = None
    """What its task has entered in order to wait, and not left."""
    interrupted = False
    """Whether letting it in was broken off by an exception that has nothing to do with it."""
    given_up = False
    """Whether its owner has given it back, and an exception came in the middle: that is to be finished."""
    settled = False
    """Whether its block was cancelled after the loss, and the next claim let in."""
    on_lost: Callable[[LeaseLost], Any] | None = None
    """Called on the loop when the claim is lost, for an owner without a block."""

    def __init__(
        self,
        arrived_at: float,
        identity: object,
        fence: Fence | None,
        holder: Holder | None,
        max_hold: float,
        bound: float,
    ) -> None:
        self.arrived_at = arrived_at
        """When it asked; its place in the queue."""
        self.identity = identity
        """The fence of the run that asked, else the task. The same identity asking again shares the claim."""
        self.fence = fence
        self.given_holder = holder
        self.time = HoldTime(fence, max_hold, bound)
        self.state = WAITING
        self.epoch = 0
        self.lost: LeaseLost | None = None
        self.changed: Signal | None = None
        """Set when a waiter has to look at its state again."""
        self.handles = 1
        """How many leases share this claim."""
        self.got: Self | None = None
        """What asking with it led to, where that is another claim: one of the same run, or one for another file."""
        self.counts = True
        """Whether the asking counts among the handles of what it got."""
        self.supersedes = False
        """Whether it goes to the head of the queue, and takes over from the holder."""
        self.in_place = False
        """Whether its file was seen to have the name while its lock was ours: replacing a file takes that lock."""
        self.tasks: tuple[object, ...] = ()
        """The tasks whose blocks it holds, or that wait for it: they have to go on before it is given back."""
        self.scopes: tuple[anyio.CancelScope, ...] = ()
        """Of the blocks that run under it: cancelled on the loop at the deadline, and when the claim is lost."""

    def __repr__(self) -> str:
        return f"<Claim {self.state.value} of {self.holder}, epoch {self.epoch}>"

    def waits(self) -> bool:
        """Whether it still queues. A call, so that no reader takes the answer to outlive an `await`."""
        return self.state is WAITING

    def can_be_shared(self) -> bool:
        """Whether it holds, and will go on: it is not about to be taken away when a write is over."""
        return self.state is HELD and self.revoke_pending is None

    def again(self) -> Self:
        """A claim that asks for the same with the same arrival: its place in the queue is kept."""
        claim = type(self)(
            self.arrived_at, self.identity, self.fence, self.given_holder, self.time.max_hold, self.time.bound
        )
        claim.on_lost, claim.supersedes, claim.time.idle = self.on_lost, self.supersedes, self.time.idle
        claim.scope_ends = self.scope_ends
        return claim

    @property
    def holder(self) -> Holder:
        """The name of the run or task that asked."""
        if self.given_holder is None:
            name = getattr(self.identity, "name", None) or getattr(self.identity, "get_name", lambda: None)()
            self.given_holder = self.fence.holder if self.fence else Holder(task=name)
        return self.given_holder

    def take_epoch(self) -> int:
        """The epoch that it has or will have; the fence that its appends are checked against."""
        self.epoch = self.epoch or next(_epochs)
        return self.epoch

    def progress(self) -> bool:
        """Start the idle time again, if it still holds; returns whether the deadline has moved. From any thread."""
        return self.state is HELD and self.time.progress()

    def catch_up(self, now: float) -> None:
        """Start the grace again if the process stood still past the end of it."""
        if self.lost is None:
            self.time.catch_up(now)

    def check(self, path: str) -> None:
        """Raise unless a write under this claim is legal now.

        Raises:
            LeaseLost: it was taken away, given back, or overstayed deadline and grace.
        """
        lost = self.lost or self.revoke_pending
        if lost is not None:
            raise lost.with_traceback(None)  # it is raised again and again: each time would add its frames
        if self.fence is not None:
            self.fence.check(path)
        if self.state is not HELD:
            raise LeaseLost(f"{self.holder} has left the lease on {path}", path=path, holder=self.holder)
        time = self.time
        late = _clock.clock.now() - time.revoke_at
        # Much later, or before the deadline was reported, the process stood still: then the steward decides.
        if time.deadline_told and 0.0 <= late < time.suspended_after():
            raise overstayed(self, path)


def overstayed(claim: Claim, path: str) -> Revoked:
    """The error for a claim that was still held after deadline and grace."""
    late_s, missed = claim.time.late_s()
    return Revoked(f"{claim.holder} kept {path} {late_s:.3f} s {missed}: revoked", path=path, holder=claim.holder)


def without(tasks: tuple[object, ...], task: object) -> tuple[object, ...]:
    """All but one of the times that a task is named."""
    if tasks == (task,):
        return ()
    left = list(tasks)
    if task in left:
        left.remove(task)
    return tuple(left)
