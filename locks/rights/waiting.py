"""How a registry's tasks wait, and how one of them looks after the files that other processes hold.

The kernel wakes no waiter when another process unlocks a byte, so a task must look. A task per file costs 11-22 % CPU
for 64 files, a thread per file cannot be cancelled, and a background task would need an owner that outlives its
waiters. So one of the waiting tasks, the *leader*, looks after all files of its registry. When it leaves, another
waiting task becomes the leader.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import anyio
from anyio import CancelScope, ClosedResourceError
from anyio.lowlevel import checkpoint

from .. import _clock, _effects
from .._events import described
from .._loop import Signal
from ..errors import TranscriptError
from .claim import HELD, WAITING
from .open_file import Entry, FileClaim, FileQueue, cannot

_BETWEEN_LOOKS_S, _BETWEEN_MOST_S, _LOOKS_SHARE = 0.0002, 0.0005, 0.04
"""On average, over all files that are waited for: so much of a processor's time for looks, however slow it is."""
_TOGETHER_S = 0.001
"""Files that are due within so many seconds are looked at together: waking up costs more than a look."""


class WaitingRoom:
    """The tasks of one registry that wait.

    Invariant: whenever `competing` is not empty, `leader` is a WAITING claim at the head of one of its queues, and its
    task is either running or has been woken.
    """

    def __init__(
        self,
        granted: Callable[[FileClaim], object],
        let_in: Callable[[Entry, FileQueue], FileClaim | None],
        interrupted: Callable[[], object],
    ) -> None:
        self.competing: dict[FileQueue, Entry] = {}
        """The queues whose head waits for another process."""
        self._granted = granted
        self._let_in = let_in
        self._interrupted = interrupted
        self._leader: FileClaim | None = None
        self._looker: object = None
        """The one of the leader's tasks that looks."""
        self._between_looks = _BETWEEN_LOOKS_S
        self.new_event: Callable[[], Signal] = anyio.Event
        """Makes an event on the loop that the registry serves."""

    def update(self, entry: Entry, queue: FileQueue) -> None:
        """Note whether a queue must be looked after, and see that a task does. Call after each change to it."""
        leader = self._leader
        if queue.ticket is not None or (queue.locked and queue.holder is None):  # `competing`, without a call
            if queue not in self.competing and leader is not None:
                # It may sleep until a foreign lock file is due again, or for long because many are before it.
                if leader.changed is not None:
                    leader.changed.set()
                if leader.queue is not None:
                    leader.queue.stop_listening()
            self.competing[queue] = entry
        else:
            self.competing.pop(queue, None)
        if leader is not None and not self._may_lead(leader):
            self._leader = leader = None
        if leader is None and self.competing:
            first = next(iter(next(iter(self.competing)).waiting))
            self._leader, self._looker = first, None  # the one before may not have run since, and would keep the office
            if first.changed is not None:
                first.changed.set()

    def _may_lead(self, leader: FileClaim) -> bool:
        """Whether it still is at the head of a queue that competes; if not, see that it does not listen for one."""
        if leader.state is not WAITING:
            return False
        queue = leader.queue
        assert queue is not None
        if queue in self.competing and next(iter(queue.waiting)) is leader:
            return True
        queue.stop_listening()  # a newcomer has passed it: what it waits for comes from here now
        return False

    def forget_stale(self) -> None:
        """Keep no queue that has no waiter to look after it: an exception came before that was noted."""
        for queue in list(self.competing):
            if not (queue.competing and queue.waiting):
                del self.competing[queue]

    def look_again(self) -> None:
        """Have the leader look at everything: an exception may have ended the task that did so before."""
        self._looker = None
        leader = self._leader
        if leader is not None and leader.changed is not None:
            leader.changed.set()

    async def wait(self, path: str, claim: FileClaim, give_up_at: float, asked: FileClaim) -> None:
        """Wait until a claim holds its right, or until `give_up_at`. A checkpoint, however short the wait.

        Raises:
            TranscriptError: a lock call that was made for this claim failed.
        """
        me = asked  # a run may have several tasks that wait for one claim; one of them looks
        suspended = False
        try:
            while claim.state is WAITING:
                until = give_up_at
                leads = self._leader is claim and self._looker in (None, me)
                if leads:
                    self._looker = me
                    until = min(until, self._look(claim))
                    if not claim.waits():
                        break
                if claim.failed is not None:
                    raise failure(path, claim.failed)
                if until == math.inf:
                    await self._changed(claim).wait()
                    suspended = True
                    continue
                now = _clock.clock.now()
                if now < give_up_at:
                    if leads and until <= now:
                        await checkpoint()  # a foreign lock file is about to go: a timer would come too late
                    elif leads:
                        await self._listen(claim, until, asked)
                    else:
                        await self._sleep(claim, until, asked)
                elif suspended:
                    return
                else:
                    await checkpoint()
                suspended = True
        finally:
            if self._looker is me:
                self._looker = None
                if claim.changed is not None:
                    claim.changed.set()
        if not suspended:
            await checkpoint()

    def _changed(self, claim: FileClaim) -> Signal:
        """What is set when the claim has changed."""
        changed = claim.changed
        if changed is None or changed.is_set():
            changed = claim.changed = self.new_event()  # else it is one that another task of the same run waits for
        return changed

    async def _sleep(self, claim: FileClaim, until: float, asked: FileClaim) -> None:
        """Suspend until the claim has changed, or until an instant."""
        changed = self._changed(claim)
        asked.sleeping = scope = CancelScope(deadline=anyio.current_time() + (until - _clock.clock.now()))
        with scope:
            await changed.wait()
        asked.sleeping = None

    async def _listen(self, claim: FileClaim, until: float, asked: FileClaim) -> None:
        """Sleep until the bell of the claim's ticket rings, or until an instant. A checkpoint.

        Only a look can grant anything to the head of a queue that competes, and only the leader looks, so nothing else
        has to wake it. Once it is the head no more, its bell is taken away, and it gets its right as every waiter does.
        """
        queue = claim.queue
        if queue is None or queue.bell is None:
            await self._sleep(claim, until, asked)
            return
        asked.sleeping = scope = CancelScope(deadline=anyio.current_time() + (until - _clock.clock.now()))
        with scope:
            await _rung(queue)
        asked.sleeping = None

    @_effects.change
    def _look(self, leader: FileClaim) -> float:
        """As `_look_at_all`; an exception in the middle leaves nothing half done."""
        try:
            return self._look_at_all(leader)
        except BaseException:
            self._interrupted()
            raise

    def _look_at_all(self, leader: FileClaim) -> float:
        """Look at every file that another process holds; returns the instant of the next look.

        A failing lock call is the error of the claim it was made for.
        """
        if leader.queue is not None:
            leader.queue.listen()  # before the look: a wake-up may come in between
        now, due = _clock.clock.now(), math.inf
        several = len(self.competing)
        soon, apart = (now + _TOGETHER_S, several * self._between_looks) if several > 1 else (now, 0.0)
        looked = 0
        for queue, entry in list(self.competing.items()):
            if soon >= queue.next_poll:
                first, looked = next(iter(queue.waiting)), looked + 1
                try:
                    with queue.mutex:
                        granted = queue.poll()
                except Exception as error:
                    first.failed = error
                    if first.changed is not None:
                        first.changed.set()
                    queue.next_poll = math.inf
                    continue
                if granted is None and queue.admitted is not None:
                    granted = self._let_in(entry, queue)
                if granted is not None:
                    if granted.state is HELD:
                        self._granted(granted)
                    elif granted.changed is not None:
                        granted.changed.set()
                    self.update(entry, queue)
                    continue
                queue.next_poll = max(queue.next_poll, now + apart)
            due = min(due, queue.next_poll)
        if several > 1 and looked:
            took_s = (_clock.clock.now() - now) / looked
            self._between_looks = min(max(_BETWEEN_LOOKS_S, took_s / _LOOKS_SHARE), _BETWEEN_MOST_S)
        return due


async def _rung(queue: FileQueue) -> None:
    bell = queue.bell
    assert bell is not None
    bell.heeded = True
    try:
        await anyio.wait_readable(bell.socket)
    except ClosedResourceError:
        return
    finally:
        bell.heeded = False
    queue.woken()


def failure(path: str, error: Exception) -> TranscriptError:
    """Why a waiter cannot go on, as a typed error with the path; an engine of the user's may raise anything."""
    if isinstance(error, TranscriptError):
        return error
    if isinstance(error, OSError):
        failed = cannot("lock", path, error)
    else:
        failed = TranscriptError(f"cannot lock {path}: {described(error)}", path=path)
    failed.__cause__ = error
    return failed
