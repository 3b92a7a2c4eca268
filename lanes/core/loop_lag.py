"""How late the event loop was, as the scheduler asks for it: a watchdog answers; without one, the loop is in time."""

from __future__ import annotations

from typing import Protocol

REPORTED_S = 0.05
"""A deadline that is acted upon later than this is reported as late."""


class Lateness(Protocol):
    """Why the loop was late, and for how long it did not get on. Instants are those of the floors' clock."""

    def why_late(self, due: float, now: float) -> str:
        """Why something that was due came late, in words; empty when that is not known."""

    def stood_still_s(self, since: float, now: float) -> float:
        """Seconds since then in which no code of the loop could run, but for the code that blocked it."""


class Unwatched:
    """No watchdog runs, so nothing is known."""

    def why_late(self, due: float, now: float) -> str:  # noqa: ARG002 -- the shape of the seam
        """Not known."""
        return ""

    def stood_still_s(self, since: float, now: float) -> float:  # noqa: ARG002 -- the shape of the seam
        """As far as is known."""
        return 0.0


def late_reason(lateness: Lateness, due: float, now: float) -> str:
    """What to add to the reason of a deadline: nothing when it was acted upon in time."""
    if now - due < REPORTED_S:
        return ""
    why = lateness.why_late(due, now)
    return f", {now - due:.2f} s late" + (f": {why}" if why else "")
