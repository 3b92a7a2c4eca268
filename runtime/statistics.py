"""`Supervisor.statistics()`: what a supervisor holds at an instant, frozen, counted from the state at each call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from lanes import Run, Totals
from lanes.core.execution import Execution
from lanes.core.scheduler import Scheduler
from lanes.queues.lane import Lane
from lanes.queues.pool import Pool
from locks import RegistryStatistics

from .quantiles import Quantiles
from .watch.resources import ProcessStatistics
from .watch.watchdog import Watchdog


@dataclass(frozen=True, slots=True)
class LaneStatistics:
    """One live lane."""

    running: int
    """Places taken, also by runs that were asked to end."""
    queued: int
    """Runs that wait on it: for a place, a slot, their session's turn, their next attempt, or in another's inbox."""
    capacity: int
    """Runs that it has places for."""
    oldest_wait_s: float
    """How long ago the oldest of the queued runs was submitted; 0 when there is none."""
    totals: Totals
    """Of what has ended since the lane was made; a lane of a pattern is gone when it is idle."""


@dataclass(frozen=True, slots=True)
class GroupStatistics:
    """One group."""

    running: int
    """Slots taken. A run that waits for another one has lent its own."""
    slots: int
    """Runs of the group that may run at a time."""
    reserve: int
    """Of the slots, those that only foreground runs may take."""
    queued: int
    """Runs that wait on the group's lanes."""
    returning: int
    """Runs that have waited for another one, and go on when they have a slot again."""
    oldest_wait_s: float
    """How long ago the oldest of the runs that wait on its lanes was submitted; 0 when there is none."""
    totals: Totals
    """Of what has ended since the start."""


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """One pool."""

    held: int
    """Grants that are held."""
    slots: int | None
    """Grants that may be held at a time; `None` for any number."""
    waiting: int
    """Grants that are waited for."""
    oldest_wait_s: float
    """For how long the oldest of them has been waited for; 0 when there is none."""
    begun_in_window: int
    """Grants that have begun in the stretch of its rate that ends now; 0 without a rate."""
    tokens_in_window: int
    """Tokens that count against its limit now, those of unsettled grants included."""
    share: float
    """The part of its limits that is in force: 1 unless the provider has refused calls."""
    paused_for_s: float
    """For how long nothing is granted, as the provider has asked; 0 when it has not."""
    granted: int
    """Grants since the start."""
    tokens: int
    """Tokens since the start, as settled."""
    waited_s: float
    """Seconds that the grants were waited for, together."""
    longest_wait_s: float
    """The longest of these waits."""
    throttled: int
    """Calls since the start that the provider has refused."""


@dataclass(frozen=True, slots=True)
class AbandonedBody:
    """A body that ignored its cancellation past its grace, and still runs. It is fenced, and nothing waits for it."""

    run: Run
    """The run, which has ended."""
    abandoned_for_s: float
    """Seconds since it was abandoned."""
    stack: str
    """Where it stood when it was abandoned, outermost call first."""


@dataclass(frozen=True, slots=True)
class InboxStatistics:
    """The inbox of a supervisor. The thread that writes it counts, so no row is read on the event loop."""

    messages: Mapping[str, int]
    """Messages by state, of the states that still ask for something; like the next two, as counted `counted_s_ago`."""
    questions: int
    """Questions that wait for a person."""
    oldest_wait_s: float
    """How long ago the oldest of the `accepted` messages was accepted, over restarts; 0 when there is none."""
    counted_s_ago: float
    """How old the count is: less than a second, but for large inboxes, of which a count takes long."""
    in_memory: int
    """Messages that runs of this process answer, or will."""
    on_disk_only: int
    """Messages that are to be brought back into memory: what an earlier process has left, or full lanes."""
    replayed: int
    """Messages that were brought back since the start."""
    commits: int
    """Commits since the start that have changed something."""
    changes: int
    """Changes since the start: a message accepted, begun, ended. Those that come together share a commit."""
    uncommitted: int
    """Changes, and questions to the file, that wait for the thread."""
    error: str
    """Why nothing is accepted any more; empty while it works."""

    @property
    def changes_per_commit(self) -> float:
        """How many changes share a commit, on average since the start."""
        return self.changes / self.commits if self.commits else 0.0


