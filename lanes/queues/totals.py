"""Running totals of a lane or a group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..run import Outcome, RunState

ENDED = tuple(state for state in RunState if state.ended)


class Tally:
    """What has ended since the start, and how long it waited and ran."""

    __slots__ = ("dropped", "longest_wait_s", "outcomes", "ran_s", "retries", "waited_s")

    def __init__(self) -> None:
        self.outcomes: dict[RunState, int] | None = None  # made when something ends: most lanes are young
        self.waited_s = 0.0
        self.ran_s = 0.0
        self.longest_wait_s = 0.0
        self.dropped = 0
        self.retries = 0

    def add(self, outcome: Outcome) -> None:
        """Count a run that has ended."""
        outcomes = self.outcomes
        if outcomes is None:
            outcomes = self.outcomes = {}
        outcomes[outcome.state] = outcomes.get(outcome.state, 0) + 1
        waited = outcome.waited_s
        self.waited_s += waited
        self.ran_s += outcome.ran_s
        self.longest_wait_s = max(self.longest_wait_s, waited)

    def frozen(self) -> Totals:
        """The totals at this instant."""
        outcomes = self.outcomes or {}
        return Totals(
            outcomes={state.value: outcomes.get(state, 0) for state in ENDED},
            waited_s=self.waited_s,
            ran_s=self.ran_s,
            longest_wait_s=self.longest_wait_s,
            dropped=self.dropped,
            retries=self.retries,
        )


@dataclass(frozen=True, slots=True)
class Totals:
    """Totals of a lane or a group, of the runs that have ended."""

    outcomes: Mapping[str, int]
    """How many ended in each state: `done`, `failed`, `timed_out`, `cancelled`, `superseded`, `abandoned`."""
    waited_s: float
    """Seconds that they waited, together."""
    ran_s: float
    """Seconds that they ran, together."""
    longest_wait_s: float
    """The longest wait of a run, in seconds."""
    dropped: int
    """How many were dropped from a full queue; their outcomes say so, and they count as cancelled."""
    retries: int
    """How many attempts were followed by another attempt."""
