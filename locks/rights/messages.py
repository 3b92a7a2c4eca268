"""Errors that name the holder of a right: lane, run, process, since when, until when.

The name of a holder in another process is on disk, beside the session.
"""

from __future__ import annotations

from .. import _clock
from ..errors import LeaseLost, LeaseTimeout, RunEnded, Superseded
from .claim import HELD
from .guard import Named
from .open_file import FileClaim, FileQueue


def timed_out(path: str, claim: FileClaim, waited_s: float) -> LeaseTimeout:
    """The error for a claim that has waited for as long as it may."""
    queue = claim.queue
    assert queue is not None
    other = "process" if queue.ordered else "registry of this process"
    found = _here(queue) or (queue.names.holder_elsewhere(path) if queue.names is not None else None)
    holder, remaining_s, words = found or Named(None, None, f"another {other} holds it")
    if queue.admitted is None and queue.holder is None:
        words += ", or others that waited longer"
    elif holder is None and queue.admitted is not None:
        words = "it is free, but foreign gateways that may wait are left a gap first (yield_to_foreign)"
    return LeaseTimeout(
        f"waited {waited_s:.3f} s for {path}: {words}",
        path=path,
        waited_s=waited_s,
        holder=holder,
        remaining_s=remaining_s,
    )


def superseded(path: str, loser: FileClaim, winner: FileClaim) -> Superseded:
    """The error for a holder that a newcomer takes over from."""
    message = f"{loser.holder} lost {path}: superseded by {winner.holder}"
    return Superseded(message, path=path, holder=loser.holder, by=winner.holder)


def left_while_writing(claim: FileClaim) -> LeaseLost:
    """The error for later writes of a block that was left while a thread of it was writing."""
    kind = LeaseLost if claim.fence is None else RunEnded
    message = f"{claim.holder} has left {claim.path}, while a thread of it was writing"
    return kind(message, path=claim.path, holder=claim.holder)


def name_successor(claim: FileClaim) -> None:
    """Have the error of a claim that was taken away name the holder that the right has now, if it has one."""
    error, queue = claim.lost, claim.queue
    if error is None or queue is None or error.by is not None:
        return
    named = _here(queue)
    if named is None and not queue.locked and queue.names is not None:
        named = queue.names.holder_elsewhere(claim.path, left_by=claim)
    if named is not None:
        error.by = named.holder
        error.args = (f"{error.args[0]}; now {named.words}", *error.args[1:])


def _here(queue: FileQueue) -> Named | None:
    """The holder of a right in this process."""
    claim = queue.holder
    if claim is None or claim.state is not HELD:
        return None
    remaining_s = claim.time.remaining()
    left = "without a limit" if remaining_s is None else f"for at most {remaining_s:.3f} s more"
    words = f"{claim.holder} holds it, since {_clock.clock.now() - claim.time.acquired_at:.3f} s, {left}"
    return Named(claim.holder, remaining_s, words)
