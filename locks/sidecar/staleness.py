"""Whether a lock file is a left-over, and why. No I/O but the questions that `Here` is made with.

The idea. A foreign lock file is all that there is to go by, so it is judged as its own program judges it: is the owner
gone, does another process have its number, is it older than it may get? A lock file of ours says nothing that the
kernel lock does not say better: the holder of that lock knows that no other process has it, and neither the number of a
process nor any age can make it more or less true.

The wall clock may be set, by an hour or by fifty years, and lock files state wall time. So an age is taken against two
clocks, the wall as it is now and the wall as this process has carried it along since its start, and the smaller one
counts; an instant in the future has the age 0. A clock that was set after this process was started can make no lock
look older than it is. It can make it look younger, and so that this cannot wedge a session, the time for which a
process has watched the very same file, by the monotonic clock, counts as well: it is at least that old.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from ..process import Identity
from .payload import MAX_HOLD_MS, Payload

LONGEST_S = MAX_HOLD_MS / 1000
OWN_MARGIN_S = 5.0
"""How much older than any hold of ours a lock file may be that names this process, which knows nothing of it."""
UNREADABLE_S = 30.0
"""How long an empty or unreadable file may be one that is just being written. Foreign gateways allow 5 s."""
_START_MARGIN_S = 1.0  # ticks and milliseconds are rounded


@dataclass(frozen=True, slots=True)
class Here:
    """What is known from where the judgement is made."""

    me: Identity
    my_age_s: Callable[[], float | None]
    """How long this process has lived."""
    wall: float
    """The wall clock now, in seconds."""
    carried: float
    """What it would be if it had not been set since this process was started."""
    is_alive: Callable[[int], bool]
    starttime: Callable[[int], int | None]

    def age_of(self, instant: float) -> float:
        """How long ago an instant of the wall clock was, by the clock that makes it less; never negative."""
        return max(0.0, min(self.wall, self.carried) - instant)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a lock file may be removed."""

    stale: bool
    reason: str
    """In words for an operator; follows upon "it is stale: " or "it is held: "."""
    age_s: float
    """How old it is, as far as is known."""
    limit_s: float
    """How old it may get by its own word."""


class _Place(Enum):
    HERE = "here"
    BESIDE = "in another container on this kernel"
    BEFORE = "on this machine, before it was started anew"
    ELSEWHERE = "on another machine"


def judge(
    payload: Payload | None,
    *,
    here: Here,
    age_of_file_s: float,
    seen_for_s: float,
    locked: bool = False,
    marked: bool = False,
    we_hold_s: float = LONGEST_S,
    is_open: Callable[[], bool] = lambda: False,
) -> Verdict:
    """Judge a lock file.

    Args:
        payload: what it says; `None` if it is empty or cannot be parsed.
        age_of_file_s: since it was last changed, by `Here.age_of`.
        seen_for_s: for how long the caller has watched the same file with the same content.
        locked: whether the caller holds the kernel lock of the session. Then a lock file of lanes is stale at once;
            without, it is judged by the process it names, and never by its age.
        marked: whether lanes created it, even if it could not say so any more.
        we_hold_s: how long the caller, had it the lock, would hold it at most.
        is_open: whether this process has the file open, as most holders do: then something else in it may hold.
    """
    if payload is None and marked and locked:
        return Verdict(True, "a process of ours died before it had written it", age_of_file_s, UNREADABLE_S)
    if payload is None:
        age_s = max(age_of_file_s, seen_for_s)
        if age_s > UNREADABLE_S:
            return Verdict(True, f"it has been unreadable and unchanged for {age_s:.1f} s", age_s, UNREADABLE_S)
        return Verdict(False, "it is unreadable, and may be about to be written", age_s, UNREADABLE_S)
    age_s = max(0.0 if payload.created_at is None else here.age_of(payload.created_at), seen_for_s)
    limit_s = LONGEST_S if payload.max_hold_ms is None else min(payload.max_hold_ms / 1000, LONGEST_S)
    place = _place_of(payload, here.me)
    stale, reason = _judge(payload, here, place, age_s, limit_s, locked)
    if not stale and payload.instance is None and payload.pid == here.me.pid and place is _Place.HERE:
        # No run of ours has it, for those write their instance. Another library of this process may.
        our_limit_s = we_hold_s + OWN_MARGIN_S
        if our_limit_s < limit_s and not is_open():
            stale, limit_s = age_s > our_limit_s, our_limit_s
            if stale:
                reason = (
                    f"it names process {payload.pid}, this one, which does not hold it, and is {age_s:.1f} s old: "
                    f"longer than {our_limit_s:.1f} s nothing here would"
                )
    return Verdict(stale, reason, age_s, limit_s)


def _judge(payload: Payload, here: Here, place: _Place, age_s: float, limit_s: float, locked: bool) -> tuple[bool, str]:
    if place is _Place.BEFORE:
        return True, "this machine was started anew since it was written"
    if payload.instance is not None and place is not _Place.ELSEWHERE:
        return _judge_ours(payload, here, place, locked)
    if place is _Place.HERE:
        gone = _gone(payload, here)
        if gone is not None:
            return True, gone
        if payload.created_at is None:
            return True, "it does not say when it was written"
        if payload.pid == here.me.pid and payload.starttime is None:
            # The number is ours, as 7 is after each restart of a container; the lock is if it is younger than we are.
            my_age_s = here.my_age_s()
            if my_age_s is not None and age_s > my_age_s + _START_MARGIN_S:
                return True, f"it was written before process {payload.pid}, this one, was started"
    if age_s > limit_s:
        what = "30 min" if limit_s == LONGEST_S else f"its maxHoldMs of {limit_s:.1f} s"
        return True, f"it is {age_s:.1f} s old, which is more than {what}"
    if place is _Place.HERE:
        return False, f"process {payload.pid} is alive"
    return (
        False,
        f"it was written {place.value} ({payload.host or 'unnamed'}), whose processes cannot be seen from here",
    )


def _judge_ours(payload: Payload, here: Here, place: _Place, locked: bool) -> tuple[bool, str]:
    """A lock file of lanes, on this kernel."""
    if locked:
        return True, f"process {payload.pid} does not hold the kernel lock of the session any more"
    if place is _Place.BESIDE:
        return False, f"it was written {place.value} ({payload.host}); whether it is held, the kernel lock says"
    if payload.instance == here.me.instance:
        return False, "this very process wrote it"
    gone = _gone(payload, here)
    if gone is not None:
        return True, gone
    if payload.pid == here.me.pid:
        return True, f"process {payload.pid}, this one, wrote it before it executed another program"
    return False, f"process {payload.pid} is alive; whether it holds the session, the kernel lock says"


def _gone(payload: Payload, here: Here) -> str | None:
    """Why the owner, a process of this machine, exists no more; `None` if it does."""
    if payload.pid is None:
        return "it names no process"
    if not here.is_alive(payload.pid):
        return f"process {payload.pid} is dead"
    if payload.starttime is not None:
        now = here.me.starttime if payload.pid == here.me.pid else here.starttime(payload.pid)
        if now is not None and now != payload.starttime:
            return f"process {payload.pid} is another one now, started at another time"
    return None


def _place_of(payload: Payload, me: Identity) -> _Place:
    same_host = payload.host is None or payload.host == me.host
    if payload.boot_id is None or me.boot_id is None:
        return _Place.HERE if same_host else _Place.ELSEWHERE
    if payload.boot_id == me.boot_id:
        return _Place.HERE if same_host else _Place.BESIDE
    return _Place.BEFORE if payload.host == me.host else _Place.ELSEWHERE
