"""What an exception, an event loop that has ended, or a fork leaves undone, done afterwards.

A signal handler may raise between any two lines on the main thread. What was changed by then stays changed. Nothing
here depends on the line at which the exception came: each queue is examined, and each step does nothing where nothing
is left to do.
"""

from __future__ import annotations

import math

from .. import _clock, _effects
from ..errors import Revoked
from .claim import HELD, LOST, OVER
from .grants import Grants
from .open_file import Entry, FileClaim, FileQueue
from .open_files import OpenFiles

_AGAIN_S = 0.05


class Recovery:
    """Makes the grants of one registry, and finishes the changes of them that were broken off."""

    def __init__(self, files: OpenFiles, grace: float) -> None:
        self.grants = Grants(files, grace, finish=self.finish, interrupted=self.interrupted)

    def interrupted(self, claim: FileClaim | None = None, asked: FileClaim | None = None) -> None:
        """Finish a change that an exception has broken off.

        Args:
            claim: whose last handle, or one of several, was to be given back.
        """
        self.grants.steward.unfinished = True
        if claim is not None:
            if claim.handles > 1:
                drop_handle(claim, asked)
            elif asked is None or asked.counts:
                claim.given_up = True
        self.finish()

    @_effects.change
    def finish(self) -> None:
        """Do what an exception has left undone, if there was one."""
        grants, steward, room = self.grants, self.grants.steward, self.grants.room
        if not steward.unfinished:
            return
        steward.unfinished = False  # first: what is called from here may use the registry
        try:
            room.forget_stale()
            for entry in list(grants.files):
                for queue in list(entry.queues.values()):
                    queue.mutex.free()
                    self._finish_queue(entry, queue)
                grants.files.drop_if_idle(entry)
            for claim in list(steward.held):
                if claim.state is OVER:
                    grants.notes.release(claim)
                    steward.held.pop(claim, None)
                    if claim.fence is not None:
                        claim.fence.claims.pop(claim, None)
            room.look_again()
            steward.look_by(_clock.clock.now())  # an alarm may not have been set
        except BaseException as error:
            steward.unfinished = True
            steward.look_by(_clock.clock.now() + _AGAIN_S)
            if not isinstance(error, Exception):
                raise

    def _finish_queue(self, entry: Entry, queue: FileQueue) -> None:
        for claim in [*queue.waiting, queue.holder]:
            if claim is not None and claim.given_up:
                self.grants.give_back(claim)
        holder = queue.holder
        if holder is not None and holder.lost is not None:
            self.grants.steward.take(holder, holder.lost)  # it was lost already, or is now
            if holder.state is LOST:
                self.grants.do_settle(holder)
        if queue.mutex.locked():
            return  # a thread writes, so the holder is still the same
        self.grants.go_on(entry, queue)
        holder = queue.holder
        if holder is not None and holder.state is HELD and holder not in self.grants.steward.held:
            self.grants.now_held(holder)

    def leave_loop(self) -> None:
        """See to the rights that the tasks of an event loop that has ended held or waited for.

        The waiters have gone. A right that is held is taken away at its deadline and grace, as ever, since a thread may
        still write; without a deadline, now.
        """
        self.grants.leave_loop()
        for entry in list(self.grants.files):
            entry.pins = 0
            for queue in entry.queues.values():
                for claim in queue.waiting:
                    claim.changed, claim.on_lost, claim.handles, claim.given_up = None, None, 1, True
                holder = queue.holder
                if holder is None:
                    continue
                holder.scopes, holder.tasks, holder.changed, holder.on_lost, holder.handles = (), (), None, None, 1
                if holder.state is HELD and holder.time.next_due() == math.inf:
                    message = f"{holder.holder} lost {entry.path}: its event loop has ended"
                    self.grants.steward.take(holder, Revoked(message, path=entry.path, holder=holder.holder))
        self.grants.steward.unfinished = True
        self.finish()

    def lose_all(self, reason: str) -> None:
        """Lose every right without unlocking it, as a forked child must: an unlock would act for its parent as well."""
        for entry in list(self.grants.files):
            for queue in entry.queues.values():
                claim = queue.holder
                if claim is not None:
                    message = f"{claim.holder} lost {entry.path}: {reason}"
                    claim.state = LOST
                    claim.lost = Revoked(message, path=entry.path, holder=claim.holder)
        self.grants.start_over()


def drop_handle(claim: FileClaim, asked: FileClaim | None) -> None:
    """Give back one of several handles, but none twice."""
    if asked is None:
        claim.handles -= 1
    elif asked.counts:
        asked.counts, claim.handles = False, claim.handles - 1  # together: no exception comes in between
