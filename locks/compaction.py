"""`Lease.replace`: the steps of putting a new file in the place of a session's, and what moves along with it.

The lock bytes belong to the inode, so a rename takes the session away from under whoever locked the old one. Therefore
both rights are locked on the new file before it gets the name, and no turn of another process may be under way: it
would go on with a lock on a file that nobody opens any more, beside whoever takes the turn of the new one. While such a
turn lasts, the lease gives way, so that the turn can write and end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from anyio import to_thread

from . import _clock, _os
from .claim import Claim
from .engines.bell import FileId
from .engines.seam import ProcessLock, Right
from .entry import Entry, cannot
from .errors import DeadlockError, LeaseLost
from .transcript.records import Position
from .transcript.replacing import Draft, complete, discard, prepare, write_aside
from .transcript.syncing import sync_directory

if TYPE_CHECKING:
    from .lease import Lease
    from .registry import LockRegistry


async def replace(
    registry: LockRegistry, lease: Lease, data: bytes, through: Position | None, read_to: Position | None
) -> Position:
    """Put encoded records in the place of what a lease's session had up to a position. A checkpoint.

    Cancelled before the new file is in place, the old one stands; afterwards, the new one.

    Raises:
        TranscriptError, LeaseLost, DeadlockError: the old file stands, unless the message says otherwise.
    """
    turn: Claim | None = None
    try:
        while True:
            claim = lease.claim
            entry = _entry_of(claim)
            with entry.mutex:
                claim.check(lease.path)
                draft = prepare(entry, lease.path, through, read_to, lease.header)
            try:
                await _in_thread(registry, partial(write_aside, draft, data))
                placed = put_in_place(registry, claim, entry, draft)
            finally:
                if draft.abandon():
                    discard(draft)
            if placed is not None:
                await _sync_name(registry, draft.target)
                return placed
            turn = await _give_way(registry, lease)
    finally:
        if turn is not None:
            registry.release(turn)


async def _in_thread(registry: LockRegistry, call: Callable[[], None]) -> None:
    # Abandoned when cancelled: a disk that hangs must not keep a run past its grace.
    await to_thread.run_sync(call, abandon_on_cancel=True, limiter=registry.limiter())


async def _sync_name(registry: LockRegistry, target: str) -> None:
    try:
        await _in_thread(registry, partial(sync_directory, target))
    except OSError as error:
        what = "(it is replaced, which may not survive a power cut:) sync the directory of"
        raise cannot(what, target, error) from error


def put_in_place(registry: LockRegistry, claim: Claim, entry: Entry, draft: Draft) -> Position | None:
    """Rename the new file into place and move the entry along; `None` while another process conducts the session.

    Synchronous: nothing can come between the locks, the name and the entry.

    Raises:
        TranscriptError, LeaseLost: nothing has changed.
    """
    path = claim.path
    try:
        with entry.mutex:
            claim.check(path)
            if not entry.is_at(path):
                raise LeaseLost(f"{path} was replaced or removed while it was held", path=path, holder=None)
            complete(draft, entry)
            locks = _lock_both(entry, draft)
            if locks is None:
                return None
            file_id = draft.file_id
            try:
                _os.rename(draft.path, draft.target)
            except OSError:
                _unlock_borrowed(entry)
                raise
            _move(registry, entry, draft, locks, file_id)
    except OSError as error:
        raise cannot("replace", path, error) from error
    return Position(draft.size, file_id)


def _lock_both(entry: Entry, draft: Draft) -> dict[Right, ProcessLock] | None:
    """Lock both rights on the new file; `None` if another process has the turn on the old one."""
    turn = entry.queue(Right.TURN)
    if turn.lock is None:
        return {}
    if not turn.locked and not turn.lock.try_lock():
        return None
    found = {}
    for right in Right:
        lock = entry.queue(right).lock
        assert lock is not None
        found[right] = lock.follow(draft.fd, draft.file_id)
    return found


def _unlock_borrowed(entry: Entry) -> None:
    turn = entry.queue(Right.TURN)
    if turn.lock is not None and not turn.locked:
        turn.lock.unlock()


def _move(registry: LockRegistry, entry: Entry, draft: Draft, locks: dict[Right, ProcessLock], file_id: FileId) -> None:
    """Have the entry go on with the file that has the name now. What fails here is only noted: there is no way back."""
    old_fd, new_fd, draft.fd = entry.fd, draft.fd, -1
    registry.moved(entry, new_fd, file_id)
    entry.sealed_size = draft.size
    for right, new in locks.items():
        queue = entry.queue(right)
        old, locked = queue.lock, queue.locked
        queue.move(new, locked=locked)
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


async def _give_way(registry: LockRegistry, lease: Lease) -> Claim:
    """Let the turn of another process write and end; returns the turn, which then is ours, with the lease.

    Others may append meanwhile, so what is kept is decided anew afterwards.
    """
    claim = lease.claim
    if claim.handles > 1:
        raise DeadlockError(
            f"{lease.path} cannot be replaced while another process conducts the session and an outer block holds the "
            "lease: the turn could not end",
            path=lease.path,
        )
    left = claim.deadline - _clock.clock.now()
    wait = None if left == math.inf else max(0.0, left)
    registry.release(claim)
    turn = registry.new_claim(claim.given_holder, math.inf, fence=claim.fence, bound=claim.bound)
    turn = await registry.acquire(lease.path, Right.TURN, turn, wait)
    try:
        await lease.take_again(claim)
    except BaseException:
        registry.release(turn)
        raise
    return turn


def _entry_of(claim: Claim) -> Entry:
    entry = claim.entry
    if entry is None:
        raise LeaseLost(f"{claim.holder} does not hold {claim.path}", path=claim.path, holder=claim.holder)
    return entry
