"""The next generation in the same process, by steps that are bounded, and taken back until the old one is gone.

    refuse new work ► let runs finish ► cancel ► grace ► fence ► leave the services ► enter new ones ► open, slowly
    └───────────── taken back: admission reopens ────────────┘   └─ not taken back: all stops, or the process exits

Queued runs, their order, the lock registry and its epochs, dedupe keys and finished runs are kept. What ran has ended,
each sender told, before the first service is left. Bodies that ignored their cancellation cannot be taken along: a
process that has some needs to be replaced, and says so.
"""

from __future__ import annotations

import math
from typing import Protocol

import anyio

from lanes import Run
from lanes.scheduler import Scheduler
from locks import _clock
from locks._events import described, log

from .drain import SETTLE_S, Drain, DrainReport
from .services import ServiceFactory, Services, ServicesStuck
from .watch.watchdog import EXIT_NEW_PROCESS, Watchdog

_MARGIN_S = 5.0
RAMP_S = 2.0
"""Within so many seconds the next generation comes up to full speed."""


class AbandonedBodies(RuntimeError):
    """A supervisor came to rest, but bodies that ignored their cancellation still run. They are fenced."""

    def __init__(self, runs: tuple[Run, ...]) -> None:
        super().__init__(f"{len(runs)} abandoned: " + "; ".join(repr(run) for run in runs[:10]))
        self.runs = runs

    def __reduce__(self) -> tuple[type[AbandonedBodies], tuple[tuple[Run, ...]]]:
        return type(self), (self.runs,)


class Generation(Protocol):
    """What a restart needs of a supervisor."""

    generation: int
    watchdog: Watchdog
    services_timeout: float
    _scheduler: Scheduler
    _services: Services
    _factories: dict[str, ServiceFactory]

    def _reopen(self) -> bool:
        """Take work again, unless something else has begun to end it all; returns whether it does."""

    def _hard_limit(self, at: float, code: int, why: str) -> None:
        """End the process then, if it belongs to the supervisor and is still at this."""


async def next_generation(sup: Generation, drain_timeout: float) -> DrainReport:
    """Take all steps. A checkpoint; cancelled while runs finish, admission reopens and they are undisturbed.

    Raises:
        AbandonedBodies: bodies ignored their cancellation; admission is open again.
        ServicesStuck: the old services did not leave in time; nothing is open.
        Exception: what a service raised on entering; nothing is open.
    """
    scheduler, began = sup._scheduler, _clock.clock.now()
    log("restart_started", generation=sup.generation, running=len(scheduler.running()), drain_s=drain_timeout)
    scheduler.shut()
    grace = max((spec.grace for spec in scheduler.specs.lanes.values()), default=0.0)
    bound = began + drain_timeout + 2 * grace + SETTLE_S + 4 * sup.services_timeout + _MARGIN_S
    sup._hard_limit(bound, EXIT_NEW_PROCESS, "the restart did not end in time")
    try:
        report = await _come_to_rest(sup, drain_timeout)
        await _change_services(sup)
    except BaseException as error:
        log("restart_failed", level="error", generation=sup.generation, error=described(error))
        raise
    finally:
        sup._hard_limit(math.inf, 0, "")
    sup.generation += 1
    scheduler.pace.ramp(_clock.clock.now(), RAMP_S)
    log(
        "restart_finished",
        generation=sup.generation,
        took_s=round(_clock.clock.now() - began, 3),
        finished=report.finished,
        cancelled=report.cancelled,
        queued=len(report.unstarted),
    )
    return report


async def _come_to_rest(sup: Generation, drain_timeout: float) -> DrainReport:
    """The steps that can be taken back."""
    try:
        drain = Drain(sup._scheduler)
        await drain.let_finish(drain_timeout)
        await drain.cancel_rest("the supervisor restarts")
        report = drain.report()
        if report.abandoned:
            raise AbandonedBodies(report.abandoned)
        if not sup._scheduler.is_calm():
            raise RuntimeError(f"{len(sup._scheduler.running())} runs have not ended: {sup._scheduler.running()[:3]!r}")
    except BaseException:
        if sup._reopen():
            log("admission_reopened", level="warning", generation=sup.generation)
        raise
    return report


async def _change_services(sup: Generation) -> None:
    """The steps that cannot. Not interrupted by cancellation; the services' own time limits bound it."""
    with anyio.CancelScope(shield=True):
        old, limit = sup._services, sup.services_timeout
        if not await old.leave(limit):
            raise ServicesStuck(f"the services of generation {sup.generation} did not leave within {2 * limit:g} s")
        if old.error is not None:
            log("service_failed", level="error", service="", error=described(old.error))  # it has left, badly
        sup._services = fresh = Services(sup._factories)
        await fresh.enter(f"services, generation {sup.generation + 1}", limit)
        sup._scheduler.services = fresh.made