@dataclass(frozen=True, slots=True)
class NodeStatistics:
    """A process among others on a store. Nothing is asked of the database."""

    id: int
    """Of its life in the database, another one after it was lost; 0 while it has none, and takes nothing."""
    name: str
    """What it is called."""
    lease_left_s: float
    """For how many more seconds it may be silent; at 0 it is lost, and its runs end."""
    sessions: int
    """Sessions that it conducts, and messages of none."""
    claimed: int
    """How many it has taken since the start that no node conducted; those of messages accepted here are not counted."""
    given_back: int
    """How many it has given back since the start, as nothing of them was left or another node wanted them."""
    beats: int
    """Times since the start that it has told the others that it lives."""
    reconnects: int
    """Times since the start that something had to be tried again, on a new connection mostly."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """A supervisor at an instant."""

    lanes: Mapping[str, LaneStatistics]
    """The live ones, by name."""
    groups: Mapping[str, GroupStatistics]
    """All of them, by name."""
    runs: Mapping[str, int]
    """Runs by state: `queued` and `running` now, the others since the start. Those whose message another run has read
    are `running` with that one."""
    leases: RegistryStatistics
    """What the lock registry holds."""
    abandoned: int
    """Bodies that ignored their cancellation and still run."""
    parked: int
    """Runs that failed for the last time, kept until they are resubmitted or discarded."""
    late_writes_refused: int
    """Writes of dead runs that were refused since the start."""
    late_events_dropped: int
    """What dead runs have emitted since the start."""
    admission_slowed: str
    """Why runs are started slowly; empty when they are not."""
    problems: tuple[str, ...]
    """What makes the process unhealthy, in words."""
    loop_lag: Quantiles
    """Of the last minute, in seconds, measured from outside of the loop."""
    process: ProcessStatistics
    """What the process uses, and its growth; looked at every second."""
    generation: int
    """Counts the restarts in this process, from 1; 0 before the start."""
    inbox: InboxStatistics | None = None
    """`None` for a supervisor without one."""
    node: NodeStatistics | None = None
    """`None` for a supervisor that keeps its sessions in files."""
    pools: Mapping[str, PoolStatistics] = field(default_factory=dict)
    """All of them, by name."""

    @property
    def healthy(self) -> bool:
        """Whether there is no problem."""
        return not self.problems


def take(
    scheduler: Scheduler,
    watchdog: Watchdog,
    now: float,
    max_abandoned: int,
    generation: int,
    inbox: InboxStatistics | None,
    node: NodeStatistics | None,
) -> Statistics:
    """Look at a scheduler."""
    waited = {name: _oldest_wait(lane, now) for name, lane in scheduler.board.lanes.items()}
    queued, oldest = Counter[str](), dict[str, float]()
    for name, lane in scheduler.board.lanes.items():
        group_name = lane.spec.group
        queued[group_name] += len(lane.queued)
        oldest[group_name] = max(oldest.get(group_name, 0.0), waited[name])
    ended = Counter[str]()
    for group in scheduler.board.groups.values():
        ended.update(group.tally.frozen().outcomes)
    runs = dict(ended)
    runs["queued"] = queued.total()
    runs["running"] = len(scheduler.board.live) - queued.total()
    return Statistics(
        lanes={
            name: LaneStatistics(
                running=len(lane.running),
                queued=len(lane.queued),
                capacity=lane.spec.capacity,
                oldest_wait_s=waited[name],
                totals=lane.tally.frozen(),
            )
            for name, lane in scheduler.board.lanes.items()
        },
        groups={
            name: GroupStatistics(
                running=group.running,
                slots=group.spec.slots,
                reserve=group.spec.reserve,
                queued=queued[name],
                returning=group.returning,
                oldest_wait_s=oldest.get(name, 0.0),
                totals=group.tally.frozen(),
            )
            for name, group in scheduler.board.groups.items()
        },
        runs=runs,
        leases=scheduler.board.registry.statistics(),
        abandoned=len(scheduler.board.abandoned),
        parked=len(scheduler.board.history.parked),
        late_writes_refused=scheduler.board.late_writes_refused,
        late_events_dropped=scheduler.board.late_events_dropped,
        admission_slowed=scheduler.board.throttle.why,
        problems=(*problems(scheduler, max_abandoned), *watchdog.problems, *_inbox_problems(inbox)),
        loop_lag=watchdog.quantiles(),
        process=watchdog.statistics(),
        generation=generation,
        inbox=inbox,
        node=node,
        pools={name: _pool(pool, now) for name, pool in scheduler.board.pools.items()},
    )


def _pool(pool: Pool[Execution], now: float) -> PoolStatistics:
    allowance = pool.allowance
    return PoolStatistics(
        held=allowance.held,
        slots=pool.spec.slots,
        waiting=pool.waiting,
        oldest_wait_s=max(0.0, now - pool.oldest_at()),
        begun_in_window=allowance.begun(now),
        tokens_in_window=allowance.tokens(now) if pool.spec.tokens is not None else 0,
        share=allowance.share(now),
        paused_for_s=max(0.0, allowance.paused_until - now),
        granted=pool.granted,
        tokens=pool.used,
        waited_s=pool.waited_s,
        longest_wait_s=pool.longest_wait_s,
        throttled=pool.throttled,
    )


def problems(scheduler: Scheduler, max_abandoned: int) -> tuple[str, ...]:
    """What makes a process unhealthy."""
    abandoned = len(scheduler.board.abandoned)
    if abandoned <= max_abandoned:
        return ()
    lanes = Counter(execution.run.lane for execution in scheduler.board.abandoned)
    where = ", ".join(f"{number} on lane {lane}" for lane, number in lanes.most_common(5))
    return (f"abandoned bodies that still run: {abandoned} ({where}); allowed: {max_abandoned} (limits.abandoned)",)


def _inbox_problems(inbox: InboxStatistics | None) -> tuple[str, ...]:
    return (f"the inbox takes nothing: {inbox.error}",) if inbox is not None and inbox.error else ()


def _oldest_wait(lane: Lane[Execution], now: float) -> float:
    oldest = lane.oldest()
    return 0.0 if oldest is None else max(0.0, now - oldest.run.enqueued_at)
