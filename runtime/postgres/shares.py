"""In which proportion a node claims sessions of the three classes: as a group shares out its slots."""

from __future__ import annotations

from lanes.checks import Priority
from lanes.queues.groups import HANDICAP_S, STRIDE

AFTER_S = [HANDICAP_S[one] for one in Priority]
"""Seconds for which each class leaves sessions to more urgent ones."""


class Shares:
    """How many sessions of each class are claimed first, so that none waits for ever: the shares of the slots."""

    def __init__(self) -> None:
        self._passed = dict.fromkeys(Priority, 0)

    def of(self, room: int) -> list[int]:
        """The shares in so many sessions, by class; what a class does not need, the most urgent ones get."""
        shares = dict.fromkeys(Priority, 0)
        for _ in range(room):
            least = min(Priority, key=self._passed.__getitem__)
            self._passed[least] += STRIDE[least]
            shares[least] += 1
        return list(shares.values())
