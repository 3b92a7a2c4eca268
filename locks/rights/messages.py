"""Errors that name the holder: lane, run, process, since when, until when.

Where another process has the right, its name is on disk, beside the session.
"""

from __future__ import annotations

from .. import _clock, process
from ..engines.interface import Right
from ..errors import LeaseLost, LeaseTimeout, RunEnded, Superseded, TranscriptError
from ..holder import Holder
from ..sidecar import lockfile, turn_note
from .claim import Claim, ClaimState
from .queue import RightQueue

_Told = tuple[Holder | None, float | None, str]
"""A holder, the seconds for which it may go on, and both in words."""


def timed_out(path: str, claim: Claim, waited_s: float) -> LeaseTimeout:
    """The error for a claim that has waited for as long as it may."""
    queue = claim.queue
    assert queue is not None
    other = "process" if queue.ordered else "registry of this process"
    holder, remaining_s, told = _here(queue) or _elsewhere(path, queue) or (None, None, f"another {other} holds it")
    if queue.admitted is None and queue.holder is None:
        told += ", or others that waited longer"
    elif holder is None and queue.admitted is not None:
        told = "it is free, but foreign gateways that may wait are left a gap first (yield_to_foreign)"
    return LeaseTimeout(
        f"waited {waited_s:.3f} s for {path}: {told}",
        path=path,
        waited_s=waited_s,
        holder=holder,
        remaining_s=remaining_s,
    )


def superseded(path: str, loser: Claim, winner: Claim) -> Superseded:
    """The error for a holder that a newcomer takes over from."""
    message = f"{loser.holder} lost {path}: superseded by {winner.holder}"
    return Superseded(message, path=path, holder=loser.holder, by=winner.holder)


def left_while_writing(claim: Claim) -> LeaseLost:
    """The error for later writes of a block that was left while a thread of it was writing."""
    kind = LeaseLost if claim.fence is None else RunEnded
    message = f"{claim.holder} has left {claim.path}, while a thread of it was writing"
    return kind(message, path=claim.path, holder=claim.holder)


def name_successor(claim: Claim) -> None:
    """Have the error of a claim that was taken away say who has the right now, if somebody does."""
    error, queue = claim.lost, claim.queue
    if error is None or queue is None or error.by is not None:
        return
    told = _here(queue)
    if told is None and not queue.locked:
        told = _elsewhere(claim.path, queue, left_by=claim)
    if told is not None:
        error.by = told[0]
        error.args = (f"{error.args[0]}; now {told[2]}", *error.args[1:])


def _here(queue: RightQueue) -> _Told | None:
    """Who has a right in this process."""
    claim = queue.holder
    if claim is None or claim.state is not ClaimState.HELD:
        return None
    remaining_s = claim.remaining()
    left = "without a limit" if remaining_s is None else f"for at most {remaining_s:.3f} s more"
    told = f"{claim.holder} holds it, since {_clock.clock.now() - claim.acquired_at:.3f} s, {left}"
    return claim.holder, remaining_s, told


def _elsewhere(path: str, queue: RightQueue, left_by: Claim | None = None) -> _Told | None:
    """Who has a right in another process, as far as the files beside the session say.

    Args:
        left_by: whose own files do not count: they may still be there.
    """
    if queue.guard is None:
        return None
    if queue.right is Right.TURN:
        named = turn_note.read(path)
        if named is None or named.pid is None or _is_of(left_by, named.instance, named.epoch):
            return None
        holder = Holder(named.lane, named.run_id, named.pid)
        return holder, None, f"{holder} holds it"
    try:
        found = queue.guard.other or lockfile.find(path)
    except (OSError, TranscriptError):
        return None
    if found is None or (found.payload is not None and _is_of(left_by, found.payload.instance, found.payload.epoch)):
        return None
    told = f"{found.who} holds it, since {found.held_s:.3f} s, for at most {found.remaining_s:.3f} s more"
    return found.holder, found.remaining_s, told


def _is_of(claim: Claim | None, instance: str | None, epoch: int | None) -> bool:
    return claim is not None and instance == process.me().instance and epoch == claim.epoch
