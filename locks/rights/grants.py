"""The grants of one registry: which claim has each right, and how a right goes on to the next claim.

All of it runs on the event loop's thread, after the queue has decided. Every step goes by what the queue says alone, so
it can be done again after an exception came in the middle: see `recovery`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from .. import _effects
from .._events import log
from .._loop import cancel
from ..errors import LeaseLost, LockError
from .claim import HELD, OVER, WAITING
from .messages import left_while_writing, name_successor, superseded
from .notes import Notes
from .open_file import Entry, FileClaim, FileQueue
from .open_files import OpenFiles
from .steward import Steward
from .waiting import WaitingRoom

_A_WRITE_S = 0.02
"""Seconds that a release waits for a write of another thread; one that takes longer may hang."""


class Grants:
    """The rights that the claims of one registry hold, with the two that look after them.

    Args:
        grace: seconds that a cancelled block may take.
        finish: called on the loop while the steward has something `unfinished`.
        interrupted: called when an exception came in the middle of a change.
    """

    def __init__(
        self,
        files: OpenFiles,
        grace: float,
        *,
        finish: Callable[[], object],
        interrupted: Callable[[], object],
    ) -> None:
        self.files = files
        self.observers: tuple[Callable[[FileClaim], object], ...] = ()
        """Called with each claim that held its right and was given back, on the loop's thread. Must not raise."""
        self.granted = 0
        """Total of rights granted."""
        self._grace = grace
        self._finish = finish
        self._interrupted = interrupted
        self.room = self._new_room()
        """Looks after the files that other processes hold."""
        self.steward = Steward(self.settle, finish)
        """Ends what overstays."""
        self.notes = Notes(grace)
        """Says on the disk who holds."""

    def leave_loop(self) -> None:
        """Forget the tasks that waited: their loop has ended."""
        self.room = self._new_room()

    def start_over(self) -> None:
        """Forget everything, in a forked child."""
        self.files.abandon()
        self.room = self._new_room()
        self.steward = Steward(self.settle, self._finish)
        self.notes = Notes(self._grace)

    def _new_room(self) -> WaitingRoom:
        return WaitingRoom(self.now_held, self.let_in, self._interrupted)

    def let_in(self, entry: Entry, queue: FileQueue) -> FileClaim | None:
        """Let the admitted claim hold if its guard allows it; returns the claim to wake."""
        guard = queue.guard
        if guard is None or not queue.locked or queue.holder is not None or not queue.waiting:  # `admitted`, in place
            return None
        first = next(iter(queue.waiting))
        queue.guarded = first
        try:
            # A file that was replaced has no guard any more: what stands beside the name belongs to the new one. The
            # waiter gets the right all the same, sees that it is worth nothing, and starts over.
            first.in_place = entry.is_at(first.path)
            entered = not first.in_place or guard.enter(first, self._grace)
        except Exception as error:
            if not isinstance(error, (OSError, LockError)) and not first.interrupted:
                first.interrupted = True
                raise  # a signal handler's, it seems: it goes to the code that it has interrupted, and this is repeated
            # It is the waiter's error, of whatever kind: the claim that makes room for it must go on.
            first.failed = error
            queue.next_poll = math.inf
            return first
        if not entered:
            queue.next_poll, queue.guarded = guard.next_try, None
            return None
        with queue.mutex:
            return queue.hold(first)

    def wake(self, woken: FileClaim | None) -> None:
        """Report to a claim that it now holds its right, or that it cannot go on waiting."""
        if woken is None:
            return
        if woken.state is HELD:
            self.now_held(woken)
        elif woken.changed is not None:
            woken.changed.set()

    def now_held(self, claim: FileClaim) -> None:
        """Note a claim that holds its right with its run, and wake its waiter."""
        if claim.fence is not None:
            claim.fence.claims[claim] = None
            claim.on_run_end = self._end_claim
        if claim.changed is not None:
            claim.changed.set()
        if claim.queue is not None and claim.queue.note is not None:
            self.notes.watch(claim)
        self.steward.watch(claim)  # last, but for what is counted: by that it is known to have been done
        self.granted += 1

    def give_back(self, claim: FileClaim) -> None:
        """Give the last handle of a claim back. Interrupted by an exception, it may be called again, and finishes."""
        entry, queue = claim.entry, claim.queue
        if entry is None:
            return
        if queue is None:
            self.files.drop_if_idle(entry)
        elif queue.guard is None and queue.note is None:
            self._give_back(claim, entry, queue)  # no change of its own: it sets off nothing before its last step
        else:
            self._give_back_guarded(claim, entry, queue)

    def _give_back(self, claim: FileClaim, entry: Entry, queue: FileQueue) -> None:
        if claim.state is WAITING and queue.holder is not None and queue.holder is not claim:
            queue.withdraw(claim)  # without the mutex: see `Arbiter._ask`
            self.room.update(entry, queue)
        elif queue.mutex.take(_A_WRITE_S) or self._freed(queue):
            woken = None
            try:
                queue.withdraw(claim)
                if queue.guard is None:
                    woken = queue.pass_on()
                else:
                    queue.announce()
            finally:
                queue.mutex.release()
            if queue.note is not None:
                self.notes.release(claim)
            self.steward.held.pop(claim, None)
            if claim.fence is not None:
                claim.fence.claims.pop(claim, None)
            if queue.guard is None:
                if self.room.competing or queue.competing:  # else nothing is to be looked after
                    self.room.update(entry, queue)
                if woken is not None:
                    self.wake(woken)
            else:
                self.go_on(entry, queue)
        else:
            # A thread's write hangs in the kernel, and the loop has other sessions to serve: the thread that has the
            # mutex finishes this on leaving, as it does for the steward.
            self.steward.revoke(claim, left_while_writing(claim))
            return
        if claim.time.acquired_at:
            for observer in self.observers:
                observer(claim)
        self.files.drop_if_idle(entry)
        if queue.trouble is not None or entry.notes:
            self.report(entry, queue)

    _give_back_guarded = _effects.change(_give_back)

    def go_on(self, entry: Entry, queue: FileQueue) -> None:
        """After a right was given up: take its guard down, unlock or pass on, and wake the claim that has the right
        now.

        It goes by what the queue says alone, so it can be done again.
        """
        guard, woken = queue.guard, None
        if guard is not None and queue.guarded is not None and queue.guarded is not queue.holder:
            with queue.mutex:
                ours = queue.locked or queue.relock()
            if not ours:
                guard.abandon()
            elif (trouble := guard.leave()) is not None:
                entry.note("sidecar_left", path=queue.guarded.path, error=str(trouble))
            queue.guarded = None
        with queue.mutex:
            woken = queue.pass_on()
        if guard is not None and not queue.locked:
            guard.forget()
        if woken is None and queue.waiting:
            woken = self.let_in(entry, queue)
        self.room.update(entry, queue)
        if woken is not None:
            self.wake(woken)

    @staticmethod
    def _freed(queue: FileQueue) -> bool:
        """Take the mutex if it is this thread's: nothing that has it gives back a right, so it was left locked."""
        ours = queue.mutex.mine()
        queue.mutex.free()
        return ours and queue.mutex.take()

    def report(self, entry: Entry, queue: FileQueue | None = None) -> None:
        """Log what went wrong while the mutex was held."""
        if queue is not None and queue.trouble is not None:
            entry.note("unlock_failed", path=entry.path, right=queue.right.name.lower(), error=str(queue.trouble))
            queue.trouble = None
        if entry.notes:
            notes, entry.notes = entry.notes, ()
            for event, fields in notes:
                log(event, level="warning", **fields)

    def _end_claim(self, claim: FileClaim, kind: type[LeaseLost]) -> None:
        assert claim.entry is not None
        path = claim.entry.path
        message = f"{claim.holder} has ended: what it still held of {path} is taken away"
        self.revoke(claim, kind(message, path=path, holder=claim.holder))

    def revoke(self, claim: FileClaim, error: LeaseLost) -> None:
        """Take a right away, on the loop's thread."""
        try:
            self.steward.revoke(claim, error)
        except BaseException:
            self._interrupted()
            raise

    @_effects.change
    def settle(self, claim: FileClaim) -> None:
        """After a right was taken away: cancel the block, let the next claim in, and log it. On the loop's thread."""
        try:
            self.do_settle(claim)
        except BaseException:
            self._interrupted()
            raise

    def do_settle(self, claim: FileClaim) -> None:
        """The steps of `settle`; each can be repeated."""
        error = claim.lost
        assert error is not None and claim.entry is not None
        if claim.settled:
            return  # it was done when an exception was made up for, before what the steward had posted came
        late_s, _ = claim.time.late_s()
        claim.handles = 1
        for scope in claim.scopes:
            cancel(scope)
        if claim.state is not OVER:
            self.give_back(claim)
        claim.settled = True
        log(
            "lease_revoked",
            level="warning",
            path=claim.entry.path,
            epoch=claim.epoch,
            holder=str(claim.holder),
            overstayed_s=round(late_s, 3),
            reason=str(error),
        )
        name_successor(claim)
        if claim.on_lost is not None:
            claim.on_lost(error)

    def supersede(self, queue: FileQueue, winner: FileClaim) -> None:
        """Take the right from its holder here, for a claim that waits at the head of the queue."""
        loser = queue.holder
        if loser is not None and self.steward.take(loser, superseded(winner.path, loser, winner)):
            self.settle(loser)
