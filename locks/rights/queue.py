"""One right of one file: its holder, its waiters, and which process is next.

Every method is one synchronous state change. The caller holds the queue's mutex, and acts afterwards on what is
returned: the claim that now holds the right, if any. Giving back and giving up waiting are the same method, so the
path that a cancellation takes is the path that every release takes.

A signal handler may raise between any two lines here, on the main thread. So every method can be called again after it
was left in the middle, and then finishes what it began: what is done is noted after it is done.

Where a right is guarded (a lock file that foreign programs look at), having the lock of all processes only *admits* the
first of the queue. The caller then sees to the guard, without the mutex, and calls `hold`.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Set
from contextlib import suppress
from functools import partial
from typing import Generic, TypeVar

import anyio

from .. import _clock, _os
from .._mutex import Mutex
from ..engines.interface import ProcessLock, Right
from ..engines.wakeup import Bell
from ..errors import LeaseLost
from .claim import HELD, LOST, OVER, Claim
from .fence import Fence
from .guard import Beside
from .pace import Pace

ClaimT = TypeVar("ClaimT", bound=Claim)
_NONE: Set[int] = frozenset()
_NOTHING = Beside()


class RightQueue(Generic[ClaimT]):
    """The FIFO of one right.

    Invariants: `holder` is None or HELD or LOST; everything in `waiting` is WAITING, in the order in which it goes on;
    `locked` is true exactly while the lock of all processes is ours: while a claim HELD, and while the first of
    `waiting` is admitted; `ticket` is set exactly while the first of `waiting` competes with other processes, so never
    while `locked`.
    """

    # What only a contended queue needs has its default on the class: see `Claim`.
    ordered = True
    """Whether there may be an order among those that the lock keeps apart."""
    pace: Pace | None = None
    """When to look; set with the ticket."""
    announced: int | None = None
    """The ticket of another process that was told that the right is about to be free."""
    bell: Bell | None = None
    """Rings when another process has unlocked the right for us; only while the task that waits looks itself."""
    passed_over: Set[int] = _NONE
    """Tickets of other processes that were found not to move."""
    competed = False
    """Whether another process may have left something beside the session since we last looked: we waited for it."""

    def __init__(self, right: Right, lock: ProcessLock | None, grace: float, beside: Beside = _NOTHING) -> None:
        self.right = right
        self.lock = lock
        """Excludes other processes; `None` keeps the right inside this one."""
        self.grace = grace
        self.names, self.guard, self.note = beside
        """Who has the right elsewhere; what else has to be had; what says later who has it. Each may be `None`."""
        self.holder: ClaimT | None = None
        self.locked = False
        self.ticket: int | None = None
        self.next_poll = math.inf
        self.trouble: Exception | None = None
        """A lock call that failed while letting go, to be logged."""
        self.guarded: ClaimT | None = None
        """The claim that the guard was entered for, or is being entered for: it goes before another has the right."""
        self.mutex = Mutex()
        """Covers the state of the queue and its locks; of the write right, each write and the descriptor, too.

        The event loop's thread and worker threads wait for it, the steward only ever tries it, because a write may hang
        in the kernel. Taken last: of two, that of the write right first.
        """
        self.waiting: OrderedDict[ClaimT, None] = OrderedDict()
        self.waiting_runs: dict[Fence, ClaimT] = {}
        """Of those in `waiting`, the ones of runs."""

    @property
    def competing(self) -> bool:
        """Whether another process decides when the first of the queue goes on, so that a task has to poll."""
        return self.ticket is not None or (self.locked and self.holder is None)

    @property
    def admitted(self) -> ClaimT | None:
        """The claim that has the lock of all processes, and not yet the guard of the right."""
        if self.locked and self.holder is None and self.waiting:
            return next(iter(self.waiting))
        return None

    def ask(self, claim: ClaimT) -> ClaimT:
        """Take the right at once, share it with what the same run already holds, or join the queue.

        Returns the claim to use; it waits if its state is WAITING. See `admitted` then.
        """
        holder = self.holder
        if holder is not None and holder.identity is claim.identity and holder.can_be_shared():
            claim.got, holder.handles = holder, holder.handles + 1  # together: no exception comes in between
            return holder
        fence = claim.fence
        if fence is not None and self.waiting_runs and (waiting := self.waiting_runs.get(fence)) is not None:
            # Another task of the same run waits already: it waits for both.
            claim.got, waiting.handles = waiting, waiting.handles + 1
            if claim.supersedes:
                waiting.supersedes = True
                self.waiting.move_to_end(waiting, last=False)
            return waiting
        if holder is None and not self.waiting and (self.lock is None or self._lock_for(claim)) and self.guard is None:
            return self.hold(claim)
        self._join(claim)
        if holder is None and self.ticket is None and not self.locked:
            self._compete()  # a failure is the claim's own: it finds it before it waits
        return claim

    def try_ask(self, claim: ClaimT) -> bool:
        """As `ask`, but leave no trace when it cannot be had at once; returns whether it holds or is admitted."""
        if self.holder is not None or self.waiting or not self._lock_for(claim):
            return False
        if self.guard is None:
            self.hold(claim)
        else:
            self._join(claim)
        return True

    def share(self, lock: ProcessLock) -> None:
        """Go by a lock that has no order, where there was none so far."""
        if self.lock is None:
            self.ordered, self.lock = False, lock
            self.locked = self.holder is not None and self.holder.state is not LOST and lock.try_lock()

    def hold(self, claim: ClaimT) -> ClaimT:
        """Let a claim have the right: it is free, and the lock is ours."""
        self.holder = claim
        claim.epoch = claim.epoch or claim.take_epoch()
        claim.time.start(self.grace)
        claim.state = HELD
        if self.waiting and claim in self.waiting:
            self._leave(claim)
        self.next_poll = math.inf
        return claim

    def withdraw(self, claim: ClaimT) -> None:
        """Give back, give up waiting, or clear away what was lost; never raises. Call `pass_on` next.

        In between, a guard goes, if what was given up had it.
        """
        if claim is self.holder:
            self.holder = None
        if claim in self.waiting:
            if self.ticket is not None and next(iter(self.waiting)) is claim:
                self._stop_competing()
            self._leave(claim)
        claim.state = OVER

    def pass_on(self) -> ClaimT | None:
        """Let the next one have the right or compete for it; without one, unlock. Never raises.

        Returns a claim that has to be woken, because it now holds the right or because it cannot go on waiting.
        """
        holder = self.holder
        if holder is not None:
            return self.hold(holder) if holder.waits() or holder in self.waiting else None
        if self.ticket is not None or not self.waiting:
            if self.locked:
                self._unlock()
            return None
        first = next(iter(self.waiting))
        if not self.ordered:
            self.relock()  # after the steward gave it away: there is no order in which another could come first
        if self.lock is None or (self.locked and not self._must_yield(first)):
            self.next_poll = 0.0
            return self.hold(first) if self.guard is None else None
        failed = self._compete()  # stand in the queue first, then unlock: no process can overtake in between
        if self.locked:
            self._unlock()
        return failed

    def announce(self) -> None:
        """Wake the process whose turn is next before the right is free: waking up takes it as long as a guard to go.

        If it comes too early, it is woken again. Never raises.
        """
        lock = self.lock
        if lock is None or not (self.locked and self.ordered):
            return
        try:
            if not self.waiting or self._must_yield(next(iter(self.waiting))):
                self.announced = lock.lowest(self.passed_over)
                if self.announced is not None:
                    lock.wake(self.announced)
        except Exception as error:
            self.trouble = error

    def take_away(self, claim: ClaimT, error: LeaseLost, kind: type[LeaseLost], *, keep: bool = False) -> bool:
        """Unlock what `claim` holds for other processes, unless it does not hold it any more.

        The only method that a foreign thread calls. The identity check is what keeps a late thread from unlocking
        the next holder. With `keep` the lock stays ours, for a successor in this process.
        """
        if claim is not self.holder or claim.state is not HELD:
            return False
        claim.lost = error  # no write is legal from here on
        if claim.fence is not None and self.right is Right.TURN:
            claim.fence.close(kind, error.by)  # before another process can conduct the session
        if not keep:
            self._unlock()
        claim.state = LOST
        return True

    def relock(self) -> bool:
        """Take the lock again after the steward gave it away; only its holder may touch what guards the right."""
        if not self.locked and self.lock is not None:
            try:
                self.locked = self.lock.try_lock()
            except Exception as error:
                self.trouble = error
        return self.locked

    def poll(self) -> ClaimT | None:
        """Look whether the first of the queue may go on now; returns it if it now holds the right. See `admitted` then.

        Raises:
            OSError: a lock call failed; nothing has changed.
        """
        lock, ticket, pace = self.lock, self.ticket, self.pace
        if lock is None or ticket is None or pace is None:
            return None
        now = _clock.clock.now()
        if pace.stood_still(now):
            # We were stopped or frozen, so others may have passed us over for good. A new ticket is as old, and counts.
            renewed = lock.take_ticket(ticket + 1)
            self._drop_ticket()
            self.ticket = ticket = renewed
        free = lock.is_free()
        before = lock.lowest_before(ticket, self.passed_over) if free else None
        if not free or before is not None or not lock.try_lock():
            listens, without = self.bell is not None, len(self.passed_over)
            self.next_poll = now + pace.pause(lock, ticket, now, listens=listens, without=without)
            if (stalled := pace.stalled(before, now)) is not None:
                self.passed_over = {*self.passed_over, stalled}
                self.next_poll = now
            return None
        self.locked = True
        self.next_poll = 0.0
        self._drop_ticket()
        return self.hold(next(iter(self.waiting))) if self.guard is None else None

    def move(self, lock: ProcessLock, *, locked: bool) -> ClaimT | None:
        """Go on with the lock of the file that was renamed into the place of this one; waiters keep their places.

        Returns a claim that has to be woken, because it cannot go on waiting.
        """
        ticket = self.ticket
        if ticket is not None:
            self._drop_ticket()
        self.lock, self.locked, self.passed_over = lock, locked, _NONE
        return None if ticket is None else self._compete()

    def close(self) -> None:
        """Let go of all locks, before the descriptor is closed."""
        if self.ticket is not None:
            self._stop_competing()
        if self.locked:
            self._unlock()
        if self.lock is not None:
            self.lock.close()

    def listen(self) -> None:
        """Let the process that unlocks the right for us wake us."""
        if self.bell is None and self.ticket is not None:
            assert self.lock is not None
            self.bell = self.lock.bell(self.ticket)

    def stop_listening(self) -> None:
        """Take the bell away; the task that waits for it goes on, and looks by itself."""
        bell = self.bell
        if bell is not None:
            if bell.heeded:
                with suppress(RuntimeError):  # no event loop runs here any more, so no task listens
                    anyio.notify_closing(bell.socket)  # its task would listen to what gets this number next
            bell.close()
            self.bell = None

    def woken(self) -> None:
        """The bell has rung: look at once."""
        if self.bell is not None:
            self.bell.drain()
            self.next_poll = 0.0

    def abandon(self) -> None:
        """Let go without unlocking, in a forked child."""
        lock, self.lock, self.ticket, self.locked = self.lock, None, None, False
        self.next_poll = math.inf
        bell, self.bell = self.bell, None
        if bell is not None:
            bell.close()  # without notifying: the event loop is the parent's
        if self.guard is not None:
            self.guard.abandon()
        if lock is not None:
            lock.close()

    # Internals

    def _lock_for(self, claim: ClaimT) -> bool:
        if self.lock is None:
            return True
        self.locked = (not self.ordered or not self._others_before(claim)) and self.lock.try_lock()
        return self.locked

    def _others_before(self, claim: ClaimT) -> bool:
        assert self.lock is not None
        if not self.lock.anyone_before(claim.arrived_at):
            self.passed_over = _NONE  # the owners of those tickets have gone
            return False
        if not self.passed_over:
            return True
        return self.lock.lowest_before(self.lock.ticket_of(claim.arrived_at), self.passed_over) is not None

    def _join(self, claim: ClaimT) -> None:
        self.waiting[claim] = None
        if claim.fence is not None:
            self.waiting_runs[claim.fence] = claim
        if claim.supersedes:
            self.waiting.move_to_end(claim, last=False)  # a ticket that was taken stands for the first claim

    def _leave(self, claim: ClaimT) -> None:
        if claim.fence is not None:
            self.waiting_runs.pop(claim.fence, None)
        del self.waiting[claim]

    def _must_yield(self, first: ClaimT) -> bool:
        if first.supersedes or not self.ordered:
            return False
        try:
            return self._others_before(first)
        except Exception:
            return True  # competing is safe, and reports the error to the waiter

    def _compete(self) -> ClaimT | None:
        """Take a ticket for the first of the queue; returns it if that failed."""
        assert self.lock is not None and self.ticket is None
        first = next(iter(self.waiting))
        self.pace = Pace(first.arrived_at, _clock.clock.now())
        try:
            ticket = self.lock.take_ticket(self.lock.ticket_of(first.arrived_at))
        except Exception as error:
            first.failed = error
            return first
        self.ticket, self.next_poll, self.competed = ticket, 0.0, True
        return None

    def _stop_competing(self) -> None:
        self._drop_ticket()
        self.next_poll = math.inf

    def _drop_ticket(self) -> None:
        lock, ticket = self.lock, self.ticket
        self.stop_listening()
        if lock is not None and ticket is not None:
            try:
                lock.drop_ticket(ticket)
            except Exception:
                self._once_more(partial(lock.drop_ticket, ticket))
        self.ticket = None

    def _unlock(self) -> None:
        """Unlock for other processes. A failure must not stop a release; closing the descriptor unlocks as well."""
        lock = self.lock
        if lock is not None:
            try:
                lock.unlock()
            except Exception:
                self._once_more(lock.unlock)
            self.locked = False
            if not self.ordered:
                return
            told, self.announced = self.announced, None
            try:
                if told is not None and not lock.wake(told) and lock.is_free():
                    told = None  # it has gone
                if told is None and (told := lock.lowest(self.passed_over)) is not None:
                    lock.wake(told)
                if told is not None:
                    _os.sched_yield()  # it may have been woken on this core, and would come in a time slice only
            except Exception as error:
                self.trouble = error
        self.locked = False

    def _once_more(self, call: Callable[[], object]) -> None:
        """Repeat a lock call that must not fail, and has: it may be that a signal handler has raised in it."""
        try:
            call()
        except Exception as error:  # an engine of the user's may raise anything
            self.trouble = error
