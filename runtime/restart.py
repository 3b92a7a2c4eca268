"""The next generation in the same process, by steps that are bounded, and taken back until the old one is gone.

    refuse new work ► let runs finish ► cancel ► grace ► fence ► leave the services ► enter new ones ► open, slowly
    └───────────── taken back: admission reopens ────────────┘   └─ not taken back: all stops, or the process exits

Queued runs, their order, the lock registry and its epochs, dedupe keys and finished runs are kept. What ran has ended,
and each sender has its outcome, before the first service is left. Bodies that ignored their cancellation cannot be
taken along: a process that has some needs to be replaced, and says so.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import anyio

from lanes import Draining
from lanes.core.scheduler import Scheduler
from locks import _clock
from locks._events import described, log

from .background import Background, to_its_end
from .drain import SETTLE_S, Drain, DrainReport, log_unstarted
from .ending import Ending
from .phase import STATES, Phase, Standing
from .process.bindings import Bindings
from .services import ServicesStuck
from .watch.watchdog import EXIT_NEW_PROCESS
from .zombies import AbandonedBodies, Exits

if TYPE_CHECKING:
    from .inbox.service import InboxService

_GIVEN_UP = "restart: given up, because the supervisor stops or drains"
_MARGIN_S = 5.0
RAMP_S = 2.0
"""Within so many seconds the next generation comes up to full speed."""


class Restarts:
    """Replaces the generation of one supervisor, one restart at a time. On the event loop's thread.

    Invariant: `_over` is set when the restart that is under way has ended; without one, it and `_scope` are `None`.
    """

    def __init__(
        self,
        standing: Standing,
        scheduler: Scheduler,
        bindings: Bindings,
        ending: Ending,
        exits: Exits,
        inbox: InboxService | None,
    ) -> None:
        self._standing, self._scheduler, self._bindings = standing, scheduler, bindings
        self._ending, self._exits, self._inbox = ending, exits, inbox
        self._scope: anyio.CancelScope | None = None
        self._over: anyio.Event | None = None
        self._opened = False
        """Whether admission was opened again in the restart that is under way, or is to stay closed."""

    @property
    def under_way(self) -> bool:
        """Whether a restart has begun and not ended."""
        return self._over is not None

    async def restart(self, drain_timeout: float) -> DrainReport:
        """Take all steps; see `Supervisor.restart`."""
        if not self._may_begin():
            raise Draining(f"restart: the supervisor is {self._busy_with()}; allowed: while it runs or drains")
        self._standing.move(Phase.RESTARTING)
        self._over, self._opened = anyio.Event(), False
        self._bindings.restarting()
        try:
            with anyio.CancelScope() as self._scope:
                return await self._next_generation(drain_timeout)
            raise Draining(_GIVEN_UP)
        except BaseException as error:
            if not self._opened and not self._standing.is_in(Phase.STOPPING, Phase.STOPPED):
                await self._end_after_failure(error)
            raise
        finally:
            self._over.set()
            self._scope = self._over = None

    def request(self, reason: str, drain_timeout: float) -> None:
        """Restart in a background task; does nothing while a restart or a stop is under way."""

        async def asked_for() -> None:  # what goes wrong, `restart` has logged
            with anyio.CancelScope():
                await self.restart(drain_timeout)

        log("restart_requested", reason=reason)
        if self._may_begin():
            Background().start(asked_for, "restart", context=self._scheduler.board.hooks.context.copy())

    async def give_up(self) -> None:
        """Cancel the restart that is under way, if its steps can be taken back, and wait for its end. A checkpoint."""
        if self._over is not None:
            if self._scope is not None:
                self._scope.cancel()
            with anyio.CancelScope(shield=True):
                await self._over.wait()

    def _may_begin(self) -> bool:
        standing = self._standing
        # Without a generation the services are being entered: a restart would leave them meanwhile.
        open_ = standing.is_in(Phase.RUNNING, Phase.DRAINING) and standing.generation > 0
        return open_ and not self.under_way and not standing.stop_asked.is_set()

    def _busy_with(self) -> str:
        phase = self._standing.phase
        if phase is Phase.STOPPING:
            return "restarting" if self.under_way else "stopping"
        return STATES[phase] if self.under_way or phase in (Phase.NEW, Phase.STOPPED) else "starting"

    def _reopen(self) -> bool:
        """Take work again, unless the supervisor drains or ends; returns whether it does."""
        if self._standing.is_in(Phase.STOPPING):
            return False
        self._opened = True
        if not self._standing.is_in(Phase.RESTARTING):
            return False
        self._standing.move(Phase.RUNNING)
        # Much may be overdue, whether it is taken back or done.
        self._scheduler.board.throttle.ramp(_clock.clock.now(), RAMP_S)
        if self._inbox is not None:
            self._scheduler.take_work()
            self._inbox.resume()  # what was cut off goes before what waits
        self._scheduler.open()
        self._bindings.ready()
        return True

    async def _end_after_failure(self, error: BaseException) -> None:
        """The old generation is gone, and the next one cannot begin: end everything."""
        log_unstarted(Drain(self._scheduler).report())
        self._exits.now(EXIT_NEW_PROCESS, f"the restart failed: {error!r}")
        self._standing.move(Phase.STOPPING)
        self._standing.failure = self._standing.failure or error
        self._bindings.stopping()
        try:
            await to_its_end(self._ending.end, "end after a restart that failed")
        finally:  # also where this task was cancelled meanwhile, or a step of the end has failed
            self._standing.end_use()

    async def _next_generation(self, drain_timeout: float) -> DrainReport:
        """Take all steps. A checkpoint; cancelled while runs finish, admission reopens and they are undisturbed.

        Raises:
            AbandonedBodies: bodies ignored their cancellation; admission is open again.
            ServicesStuck: the old services did not leave in time; nothing is open.
            Exception: what a service raised on entering; nothing is open.
        """
        standing, scheduler, began = self._standing, self._scheduler, _clock.clock.now()

        async def change() -> None:
            await self._change_services()
            standing.generation += 1
            if self._inbox is not None:
                await self._inbox.put_right()
            _ = self._reopen()

        log(
            "restart_started",
            generation=standing.generation,
            running=len(scheduler.board.running()),
            drain_s=drain_timeout,
        )
        scheduler.shut()
        grace = max((spec.grace for spec in scheduler.board.specs.lanes.values()), default=0.0)
        bound = began + drain_timeout + 2 * grace + SETTLE_S + 7 * standing.services_timeout + _MARGIN_S
        self._exits.limit(bound, EXIT_NEW_PROCESS, "the restart did not end in time")
        try:
            report = await self._come_to_rest(drain_timeout)
            await to_its_end(change, f"restart, generation {standing.generation + 1}")
        except BaseException as error:
            given_up = isinstance(error, anyio.get_cancelled_exc_class()) and (
                self._opened or standing.is_in(Phase.STOPPING)
            )
            why = _GIVEN_UP if given_up and not standing.is_in(Phase.RUNNING) else described(error)
            log("restart_failed", level="error", generation=standing.generation, error=why)
            raise
        finally:
            if not standing.is_in(Phase.STOPPING):  # else the limit is that of the stop
                self._exits.limit(math.inf, 0, "")
        log(
            "restart_finished",
            generation=standing.generation,
            took_s=round(_clock.clock.now() - began, 3),
            finished=report.finished,
            cancelled=report.cancelled,
            queued=len(report.unstarted),
        )
        return report

    async def _come_to_rest(self, drain_timeout: float) -> DrainReport:
        """The steps that can be taken back."""
        scheduler = self._scheduler
        try:
            drain = Drain(scheduler)
            await drain.let_finish(drain_timeout)
            # The restart fails in any case: spare the other runs.
            if not self._exits.wanted and scheduler.board.abandoned:
                raise AbandonedBodies(tuple(execution.run for execution in scheduler.board.abandoned))
            await drain.cancel_rest("the supervisor restarts")
            if self._standing.is_in(Phase.STOPPING):
                raise Draining(_GIVEN_UP)
            report = drain.report()
            if report.abandoned:
                if self._exits.wanted:  # before work is started again that the process would take along
                    log_unstarted(report)
                    self._exits.for_runs(report.abandoned, EXIT_NEW_PROCESS)
                raise AbandonedBodies(report.abandoned)
            if left := scheduler.board.running():
                raise RuntimeError(f"{len(left)} runs have not ended: {left[:3]!r}")
        except BaseException:
            if self._reopen():
                log("admission_reopened", level="warning", generation=self._standing.generation)
            raise
        return report

    async def _change_services(self) -> None:
        """The steps that cannot be taken back. The services' own time limits bound them."""
        standing = self._standing
        old, limit = standing.services, standing.services_timeout
        if not await old.leave(limit):
            raise ServicesStuck(
                f"the services of generation {standing.generation} did not leave within {2 * limit:g} s"
            )
        if old.error is not None:
            log("service_failed", level="error", service="", error=described(old.error))  # it has left, badly
        # Lanes that have ended by themselves end everything: services that were entered now would never be left.
        if standing.is_in(Phase.STOPPING, Phase.STOPPED) or not self._scheduler.board.serving:
            raise Draining(_GIVEN_UP)
        standing.services = fresh = old.again()
        await fresh.enter(old.name, limit)
        self._scheduler.board.services = fresh.made
