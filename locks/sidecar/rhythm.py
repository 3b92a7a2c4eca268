"""When a foreign gateway that takes its lock file again and again is about to let go of it.

Such a gateway has no queue. One that has more to do takes its file again within microseconds, and a waiter that looks
every 50 ms never sees the path free. But most of them hold for about as long each time. So once a waiter was overtaken,
that is, once one foreign file has followed another while it waited, the holds are measured, and the waiter looks again
and again around the instant at which the next one should end. No I/O here: instants in, instants out.

What is overtaken also counts: see `may_follow`.
"""

from __future__ import annotations

from collections import deque

from .._os import FileId

POLL_S = 0.05
"""How often a foreign lock file is looked at while nothing is known of it; the other side does the same."""
LEAST_S = 0.001
_SHARE = 0.05  # of its age, between two looks while holds are being measured
_KEPT = 8
_BEFORE_S, _BEHIND_S = 0.0025, 0.0025  # timers are up to a millisecond late, and files state theirs in milliseconds
_WIDEST_S = 0.012  # between the shortest and the longest hold that one instant can be expected from
_ROUNDED_S = 1e-6  # what sums of instants may be wrong by: a look is not due again at the very instant of the last one
_BURST = 48
"""Looks without a pause around that instant; then the holds are not as regular as they seemed."""
TRIES = 40
"""Attempts of each of them, of some microseconds each: the loop is kept for about 0.2 ms."""
OURS_PER_THEIRS = 0.5
_MOST_FOLLOWING = 16.0


class Rhythm:
    """What is known of the foreign holds of one path. Belongs to one registry; lives on between its leases."""

    def __init__(self) -> None:
        self._file: tuple[FileId, bytes] | None = None
        """The lock file that was seen last, in this wait."""
        self._began_at = self._seen_at = 0.0
        self._holds: deque[float] = deque(maxlen=_KEPT)
        """How long the last ones took."""
        self._overtaken = False
        self._burst = 0
        self._owed = 0.0

    def saw(self, file: tuple[FileId, bytes], age_s: float, now: float) -> None:
        """Note that a foreign lock file stands there, which says that it is so old."""
        before, began_before, seen_before = self._file, self._began_at, self._seen_at
        self._seen_at = now
        if file == before:
            return
        self._file, self._began_at, self._burst = file, now - age_s, 0
        if before is None:
            return
        # Whatever its clock says, it began after the other one was last seen.
        self._began_at = min(max(self._began_at, seen_before), now)
        self._overtaken = True
        self._owed = min(self._owed + OURS_PER_THEIRS, _MOST_FOLLOWING)
        took_s = self._began_at - began_before
        if now - seen_before < took_s / 2:  # else there may have been others in between
            self._holds.append(took_s)

    def next_look(self, now: float) -> tuple[float, int]:
        """When to look again, and how often to try then without a pause."""
        if not self._overtaken and not self._holds:
            return now + POLL_S, 1
        age_s = now - self._began_at
        if not self._holds:
            return now + _pause(age_s * _SHARE), 1
        in_order = sorted(self._holds)
        least, usual = in_order[0], in_order[len(in_order) * 3 // 4]  # the longest ones something else has delayed
        first, last = least - _BEFORE_S, usual + _BEHIND_S
        if first - age_s > _ROUNDED_S:
            return min(self._began_at + first, now + POLL_S), 1
        if age_s > last:
            return now + _pause((age_s - last) * _SHARE), 1
        if age_s > least + _BEHIND_S or usual - least > _WIDEST_S or self._burst >= _BURST:
            return now + LEAST_S, 1
        self._burst += 1
        return now, TRIES

    def ended(self) -> None:
        """We have it now, or do not wait any more: what comes next follows nothing that was seen."""
        self._file = None
        self._overtaken = False

    def may_follow(self) -> bool:
        """Whether a hold of ours may follow another one without a gap, because we were overtaken often enough."""
        if self._owed < 1.0:
            return False
        self._owed -= 1.0
        return True


def _pause(wanted_s: float) -> float:
    return min(max(wanted_s, LEAST_S), POLL_S)
