"""`Lease.replace`: the steps of putting a new file in the place of a session's, and what moves along with it.

The lock bytes belong to the inode, so a rename takes the session away from under its holder. Therefore
both rights are locked on the new file before it gets the name, and no turn of another process may be under way: it
would go on with a lock on a file that no process opens any more, beside the holder of the turn of the new one. While
such a turn lasts, the lease gives way, so that the turn can write and end.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Protocol

from anyio import sleep

from .. import _clock, _os
from .._loop import current_task
from .._threads import in_thread
from ..engines.interface import ProcessLock, Right
from ..errors import DeadlockError, LeaseLost, TranscriptError
from ..rights.arbiter import Arbiter
from ..rights.claim import without
from ..rights.open_file import Entry, FileClaim, cannot
from .appending import check_in_place
from .records import Position
from .replacing import Draft, is_complete, prepare, write_aside
from .syncing import GroupSync, sync_directory

_A_WRITE_S = 0.005


class Leased(Protocol):
    """A write lease, as it is needed here."""

    path: str
    header: bytes | None

    @property
    def claim(self) -> FileClaim:
        """What it holds."""

    async def take_again(self, old: FileClaim) -> None:
        """Take the right again, for what is left of its time, after `old` was given back inside the block."""


async def replace(
    arbiter: Arbiter,
    syncs: GroupSync,
    lease: Leased,
    data: bytes,
    through: Position | None,
    read_to: Position | None,
    *,
    under: FileClaim | None = None,
) -> Position:
    """Put encoded records in the place of what a lease's session had up to a position. A checkpoint.

    Cancelled before the new file is in place, the old one stands; afterwards, the new one.

    Args:
        under: the turn that must still be held when the new file gets the name.

    Raises:
        TranscriptError, LeaseLost, LeaseTimeout, DeadlockError: the old file stands, unless the message says otherwise.
    """
    turn: FileClaim | None = None
    try:
        while True:
            claim = lease.claim
            entry = _entry_of(claim)
            mutex = entry.queue(Right.WRITE).mutex
            while mutex.locked():  # a thread of the lease writes, and may hang; the loop has other sessions to serve
                await sleep(_A_WRITE_S)
            with mutex:
                claim.check(lease.path)
                if under is not None:
                    check_in_place(_entry_of(under), lease.path)  # else it would wait for this very turn, as another's
                draft = prepare(entry, lease.path, through, read_to, lease.header)
            try:
                placed = await _place(arbiter, syncs, claim, entry, draft, data, under)
            finally:
                draft.discard()
            if placed is not None:
                await _sync_name(draft.target)
                return placed
            _leave(arbiter, turn)
            turn = await _give_way(arbiter, lease)
    finally:
        _leave(arbiter, turn)


async def _place(
    arbiter: Arbiter,
    syncs: GroupSync,
    claim: FileClaim,
    entry: Entry,
    draft: Draft,
    data: bytes,
    under: FileClaim | None,
) -> Position | None:
    """Write the new file and put it in place; `None` while another process conducts the session."""
    while True:
        await in_thread(partial(write_aside, draft, data))
        try:
            with entry.queue(Right.WRITE).mutex, entry.queue(Right.TURN).mutex:
                for one in (claim, under):
                    if one is not None:
                        one.check(claim.path)
                for name in (claim.path, draft.target):
                    check_in_place(entry, name)
                if is_complete(draft, entry):
                    return _rename(arbiter, syncs, entry, draft)
        except OSError as error:
            raise cannot("replace", claim.path, error) from error
        data = b""  # another round, for what the threads of the lease have appended; its deadline bounds them


async def _sync_name(target: str) -> None:
    try:
        await in_thread(partial(sync_directory, target))
    except OSError as error:
        raise TranscriptError(
            f"{target} is replaced, but that may not survive a power cut: cannot sync its directory: "
            f"{error.strerror or error}",
            path=target,
            errno=error.errno,
        ) from error


def _rename(arbiter: Arbiter, syncs: GroupSync, entry: Entry, draft: Draft) -> Position | None:
    """Rename the new file into place and move the entry along; `None` while another process conducts the session.

    Synchronous, and called with the mutex held: nothing can come between the locks, the name and the entry.

    Raises:
        OSError: nothing has changed.
    """
    turn = entry.queue(Right.TURN)
    borrowed = turn.lock is not None and not turn.locked
    if turn.lock is not None and borrowed and not turn.lock.try_lock():
        return None
    try:
        locks = _follow(entry, draft)
        _os.rename(draft.path, draft.target)
    except BaseException:
        if turn.lock is not None and borrowed:
            turn.lock.unlock()
        raise
    _move(arbiter, syncs, entry, draft, locks)
    return Position.behind(draft.end, draft.size, draft.file_id)


def _follow(entry: Entry, draft: Draft) -> dict[Right, ProcessLock]:
    """Both rights, locked on the new file too; they go with its descriptor."""
    found = {}
    for right in Right:
        lock = entry.queue(right).lock
        if lock is not None:
            found[right] = lock.follow(draft.fd, draft.file_id)
    return found


def _move(arbiter: Arbiter, syncs: GroupSync, entry: Entry, draft: Draft, locks: dict[Right, ProcessLock]) -> None:
    """Have the entry go on with the file that has the name now. What fails here is only noted: there is no way back."""
    old_fd = entry.fd
    arbiter.files.moved(entry, draft.hand_over(), draft.file_id)
    syncs.forget(draft.file_id)
    entry.sealed_size = draft.size
    for right, new in locks.items():
        queue = entry.queue(right)
        old, locked = queue.lock, queue.locked
        failed = queue.move(new, locked=locked)
        if failed is not None and failed.changed is not None:
            failed.changed.set()
        try:
            if old is not None and new is not old:
                old.unlock()  # a duplicate of the descriptor may still be in use, and would keep it locked
            if not locked:
                new.unlock()
        except OSError as error:
            queue.trouble = error
    if old_fd is not None:
        try:
            _os.close(old_fd)
        except OSError as error:
            entry.note("close_failed", path=entry.path, error=str(error))


async def _give_way(arbiter: Arbiter, lease: Leased) -> FileClaim:
    """Let the turn of another process write and end; returns the turn, which then is ours, with the lease.

    Others may append meanwhile, so what is kept is decided again afterwards. Failed or cancelled, nothing is held.
    """
    claim = lease.claim
    if claim.handles > 1:
        raise DeadlockError(
            f"{lease.path} cannot be replaced while another process conducts the session and an outer block holds the "
            "lease: the turn could not end",
            path=lease.path,
        )
    left = claim.time.deadline - _clock.clock.now()
    wait = None if left == math.inf else max(0.0, left)
    arbiter.release(claim)
    me = current_task()
    turn = arbiter.new_claim(claim.given_holder, math.inf, fence=claim.fence, bound=claim.time.bound)
    turn = await arbiter.acquire(lease.path, Right.TURN, turn, wait, task=me, gives_up=False)
    try:
        await lease.take_again(claim)
    except BaseException:
        _leave(arbiter, turn)
        raise
    return turn


def _leave(arbiter: Arbiter, turn: FileClaim | None) -> None:
    if turn is not None:
        turn.tasks = without(turn.tasks, current_task())
        arbiter.release(turn)


def _entry_of(claim: FileClaim) -> Entry:
    entry = claim.entry
    if entry is None:
        raise LeaseLost(f"{claim.holder} does not hold {claim.path}", path=claim.path, holder=claim.holder)
    return entry
