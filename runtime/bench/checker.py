"""Whether two holders were ever in at the same time. Shares no code with any lock; every run of every peer is checked.

In one process a `Witness` counts who is in. Between processes the holds are compared as intervals of the monotonic
clock, which all processes of a host share: a holder reads it after it has got the lock and before it gives it back, so
intervals that overlap prove that both were in.
"""

from __future__ import annotations

from collections.abc import Iterable


class Witness:
    """Counts the holders that are in, by key, and the violations: entries while another holder was in."""

    __slots__ = ("_inside", "violations")

    def __init__(self) -> None:
        self._inside: dict[str, int] = {}
        self.violations = 0

    def enter(self, key: str) -> None:
        """A holder is in."""
        inside = self._inside.get(key, 0)
        self.violations += inside > 0
        self._inside[key] = inside + 1

    def leave(self, key: str) -> None:
        """That holder is about to leave."""
        self._inside[key] -= 1


def overlaps(holds: Iterable[tuple[float, float]]) -> int:
    """How many holds, each from one instant to another, began while an earlier one lasted."""
    found, last_end = 0, float("-inf")
    for begin, end in sorted(holds):
        found += begin < last_end
        last_end = max(last_end, end)
    return found
