"""Metrics for Prometheus, computed from `statistics()` when they are asked for, so that none can drift from what is.

    from prometheus_client import REGISTRY
    REGISTRY.register(SupervisorCollector(sup))

The labels are groups, pools, states and rights, of which there are a few; never sessions, runs, or lanes of a pattern,
which may be any number. A `CollectorRegistry` takes one supervisor: two have the same names.

`statistics()` belongs to the event loop's thread, and most exporters scrape on one of their own (`start_http_server`).
There, the question is posted to the loop, and waited for only for so long; while the loop is blocked it is not even
posted. What needs no loop is exported all the same: that it is blocked and for how long, its lag, what the process
uses. A counter that is missing for a scrape is a gap to Prometheus, where a stale or made-up value would be a lie.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

try:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.registry import Collector
except ImportError as error:
    raise ImportError("runtime.metrics needs prometheus-client: pip install 'session-lanes[metrics]'") from error

from lanes.checks import seconds
from locks import HeldRight, WaitingClaim
from locks._loop import on_loop_thread

from .statistics import Statistics
from .supervisor import Supervisor
from .watch.watchdog import Watchdog

_Family = CounterMetricFamily | GaugeMetricFamily
_Samples = Iterable[tuple[tuple[str, ...], float]]
_UNITS = ("seconds", "bytes")


@dataclass(frozen=True, slots=True)
class _Metric:
    """One metric: what it is called, what it means, and where its samples come from."""

    kind: type[_Family]
    name: str
    text: str
    samples: Callable[[Any], _Samples]
    labels: tuple[str, ...] = ()

    def family(self, source: object = None) -> _Family:
        """With its samples, or without a source, none."""
        unit = next((unit for unit in _UNITS if self.name.removesuffix("_total").endswith(unit)), "")
        family = self.kind(self.name, self.text, labels=self.labels, unit=unit)
        for values, value in self.samples(source) if source is not None else ():
            family.add_metric(values, value)
        return family


class SupervisorCollector(Collector):
    """The metrics of a supervisor, for a `CollectorRegistry`. Holds nothing but the supervisor.

        registry = CollectorRegistry()
        registry.register(SupervisorCollector(sup))
        page = generate_latest(registry)  # what a route returns; or `start_http_server(9464, registry=registry)`

    Scraped on the event loop's thread, it answers at once; on any other thread, in any state of the supervisor, within
    `wait_s`. A thread that runs an event loop of its own counts as the supervisor's: scrape elsewhere then.

    Args:
        sup: the supervisor, started or not.
        wait_s: seconds that another thread waits for the event loop; without an answer, `lanes_loop_answers` is 0, and
            what needs the loop is left out.

    Raises:
        InvalidLane: `wait_s` is no duration.
    """

    def __init__(self, sup: Supervisor, *, wait_s: float = 1.0) -> None:
        self._sup = sup
        self._wait_s = seconds("wait_s", wait_s, zero=True)

    def __repr__(self) -> str:
        return f"<SupervisorCollector of {self._sup!r}>"

    def describe(self) -> Iterator[_Family]:
        """All metrics, without samples. What a registry asks for to see that names do not clash."""
        for metric in (*_OF_LOOP, *_OF_STATISTICS, *self._of_its_own()):
            yield metric.family()

    def collect(self) -> Iterator[_Family]:
        """All metrics as they are now, or those that need no event loop. No checkpoint."""
        statistics = self._statistics()
        for metric in _OF_LOOP:
            yield metric.family(_Loop(self._sup.watchdog, self._sup.generation, statistics is not None))
        if statistics is not None:
            for metric in (*_OF_STATISTICS, *self._of_its_own()):
                yield metric.family(statistics)

    def _of_its_own(self) -> tuple[_Metric, ...]:
        """Those that not every supervisor has."""
        return (
            *(_OF_INBOX if self._sup._inbox is not None else ()),
            *(_OF_NODE if self._sup._node is not None else ()),
            *(_OF_POOLS if self._sup._scheduler.board.pools else ()),
        )

    def _statistics(self) -> Statistics | None:
        sup = self._sup
        if on_loop_thread() or sup.state in ("new", "stopped"):
            return sup.statistics()
        post = sup._standing.to_loop
        if post is None or sup.watchdog.blocked() is not None:
            return None
        done: Future[Statistics] = Future()

        def ask() -> None:
            if done.set_running_or_notify_cancel():
                try:
                    done.set_result(sup.statistics())
                except BaseException as error:
                    done.set_exception(error)

        post(ask)
        try:
            return done.result(self._wait_s)
        except TimeoutError:
            done.cancel()
            return None


@dataclass(frozen=True, slots=True)
class _Loop:
    """What is known without the event loop."""

    watchdog: Watchdog
    generation: int
    answers: bool


_Field = Callable[[Any], float]


def _one(kind: type[_Family], name: str, text: str, field: str | _Field) -> _Metric:
    value = attrgetter(field) if isinstance(field, str) else field
    return _Metric(kind, name, text, lambda source: [((), value(source))])


def _by_group(kind: type[_Family], name: str, text: str, field: str) -> _Metric:
    of = attrgetter(field)
    return _Metric(kind, name, text, lambda now: [((at,), of(one)) for at, one in now.groups.items()], ("group",))


def _by_pool(kind: type[_Family], name: str, text: str, field: str) -> _Metric:
    of = attrgetter(field)
    return _Metric(kind, name, text, lambda now: [((at,), of(one)) for at, one in now.pools.items()], ("pool",))


def _by_right(name: str, text: str, claims: Callable[[Statistics], Iterable[HeldRight | WaitingClaim]]) -> _Metric:
    def samples(now: Statistics) -> _Samples:
        numbers = Counter(one.right for one in claims(now))
        return [(("turn",), numbers["turn"]), (("write",), numbers["write"])]

    return _Metric(_GAUGE, name, text, samples, ("right",))


def _runs(now: Statistics) -> _Samples:
    for name, group in now.groups.items():
        for state, number in group.totals.outcomes.items():
            yield (name, state), number


def _lag(loop: _Loop) -> _Samples:
    lag = loop.watchdog.quantiles()
    return [(("0.5",), lag.p50), (("0.99",), lag.p99), (("1",), lag.max)]


def _blocked(loop: _Loop) -> float:
    blocked = loop.watchdog.blocked()
    return 0.0 if blocked is None else blocked.for_s


_COUNTER, _GAUGE = CounterMetricFamily, GaugeMetricFamily

_OF_LOOP = (
    _one(_GAUGE, "lanes_loop_answers", "1 if the event loop has answered this scrape.", "answers"),
    _one(
        _GAUGE,
        "lanes_loop_blocked_seconds",
        "How long the event loop has been blocked by code that does not give it up; 0 if it is not.",
        _blocked,
    ),
    _Metric(
        _GAUGE,
        "lanes_loop_lag_seconds",
        "How late the event loop was in the last minute: median, 99th percentile, maximum.",
        _lag,
        ("quantile",),
    ),
    _one(
        _GAUGE, "lanes_generation", "Counts the restarts within this process, from 1; 0 before the start.", "generation"
    ),
    _one(
        _GAUGE,
        "lanes_process_resident_memory_bytes",
        "Resident memory of the process.",
        lambda loop: loop.watchdog.statistics().memory,
    ),
    _one(
        _GAUGE,
        "lanes_process_open_fds",
        "Files and sockets that the process has open.",
        lambda loop: loop.watchdog.statistics().descriptors,
    ),
    _one(_GAUGE, "lanes_process_threads", "Threads of the process.", lambda loop: loop.watchdog.statistics().threads),
)
"""What needs no event loop."""

_OF_STATISTICS = (
    _Metric(_COUNTER, "lanes_runs_total", "Runs that have ended, by how.", _runs, ("group", "state")),
    _by_group(
        _COUNTER,
        "lanes_waited_seconds_total",
        "Seconds that the runs which have ended had waited, together.",
        "totals.waited_s",
    ),
    _by_group(
        _COUNTER, "lanes_ran_seconds_total", "Seconds that the runs which have ended had run, together.", "totals.ran_s"
    ),
    _by_group(_COUNTER, "lanes_retries_total", "Attempts that were followed by another one.", "totals.retries"),
    _by_group(_COUNTER, "lanes_dropped_total", "Runs that were dropped from a full queue.", "totals.dropped"),
    _by_group(
        _GAUGE,
        "lanes_longest_wait_seconds",
        "The longest that one of the runs which have ended had waited.",
        "totals.longest_wait_s",
    ),
    _by_group(_GAUGE, "lanes_running", "Slots taken; a run that waits for another one has lent its own.", "running"),
    _by_group(_GAUGE, "lanes_queued", "Runs that wait on the lanes of a group.", "queued"),
    _by_group(
        _GAUGE, "lanes_returning", "Runs that have waited for another one, and need a slot to go on.", "returning"
    ),
    _by_group(
        _GAUGE,
        "lanes_oldest_wait_seconds",
        "How long ago the oldest of the runs that wait was submitted.",
        "oldest_wait_s",
    ),
    _by_group(_GAUGE, "lanes_slots", "Runs of a group that may run at a time.", "slots"),
    _by_group(_GAUGE, "lanes_reserved_slots", "Of the slots, those that only foreground runs may take.", "reserve"),
    _one(_GAUGE, "lanes_live_lanes", "Lanes that exist now.", lambda now: len(now.lanes)),
    _one(_GAUGE, "lanes_abandoned_bodies", "Bodies that ignored their cancellation and still run.", "abandoned"),
    _one(
        _GAUGE, "lanes_parked_runs", "Runs that have failed for the last time, kept for somebody to decide.", "parked"
    ),
    _one(_COUNTER, "lanes_late_writes_refused_total", "Writes of dead runs that were refused.", "late_writes_refused"),
    _one(_COUNTER, "lanes_late_events_dropped_total", "What dead runs have emitted.", "late_events_dropped"),
    _one(
        _GAUGE,
        "lanes_admission_slowed",
        "1 while runs are started slowly, because a limit is passed.",
        lambda now: bool(now.admission_slowed),
    ),
    _one(_GAUGE, "lanes_healthy", "1 unless `statistics().problems` names a problem.", "healthy"),
    _by_right("lanes_leases_held", "Turns and write leases that are held.", lambda now: now.leases.holders),
    _by_right(
        "lanes_leases_waiting", "Who waits in this process for a turn or a write lease.", lambda now: now.leases.waiters
    ),
    _one(
        _GAUGE,
        "lanes_leases_competing",
        "Rights for which the first that waits here waits for another process.",
        "leases.competing",
    ),
    _one(_COUNTER, "lanes_leases_granted_total", "Rights granted.", "leases.granted"),
    _one(_COUNTER, "lanes_leases_revoked_total", "Rights taken away.", "leases.revoked"),
    _one(_COUNTER, "lanes_appends_total", "Writes acknowledged.", "leases.appended"),
)

_OF_INBOX = (
    _Metric(
        _GAUGE,
        "lanes_inbox_messages",
        "Messages of the inbox that still ask for something, by state.",
        lambda now: [((state,), number) for state, number in now.inbox.messages.items()],
        ("state",),
    ),
    _one(_GAUGE, "lanes_inbox_questions", "Questions that wait for a person.", "inbox.questions"),
    _one(
        _GAUGE,
        "lanes_inbox_oldest_wait_seconds",
        "How long ago the oldest message that waits was accepted, over restarts.",
        "inbox.oldest_wait_s",
    ),
    _one(_GAUGE, "lanes_inbox_in_memory", "Messages that runs of this process answer, or will.", "inbox.in_memory"),
    _one(_GAUGE, "lanes_inbox_on_disk_only", "Messages that are to be brought back into memory.", "inbox.on_disk_only"),
    _one(_COUNTER, "lanes_inbox_replayed_total", "Messages that were brought back into memory.", "inbox.replayed"),
    _one(_COUNTER, "lanes_inbox_commits_total", "Commits that have changed something.", "inbox.commits"),
    _one(_COUNTER, "lanes_inbox_changes_total", "Changes; those that come together share a commit.", "inbox.changes"),
    _one(_GAUGE, "lanes_inbox_uncommitted", "Changes that wait for the thread that commits.", "inbox.uncommitted"),
    _one(
        _GAUGE,
        "lanes_inbox_down",
        "1 once a commit has failed: nothing is accepted.",
        lambda now: bool(now.inbox.error),
    ),
)
"""Of a supervisor that has one."""

_OF_NODE = (
    _one(
        _GAUGE,
        "lanes_node_lease_left_seconds",
        "How long this process may be silent before it is lost.",
        "node.lease_left_s",
    ),
    _one(_GAUGE, "lanes_node_sessions", "Sessions that this process conducts.", "node.sessions"),
    _one(_COUNTER, "lanes_node_claimed_total", "Sessions claimed that no process conducted.", "node.claimed"),
    _one(_COUNTER, "lanes_node_given_back_total", "Sessions given back.", "node.given_back"),
    _one(_COUNTER, "lanes_node_beats_total", "Times that this process told others that it lives.", "node.beats"),
    _one(_COUNTER, "lanes_node_reconnects_total", "Times that something was tried again.", "node.reconnects"),
)
"""Of a supervisor on a store."""

_OF_POOLS = (
    _by_pool(_GAUGE, "lanes_pool_held", "Grants of a pool that are held.", "held"),
    _Metric(
        _GAUGE,
        "lanes_pool_slots",
        "Grants of a pool that may be held at a time; missing for a pool without slots.",
        lambda now: [((at,), one.slots) for at, one in now.pools.items() if one.slots is not None],
        ("pool",),
    ),
    _by_pool(_GAUGE, "lanes_pool_waiting", "Grants that are waited for.", "waiting"),
    _by_pool(
        _GAUGE, "lanes_pool_oldest_wait_seconds", "How long the oldest of them has been waited for.", "oldest_wait_s"
    ),
    _by_pool(_GAUGE, "lanes_pool_share", "The part of its limits that is in force; below 1 after refusals.", "share"),
    _by_pool(
        _GAUGE, "lanes_pool_paused_seconds", "How long nothing is granted, as the provider has asked.", "paused_for_s"
    ),
    _by_pool(_COUNTER, "lanes_pool_granted_total", "Grants.", "granted"),
    _by_pool(_COUNTER, "lanes_pool_tokens_total", "Tokens, as settled.", "tokens"),
    _by_pool(_COUNTER, "lanes_pool_waited_seconds_total", "Seconds that grants were waited for, together.", "waited_s"),
    _by_pool(_COUNTER, "lanes_pool_throttled_total", "Calls that the provider has refused.", "throttled"),
)
"""Of a supervisor that has pools."""
