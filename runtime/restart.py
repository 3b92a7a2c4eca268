"""The next generation in the same process, by steps that are bounded, and taken back until the old one is gone.

    refuse new work ► let runs finish ► cancel ► grace ► fence ► leave the services ► enter new ones ► open, slowly
    └───────────── taken back: admission reopens ────────────┘   └─ not taken back: all stops, or the process exits

Queued runs, their order, the lock registry and its epochs, dedupe keys and finished runs are kept. What ran has ended,
each sender told, before the first service is left. Bodies that ignored their cancellation cannot be taken along: a
process that has some needs to be replaced, and says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import anyio

from lanes import Draining, Run, current_run
from lanes.checks import seconds
from locks import DeadlockError, _clock
from locks._events import described, log

from .background import Background, to_its_end
from .calls import Work
from .drain import SETTLE_S, Drain, DrainReport, log_unstarted
from .process.bindings import Belongings
from .services import ServiceFactory, Services, ServicesStuck
from .watch.watchdog import EXIT_NEW_PROCESS

State = Literal["new", "running", "draining", "restarting", "stopped"]
OnZombie = Literal["raise", "exit"]

_GIVEN_UP = "restart: given up, because the supervisor stops or drains"
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


class Restarts(Work):
    """The calls of a supervisor that replace its generation."""

    drain_timeout: float
    services_timeout: float
    _services: Services
    _factories: dict[str, ServiceFactory]
    _on_zombie: OnZombie
    _belongings: Belongings
    _leave_process: Callable[[int], object]
    _state: State
    _stopping: bool
    _opened: bool
    """Whether admission was opened again in the restart that is under way."""
    _told_to_stop: anyio.Event
    _block: anyio.CancelScope | None
    _restart_scope: anyio.CancelScope | None
    _restart_over: anyio.Event | None
    _failure: BaseException | None = None
    """Why it has ended by itself, to be raised where its block is left, or by `stop`."""

    async def _end_background(self) -> None:
        raise NotImplementedError

    async def restart(self, *, drain_timeout: float | None = None) -> DrainReport:
        """Replace this generation by the next one, in this process: see `restart.py` for the steps. A checkpoint.

        Queued work is kept, and started on a ramp. Cancelled while running runs finish, admission is open again and
        they go on undisturbed; later it is not interrupted.

        Raises:
            AbandonedBodies: bodies ignored their cancellation, so only a new process helps; admission is open again.
                With `on_zombie="exit"` the process exits (75) instead.
            Draining: another restart, or a stop, is under way, or the supervisor does not run; nothing has changed.
            DeadlockError: called in a run that it would wait for; `request_restart` is for that.
            Exception: a service did not leave or enter; the supervisor has stopped. With `on_zombie="exit"` the process
                exits (75) instead.
        """
        self._refuse_inside("restart")
        limit = self.drain_timeout if drain_timeout is None else seconds("drain_timeout", drain_timeout, zero=True)
        if not self._may_restart():
            raise Draining(f"restart: the supervisor is {self._busy_with()}; allowed: while it runs or drains")
        self._state, self._restart_over = "restarting", anyio.Event()
        self._opened = False
        self._belongings.restarting()
        try:
            with anyio.CancelScope() as self._restart_scope:
                return await self._next_generation(limit)
            raise Draining(_GIVEN_UP)
        except BaseException as error:
            if not self._opened and not self._stopping:
                await self._end_after_failure(error)
            raise
        finally:
            self._restart_over.set()
            self._restart_scope = self._restart_over = None

    def request_restart(self, reason: str = "requested") -> None:
        """Have it restarted, from anywhere on the event loop's thread, also inside a run. Returns at once.

        What comes of it is logged; while a restart or a stop is under way, nothing does.
        """
        log("restart_requested", reason=reason)
        if self._may_restart():
            Background().start(self._restart_asked_for, "restart", context=self._scheduler.hooks.context.copy())

    async def _restart_asked_for(self) -> None:
        """A background task; `restart` has logged what went wrong."""
        with anyio.CancelScope():
            await self.restart()

    def _may_restart(self) -> bool:
        # Without a generation it is still starting: its services would be left while they are entered.
        open_ = self._state in ("running", "draining") and self.generation > 0
        return open_ and self._restart_over is None and not self._stopping and not self._told_to_stop.is_set()

    def _busy_with(self) -> str:
        if self._restart_over is not None or self._state in ("new", "stopped"):
            return self._state
        return "stopping" if self._stopping else "starting"

    def _reopen(self) -> bool:
        """Take work again, unless everything ends."""
        if self._stopping:
            return False
        self._opened = True
        if self._state == "draining":  # somebody has asked for that meanwhile
            return False
        self._state = "running"
        self._scheduler.pace.ramp(_clock.clock.now(), RAMP_S)  # much may be overdue, whether it is taken back or done
        self._scheduler.open()
        self._belongings.ready()
        return True

    async def _end_after_failure(self, error: BaseException) -> None:
        """The old generation is gone, and the next one cannot begin: end everything, and have whoever waits know."""
        log_unstarted(Drain(self._scheduler).report())
        if self._on_zombie == "exit":
            self._exit(EXIT_NEW_PROCESS, f"the restart failed: {error!r}")
        self._stopping, self._failure = True, error
        self._belongings.stopping()
        await to_its_end(self._end_background, "end after a restart that failed")
        if self._block is not None:
            self._block.cancel()
        self._told_to_stop.set()

    async def _give_up_restart(self) -> None:
        if self._restart_over is not None:
            if self._restart_scope is not None:
                self._restart_scope.cancel()
            with anyio.CancelScope(shield=True):
                await self._restart_over.wait()

    def _hard_limit(self, at: float, code: int, why: str) -> None:
        if self._on_zombie == "exit" and not (self._stopping and at == math.inf):
            self.watchdog.exit_by(at, code, why)

    def _exit_for(self, zombies: tuple[Run, ...], code: int) -> None:
        if self._on_zombie == "exit":
            self._exit(code, f"{len(zombies)} bodies ignore their cancellation: " + "; ".join(map(repr, zombies[:10])))

    def _exit(self, code: int, why: str) -> None:
        self.watchdog.end_process(code, why)

    def _exit_now(self, code: int) -> None:
        self._leave_process(code)

    def _refuse_inside(self, what: str) -> None:
        run = current_run()
        if run is not None and run.outcome is None and self._scheduler.find(run.id) is run:
            raise DeadlockError(f"{what}() waits for run {run.id} on lane {run.lane}, which awaits it", run_id=run.id)

    async def _next_generation(self, drain_timeout: float) -> DrainReport:
        """Take all steps. A checkpoint; cancelled while runs finish, admission reopens and they are undisturbed.

        Raises:
            AbandonedBodies: bodies ignored their cancellation; admission is open again.
            ServicesStuck: the old services did not leave in time; nothing is open.
            Exception: what a service raised on entering; nothing is open.
        """
        scheduler, began = self._scheduler, _clock.clock.now()

        async def change() -> None:
            await self._change_services()
            self.generation += 1
            _ = self._reopen()

        log("restart_started", generation=self.generation, running=len(scheduler.running()), drain_s=drain_timeout)
        scheduler.shut()
        grace = max((spec.grace for spec in scheduler.specs.lanes.values()), default=0.0)
        bound = began + drain_timeout + 2 * grace + SETTLE_S + 7 * self.services_timeout + _MARGIN_S
        self._hard_limit(bound, EXIT_NEW_PROCESS, "the restart did not end in time")
        try:
            report = await self._come_to_rest(drain_timeout)
            await to_its_end(change, f"restart, generation {self.generation + 1}")
        except BaseException as error:
            given_up = isinstance(error, anyio.get_cancelled_exc_class()) and (self._stopping or self._opened)
            why = _GIVEN_UP if given_up and self._state != "running" else described(error)
            log("restart_failed", level="error", generation=self.generation, error=why)
            raise
        finally:
            self._hard_limit(math.inf, 0, "")
        log(
            "restart_finished",
            generation=self.generation,
            took_s=round(_clock.clock.now() - began, 3),
            finished=report.finished,
            cancelled=report.cancelled,
            queued=len(report.unstarted),
        )
        return report

    async def _come_to_rest(self, drain_timeout: float) -> DrainReport:
        """The steps that can be taken back."""
        try:
            drain = Drain(self._scheduler)
            await drain.let_finish(drain_timeout)
            if self._on_zombie == "raise" and self._scheduler.abandoned:
                raise AbandonedBodies(
                    tuple(execution.run for execution in self._scheduler.abandoned)
                )  # spares the rest
            await drain.cancel_rest("the supervisor restarts")
            if self._stopping:
                raise Draining(_GIVEN_UP)
            report = drain.report()
            if report.abandoned:
                if self._on_zombie == "exit":  # before work is started again that the process would take along
                    log_unstarted(report)
                    self._exit_for(report.abandoned, EXIT_NEW_PROCESS)
                raise AbandonedBodies(report.abandoned)
            if not self._scheduler.is_calm():
                raise RuntimeError(
                    f"{len(self._scheduler.running())} runs have not ended: {self._scheduler.running()[:3]!r}"
                )
        except BaseException:
            if self._reopen():
                log("admission_reopened", level="warning", generation=self.generation)
            raise
        return report

    async def _change_services(self) -> None:
        """The steps that cannot. The services' own time limits bound it."""
        old, limit = self._services, self.services_timeout
        if not await old.leave(limit):
            raise ServicesStuck(f"the services of generation {self.generation} did not leave within {2 * limit:g} s")
        if old.error is not None:
            log("service_failed", level="error", service="", error=described(old.error))  # it has left, badly
        if self._stopping:
            raise Draining(_GIVEN_UP)
        self._services = fresh = Services(self._factories)
        await fresh.enter(old.name, limit)
        self._scheduler.services = fresh.made
