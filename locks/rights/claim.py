"""One request for a right, from asking to the end of holding."""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum
from itertools import count
from typing import TYPE_CHECKING, Any, Self

from .. import _clock
from ..errors import LeaseLost, Revoked
from ..holder import Holder
from .fence import Fence

if TYPE_CHECKING:
    import anyio


_epochs = count(1)
"""Epochs rise over all files and registries of a process."""

_AFTER_THE_LOOP_S = 0.02
_SUSPENDED_AFTER_S = (0.05, 1.0)  # at least and at most


class ClaimState(Enum):
    """Where a claim stands; it only moves downwards."""

    WAITING = "waiting"
    HELD = "held"
    LOST = "lost"
    OVER = "over"


class Claim:
    """What one run or task asked of one right of one file: it waits, holds, has lost it, or is over.

    A claim has no cancel scope: it is for whoever owns one, such as a scheduler (`Lease` adds one). Whoever asked must
    give it back through `LockRegistry.release`, in whatever state it is; that is synchronous and cannot be interrupted.

    Invariants: only the event loop's thread moves a claim to HELD or OVER; LOST may be set by any thread, inside the
    file's mutex; it is its queue's `holder` exactly while HELD, or LOST and not yet given back.
    """

    # Defaults live on the class: a claim is made per acquisition, and most of them never change.
    state = ClaimState.WAITING
    changed: anyio.Event | None = None
    """Set when a waiter has to look at its state again."""
    handles = 1
    """How many leases share this claim."""
    epoch = 0
    acquired_at = 0.0
    deadline = math.inf
    deadline_told = False
    """Whether the steward need not come at the deadline any more: it did, or the run's own scheduler does."""
    expires = False
    """Whether the deadline is its own, not that of its run or of an enclosing scope."""
    revoke_at = math.inf
    ends_at = math.inf
    """What `end_by` was told last."""
    revoke_pending: LeaseLost | None = None
    """Set by a thread that could not have the mutex; whoever has it finishes the revocation on leaving."""
    lost: LeaseLost | None = None
    failed: Exception | None = None
    """Why a waiter cannot go on waiting."""
    supersedes = False
    """Goes to the head of the queue, and takes over from who holds."""
    makes_room = False
    """It is for deleting, so a full disk must not refuse it: it goes without what guards the right beside the lock."""
    idle: float | None = None
    """Seconds without `progress()` after which it ends."""
    grace = 0.0
    in_place = False
    """Whether its file was seen to have the name while its lock was ours: who replaces a file needs that lock."""
    path = ""
    """The name by which the file was asked for."""
    scope_ends: float | None = None
    """As `bound`, on the loop's clock, if it is known: a limit of its wait, and around the block."""
    got: Self | None = None
    """What asking with it led to, where that is another claim: one of the same run, or one for another file."""
    counts = True
    """Whether the asking counts among the handles of what it got."""
    waiter: object = None
    """The task that waits."""
    sleeping: anyio.CancelScope | None = None
    """What its task has entered in order to wait, and not left."""
    interrupted = False
    """Whether letting it in was broken off by an exception that has nothing to do with it."""
    given_up = False
    """Whether its owner has given it back, and an exception came in the middle: that is to be finished."""
    settled = False
    """Whether its block was told of the loss, and the next one let in."""
    tasks: tuple[object, ...] = ()
    """The tasks whose blocks it holds, or who wait for it: who has to go on before it is given back."""
    scopes: tuple[anyio.CancelScope, ...] = ()
    """Of the blocks that run under it: cancelled on the loop at the deadline, and when the claim is lost."""
    on_lost: Callable[[LeaseLost], Any] | None = None
    """Called on the loop when the claim is lost, for whoever owns it without a block."""

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
        """Who asked: the fence of a run, else the task. The same identity asking again shares the claim."""
        self.fence = fence
        self.given_holder = holder
        self.max_hold = max_hold
        self.bound = bound
        """The instant at which the enclosing scope ends, if it does."""

    def __repr__(self) -> str:
        return f"<Claim {self.state.value} of {self.holder}, epoch {self.epoch}>"

    def waits(self) -> bool:
        """Whether it still queues. A call, so that no reader takes the answer to outlive an `await`."""
        return self.state is ClaimState.WAITING

    def can_be_shared(self) -> bool:
        """Whether it holds, and will go on: it is not about to be taken away when a write is over."""
        return self.state is ClaimState.HELD and self.revoke_pending is None

    def again(self) -> Self:
        """A claim that asks for the same with the same arrival: its place in the queue is kept."""
        claim = type(self)(self.arrived_at, self.identity, self.fence, self.given_holder, self.max_hold, self.bound)
        claim.on_lost, claim.supersedes, claim.idle = self.on_lost, self.supersedes, self.idle
        claim.scope_ends = self.scope_ends
        return claim

    @property
    def holder(self) -> Holder:
        """Who asked, by name."""
        if self.given_holder is None:
            name = getattr(self.identity, "name", None) or getattr(self.identity, "get_name", lambda: None)()
            self.given_holder = self.fence.holder if self.fence else Holder(task=name)
        return self.given_holder

    def take_epoch(self) -> int:
        """The epoch that it has or will have; the fence that its appends are checked against."""
        self.epoch = self.epoch or next(_epochs)
        return self.epoch

    def start(self, grace: float) -> None:
        """Begin to hold. Waiting ate nothing: the deadline counts from here."""
        self.epoch = self.epoch or next(_epochs)
        self.acquired_at = now = _clock.clock.now()
        self.grace = grace
        if self.fence is None and self.idle is None:  # the plain case, in short
            own, bound = now + self.max_hold, self.bound
            self.expires = own <= bound
            self.deadline = deadline = min(own, bound)
            self.revoke_at = deadline + grace
        else:
            self._limit(now)
            self.deadline_told = self.fence is not None and not self.expires
        self.state = ClaimState.HELD

    def go_on_from(self, before: Claim) -> None:
        """Keep the hard limit of a claim that was given back for a while, inside its block, and whose place this takes.

        Called on the loop's thread, right after it was granted.
        """
        now = self.acquired_at
        self.max_hold = max(0.0, before.acquired_at + before.max_hold - now)
        self._limit(now)
        self.deadline_told = self.fence is not None and not self.expires

    def progress(self) -> bool:
        """Start the idle time anew, within the hard limit; returns whether the deadline has moved.

        Not once the deadline has passed. Plain assignments: callable from any thread.
        """
        now, before = _clock.clock.now(), self.deadline
        if self.idle is None or self.state is not ClaimState.HELD or self._told() or now >= before:
            return False
        self._limit(now)
        if self._told():
            self.end_by(self.ends_at)  # the loop or the steward has ended it meanwhile: that stands
        return self.deadline > before

    def end_by(self, at: float) -> None:
        """End the time of the block now, and what it may still do at `at`. Neither moves later."""
        now = _clock.clock.now()
        self.ends_at = min(self.ends_at, max(at, now))  # an instant long past would look like a suspended machine
        self.deadline_told = True  # before what `progress()` in a thread may overwrite: it looks again afterwards
        self.revoke_at = min(self.revoke_at, self.ends_at)
        self.deadline = min(self.deadline, now)

    def suspended_after(self) -> float:
        """Who comes so late was not busy: the process was stopped, or the machine suspended, for a whole grace even."""
        least, most = _SUSPENDED_AFTER_S
        return max(least, min(self.grace, most))

    def catch_up(self, now: float) -> None:
        """Start the grace again if the process stood still past the end of it."""
        if self.lost is None and now - self.next_due() >= self.suspended_after():
            self.restart_grace(now)

    def restart_grace(self, now: float) -> None:
        """Start the grace afresh: nobody could have met a deadline while the process stood still."""
        if self.fence is not None:
            self.fence.restart_grace(now)
        if self.fence is None or self.expires or self.ends_at < math.inf:
            self.revoke_at = max(self.revoke_at, now + self.grace)
        else:  # it goes by its run's grace, not by ours
            self.revoke_at = max(self.revoke_at, self.fence.end_at + _AFTER_THE_LOOP_S)

    def holds_at_most(self, grace: float) -> float:
        """Seconds for which it will hold at most if it begins now, grace included."""
        now = _clock.clock.now()
        at_most = min(now + self.max_hold, self.bound) + grace
        if self.fence is not None:
            at_most = min(at_most, self.fence.end_at)
        return max(0.0, at_most - now)

    def may_last(self, grace: float) -> float:
        """Seconds for which a claim of this kind, of this run or with this limit, holds at most, grace included."""
        own = self.max_hold + grace
        return own if self.fence is None else min(own, self.fence.end_at - self.fence.began_at)

    def _told(self) -> bool:
        return self.deadline_told  # a call, for the reason of `waits`: another thread may set it

    def _limit(self, now: float) -> None:
        own, fence, outer = self.acquired_at + self.max_hold, self.fence, self.bound
        if self.idle is not None:
            own = min(own, now + self.idle)
        if fence is None:
            deadline = min(own, outer)
            self.revoke_at = deadline + self.grace
        else:
            # A run's last words may outlive its deadline, up to the end of its grace; the run's grace rules, not ours.
            deadline = min(own, outer, fence.end_at if now >= fence.deadline else fence.deadline)
            self.revoke_at = min(own + self.grace, fence.end_at + _AFTER_THE_LOOP_S)
        self.expires = deadline == own
        self.deadline = deadline

    def next_due(self) -> float:
        """When the steward has to look at this claim again."""
        revoke_at = self.revoke_at
        if self.fence is not None:
            # The run's scheduler lets go at that instant; the steward comes when the loop was too late for it.
            revoke_at = min(revoke_at, self.fence.end_at + _AFTER_THE_LOOP_S)
        return revoke_at if self.deadline_told else min(self.deadline, revoke_at)

    def late_s(self) -> tuple[float, str]:
        """How long ago its block was to end, in seconds, and what was missed then, in words; 0 when that is to come.

        A run that is asked to end early has missed that, and not the deadline that it still had before it.
        """
        asked = math.inf if self.fence is None else self.fence.deadline
        if asked < self.deadline:
            missed, what = asked, "after its run was asked to end"
        else:
            missed, what = self.deadline, "past its deadline"
        return max(0.0, _clock.clock.now() - missed), what

    def remaining(self) -> float | None:
        """Seconds until it is taken away at the latest, grace included; `None` without a limit."""
        revoke_at = self.revoke_at if self.fence is None else min(self.revoke_at, self.fence.end_at)
        return None if revoke_at == math.inf else max(0.0, revoke_at - _clock.clock.now())

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
        if self.state is not ClaimState.HELD:
            raise LeaseLost(f"{self.holder} has left the lease on {path}", path=path, holder=self.holder)
        late = _clock.clock.now() - self.revoke_at
        if self.deadline_told and 0.0 <= late < self.suspended_after():
            raise overstayed(self, path)  # much later, or untold, the process stood still: then the steward decides


def overstayed(claim: Claim, path: str) -> Revoked:
    """The error for a claim that was still held after deadline and grace."""
    late_s, missed = claim.late_s()
    return Revoked(f"{claim.holder} kept {path} {late_s:.3f} s {missed}: revoked", path=path, holder=claim.holder)


def without(tasks: tuple[object, ...], task: object) -> tuple[object, ...]:
    """All but one of the times that a task is named."""
    if tasks == (task,):
        return ()
    left = list(tasks)
    if task in left:
        left.remove(task)
    return tuple(left)
