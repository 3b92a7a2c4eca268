"""What a supervisor holds at an instant: frozen, counted afresh from the state itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lanes.scheduler import Scheduler
from locks import RegistryStatistics

from .lag import Quantiles


@dataclass(frozen=True, slots=True)
class LaneStatistics:
    """One live lane."""

    running: int
    queued: int
    capacity: int
    oldest_wait_s: float
    """How long the longest-waiting run has waited; 0 when none does."""


@dataclass(frozen=True, slots=True)
class GroupStatistics:
    """One group."""

    running: int
    """Slots taken."""
    slots: int
    reserve: int


@dataclass(frozen=True, slots=True)
class Statistics:
    """A supervisor at an instant."""

    lanes: Mapping[str, LaneStatistics]
    """The live ones, by name."""
    groups: Mapping[str, GroupStatistics]
    runs: Mapping[str, int]
    """Runs by state: `queued` and `running` now, the others since the start."""
    leases: RegistryStatistics
    abandoned: int
    """Bodies that ignored their cancellation and still run."""
    late_writes_refused: int
    """Writes of dead runs that were refused since the start."""
    loop_lag: Quantiles
    """Of the last minute, in seconds."""


def take(scheduler: Scheduler, lag: Quantiles, now: float) -> Statistics:
    """Look at a scheduler."""
    runs = {state.value: number for state, number in scheduler.ended.items()}
    runs["queued"] = sum(len(lane.queued) for lane in scheduler.lanes.values())
    runs["running"] = len(scheduler.running())
    return Statistics(
        lanes={
            name: LaneStatistics(
                running=len(lane.running),
                queued=len(lane.queued),
                capacity=lane.spec.capacity,
                oldest_wait_s=max((now - e.run.enqueued_at for e in lane.queued), default=0.0),
            )
            for name, lane in scheduler.lanes.items()
        },
        groups={
            name: GroupStatistics(running=group.running, slots=group.spec.slots, reserve=group.spec.reserve)
            for name, group in scheduler.groups.items()
        },
        runs=runs,
        leases=scheduler.registry.statistics(),
        abandoned=len(scheduler.abandoned),
        late_writes_refused=scheduler.late_writes_refused,
        loop_lag=lag,
    )
