"""The supervisor: one process's lanes, locks and services, from start to stop."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import Self, get_args

import anyio

from lanes import GroupSpec, LaneSpec, RunState, SessionLayout
from lanes.checks import callback, choice, seconds, whole
from lanes.core.hooks import Hook, Hooks
from lanes.core.scheduler import Scheduler
from lanes.spec_table import SpecTable
from locks import InvalidSession, LockRegistry, _clock
from locks._events import described, log
from locks._loop import current_task, has_ended, on_loop_thread, poster

from .background import Background, to_its_end
from .drain import SETTLE_S, Drain, DrainReport, log_unstarted
from .failures import Failures
from .process.bindings import Belongings
from .restart import AbandonedBodies, OnZombie, Restarts, State
from .services import ServiceFactory, Services
from .watch.limits import Keeper, Limits
from .watch.selfcheck import SelfCheck
from .watch.watchdog import Watchdog

_ELSEWHERE = (
    "the supervisor's block was left in another task than it was entered in, which still runs, and whose cancel scopes "
    "are out of order now; the supervisor has stopped; allowed: start() and stop(), which may be called in two tasks"
)
EXIT_ABANDONED = 70
"""The exit code of a process that leaves bodies behind (`EX_SOFTWARE`)."""


class Supervisor(Restarts):
    """Owns everything in one process: its task group's children are lanes, whose children are runs.

    Use it as an async context manager, or call `start` and `stop`, from different tasks if need be. To be used on the
    event loop's thread, but for `submit_threadsafe` and `post_threadsafe`.

    Args:
        sessions: the directory of the transcripts, created when missing, or a `SessionLayout` for an existing one.
        lanes: specifications that add to the default lanes or override them by pattern.
        groups: the same for groups.
        services: name to factory of an async context manager; entered in order before work is accepted, left in
            reverse order, and handed to bodies as `ctx.services`. Each generation makes its own.
        registry: the lock registry; by default one of its own.
        exclusive: whether no other supervisor may have the directory at the same time.
        exclusive_wait: seconds to wait for another one to leave; by default it fails at once.
        signals: whether the process belongs to this supervisor: SIGINT, SIGTERM and SIGHUP stop it, SIGUSR1 restarts
            it, and the `async with` block is cancelled when it is to stop. Main thread only.
        status_socket: where `lanes status` and its like can ask: a path, or `True` for the place where they look.
        notify: whether to talk to the service manager that the environment names (systemd's `NOTIFY_SOCKET`).
        on_zombie: what `stop` and `restart` do with bodies that ignore their cancellation: `"raise"`, or `"exit"` the
            process (70, and 75 from `restart`); with `"exit"`, a loop that is blocked for `limits.dead_s` seconds, and
            a stop or restart that overruns its bounds, end the process too.
        limits: what the process may use, and what happens then.
        drain_timeout: seconds that running runs get to finish when the context manager is left without an exception,
            and before a restart.
        services_timeout: seconds that entering all services may take, and leaving them.
        keep_outcomes: how many finished runs `find` still knows.
        on_run_start: called with each run when it starts, and again for each further attempt.
        on_run_end: called with each run when it has its outcome, and its place and turn have been passed on.
        on_wait: called with each run that does not start when it is submitted. The three are plain functions, called on
            the event loop when the change that they report is complete, in order: each may submit, post, cancel, reset
            and revoke. An exception in one is logged and harms nothing.

    Raises:
        InvalidLane: a specification is not allowed, or contradicts another.
    """

    def __init__(
        self,
        sessions: str | os.PathLike[str] | SessionLayout,
        *,
        lanes: Iterable[LaneSpec] = (),
        groups: Iterable[GroupSpec] = (),
        services: Mapping[str, ServiceFactory] | None = None,
        registry: LockRegistry | None = None,
        exclusive: bool = False,
        exclusive_wait: float = 0.0,
        signals: bool = False,
        status_socket: str | os.PathLike[str] | bool | None = None,
        notify: bool = False,
        on_zombie: OnZombie = "raise",
        limits: Limits | None = None,
        drain_timeout: float = 30.0,
        services_timeout: float = 60.0,
        keep_outcomes: int = 1000,
        on_run_start: Hook | None = None,
        on_run_end: Hook | None = None,
        on_wait: Hook | None = None,
    ) -> None:
        self.layout = sessions if isinstance(sessions, SessionLayout) else SessionLayout(os.fspath(sessions))
        self.registry = registry if registry is not None else LockRegistry()
        self.drain_timeout = seconds("drain_timeout", drain_timeout, zero=True)
        self.services_timeout = seconds("services_timeout", services_timeout)
        choice("on_zombie", on_zombie, get_args(OnZombie))
        self._scheduler = Scheduler(
            SpecTable(lanes, groups),
            self.registry,
            self.layout,
            keep_outcomes=whole("keep_outcomes", keep_outcomes, 0),
            hooks=_hooks(on_run_start=on_run_start, on_run_end=on_run_end, on_wait=on_wait),
        )
        self._factories = dict(services or {})
        self._services = Services(self._factories)
        self._limits = limits or Limits()
        self._on_zombie: OnZombie = on_zombie
        self._leave_process: Callable[[int], object] = os._exit
        self.watchdog = Watchdog(
            Keeper(self._limits, self._scheduler.pace, self.request_restart),
            look=SelfCheck(self._scheduler).look,
            abandoned=lambda: len(self._scheduler.abandoned),
            dead_s=self._limits.dead_s if on_zombie == "exit" else None,
            leave=self._exit_now,
        )
        self._scheduler.lateness = self.watchdog
        self._scheduler.on_failure = self._lanes_failed
        self._belongings = Belongings(
            exclusive=exclusive,
            exclusive_wait=seconds("exclusive_wait", exclusive_wait, zero=True),
            signals=signals,
            status_socket=status_socket,
            notify=notify,
        )
        self.generation = 0
        """Counts the restarts in this process, from 1 for the first start."""
        self._state: State = "new"
        self._lanes_task = Background()
        self._leave_lanes = anyio.Event()
        self._block: anyio.CancelScope | None = None
        self._block_task: object = None
        """The task that entered the block."""
        self._told_to_stop = anyio.Event()
        self._stopping = self._hurried = False
        self._drain: Drain | None = None
        self._services_left = True
        self._starting: anyio.CancelScope | None = None
        self._restart_scope: anyio.CancelScope | None = None
        self._restart_over: anyio.Event | None = None

    def __repr__(self) -> str:
        now = self._scheduler
        queued = sum(len(lane.queued) for lane in now.lanes.values())
        return f"<Supervisor of {self.layout.root}, {self._state}: {len(now.running())} running, {queued} queued>"

    @property
    def state(self) -> State:
        """Where it stands: it moves down the list, but from a drain or a restart it may run again."""
        return self._state

    # Life

    async def start(self) -> None:
        """Enter the services and open admission. A checkpoint; cancelled or failed, nothing is left running.

        Raises:
            InvalidSession: the sessions directory cannot be used; the message says why.
            SessionsOwned: `exclusive`, and another supervisor has the directory; the message names it.
            StatusSocketError: the status socket cannot be had.
            ServicesStuck: the services did not start in time.
            Exception: whatever a service raised on entering.
            SystemExit: `signals`, and one came that stops it before it was started; the code is 128 + its number.
        """
        if self._state != "new":
            raise RuntimeError(f"a supervisor starts once; this one is {self._state}")
        root = os.fspath(self.layout.root)
        _check_root(root)
        self._state = "running"
        try:
            with anyio.CancelScope() as self._starting:
                await self._belongings.take(self, root)
                await self._services.enter(f"supervisor of {root}: services", self.services_timeout)
            self._starting = None
            if self._told_to_stop.is_set():
                raise SystemExit(128 + self._belongings.signal)
            self._scheduler.services = self._services.made
            lanes_ready = anyio.Event()
            self._lanes_task.start(partial(self._serve_lanes, lanes_ready, self._leave_lanes), f"supervisor of {root}")
            await lanes_ready.wait()
            self._raise_failure()
            if self._leave_lanes.is_set():
                raise RuntimeError("the supervisor was stopped while it started")
        except BaseException:
            await self._end_background()
            raise
        self._to_loop = poster()
        self.watchdog.start()
        self.generation = 1
        self._scheduler.open()
        log("supervisor_started", sessions=root, pid=os.getpid())
        self._belongings.ready()

    async def stop(self, *, drain_timeout: float | None = None) -> DrainReport:
        """Refuse new work, let running runs finish for `drain_timeout` seconds, cancel the rest, leave the services.

        Bounded: it ends after the drain, the longest grace, and the services' own leaving. Cancelled while it drains,
        it goes on to cancel the runs at once, and raises the cancellation afterwards. A restart that is under way is
        given up. Calling it again does nothing.

        Raises:
            AbandonedBodies: some bodies ignored their cancellation; everything else is stopped. With `on_zombie="exit"`
                the process ends instead.
            Exception: a service failed in a restart, so everything has stopped already; told once, here too.
        """
        if self._state in ("new", "stopped"):
            self._state = "stopped"
            failure, self._failure = self._failure, None
            if failure is not None:
                raise failure
            return DrainReport(0, 0, (), ())
        self._refuse_inside("stop")
        limit = self.drain_timeout if drain_timeout is None else seconds("drain_timeout", drain_timeout, zero=True)
        self._stopping = True
        failures = Failures()
        with failures.kept("notify"):
            self._belongings.stopping()
        grace = max((spec.grace for spec in self._scheduler.specs.lanes.values()), default=0.0)
        changes = 2 if self._restart_over is None else 7  # times that services may have to leave or enter
        bound = limit + 2 * grace + 2 * SETTLE_S + changes * self.services_timeout
        with failures.kept("hard_limit"):
            self._hard_limit(_clock.clock.now() + bound, EXIT_ABANDONED, "the stop did not end in time")
        report = DrainReport(0, 0, (), ())
        with failures.kept("give_up_restart"):
            await to_its_end(self._give_up_restart, "end of a restart")
        with failures.kept("drain"):
            report = await self.drain(0.0 if failures.interrupted else limit)
        with failures.kept("end_background"):
            await to_its_end(self._end_background, f"stop of {self.layout.root}")
        with failures.kept("log"):
            log_unstarted(report)
            log(
                "supervisor_stopped",
                finished=report.finished,
                cancelled=report.cancelled,
                unstarted=len(report.unstarted),
            )
        failures.raise_first()
        self._raise_failure()
        zombies = tuple(execution.run for execution in self._scheduler.abandoned)
        if zombies:
            self._exit_for(zombies, EXIT_ABANDONED)
            raise AbandonedBodies(zombies)
        if not self._services_left and self._on_zombie == "exit":  # the event loop would wait for them when it ends
            self._exit(EXIT_ABANDONED, f"the services did not leave within {2 * self.services_timeout:g} s")
        return report

    async def stop_requested(self) -> None:
        """Wait until a signal asks to stop (`signals=True`): for who calls `start` and `stop` himself. A checkpoint."""
        await self._told_to_stop.wait()

    async def drain(self, timeout: float) -> DrainReport:
        """Refuse new work and start none, let running runs finish for `timeout` seconds, then cancel them.

        Children of running runs are still taken and started: their parents wait for them.
        Lasts until `stop` or `restart`; a restart that is under way is given up. Cancelled, it cancels the runs at
        once, waits for their grace, and raises afterwards.
        """
        scheduler = self._scheduler
        timeout = seconds("timeout", timeout, zero=True)
        self._refuse_inside("drain")
        scheduler.shut()
        if self._state in ("running", "restarting"):
            self._state = "draining"  # before the restart is given up, which would start queued work on its way back
        await self._give_up_restart()
        self._drain = Drain(scheduler)
        if self._hurried:
            self._drain.hurry()
        return await self._drain.finish_or_cancel(timeout)

    async def _release_zombies(self) -> None:
        """A background task: when the whole loop ends, let that cancellation reach the abandoned bodies too."""
        try:
            await self._scheduler.gone()
        finally:
            for execution in self._scheduler.abandoned:
                execution.tell_body_again()

    def _lanes_failed(self, error: BaseException | None, raised: bool) -> None:
        """The scheduler ends everything by itself: have whatever uses this supervisor know, and go no further.

        Args:
            error: what the block, or `stop`, is to raise; `None` when a task of this supervisor was cancelled.
            raised: whether it is raised out of the event loop.
        """
        if self._leave_lanes.is_set():
            return  # it was told to
        if error is None and not self._told_to_stop.is_set() and not self._stopping:
            error = RuntimeError(
                "a task of the supervisor was cancelled from outside: it has ended all runs, and stops"
            )
        if self._failure is None and not raised:
            self._failure = error
        self._take_no_more()
        if self._block is not None:
            self._block.cancel()

    def _take_no_more(self) -> None:
        self._told_to_stop.set()
        if self.generation and self._state in ("running", "restarting"):
            self._scheduler.shut()
            self._state = "draining"

    def signalled(self, count: int) -> None:
        """The first signal stops it, the second one ends the drain."""
        self._take_no_more()
        if self._starting is not None:
            self._starting.cancel()
        if self._block is not None:
            self._block.cancel()
        self._hurried = count > 1
        if self._hurried and self._drain is not None:
            self._drain.hurry()

    async def __aenter__(self) -> Self:
        await self.start()
        self._block, self._block_task = anyio.CancelScope(), current_task()
        self._block.__enter__()
        if self._told_to_stop.is_set():
            self._block.cancel()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        failures = Failures()
        swallowed = elsewhere = False
        block, self._block = self._block, None
        if not on_loop_thread():  # the loop has ended under it, and its coroutine is collected
            self._left_without_loop()
            return False
        if block is not None and current_task() is not self._block_task:
            elsewhere = True
        elif block is not None:
            with failures.kept("leave_block"):  # raises what is left of a group of exceptions, say
                swallowed = bool(block.__exit__(kind, error, traceback))
        leaves = error is None or swallowed
        in_peace = error is None or (swallowed and self._told_to_stop.is_set())
        failure, self._failure = self._failure, None
        try:
            await self.stop(drain_timeout=None if in_peace else 0.0)
        except AbandonedBodies:
            if leaves and not failures:
                raise
            log("abandoned_bodies_left", level="error", abandoned=len(self._scheduler.abandoned))
        if elsewhere and not has_ended(self._block_task):
            raise RuntimeError(_ELSEWHERE) from error
        failures.raise_first()
        if failure is not None and leaves:
            raise failure
        return swallowed

    def _left_without_loop(self) -> None:
        """Let go of what outlives an event loop. What ran on it cannot be ended in order any more."""
        failures = Failures()
        for name, step in (("stop_watchdog", self.watchdog.stop), ("give_back", self._belongings.give_back)):
            with failures.kept(name):
                step()
        self._state = "stopped"
        failures.raise_first()

    async def _serve_lanes(self, ready: anyio.Event, leave: anyio.Event) -> None:
        """A background task: the task group whose children are the lanes. Lasts as long as any body does."""
        try:
            async with anyio.create_task_group() as group:
                await group.start(self._scheduler.serve)
                ready.set()
                await leave.wait()
                group.cancel_scope.cancel()
        finally:
            self._scheduler.shut()
            ready.set()
            if not leave.is_set():  # it failed by itself, or the loop ends
                await self._end_by_itself()

    async def _end_by_itself(self) -> None:
        """The lanes are gone: let go of everything else, and have whatever uses the supervisor go no further."""
        failures = Failures()
        self._take_no_more()
        if self._block is not None:
            self._block.cancel()
        for step in (self._leave_services, self._stop_watchdog, self._give_back):
            with failures.kept(step.__name__.strip("_")):
                await step()
        if not self._stopping:
            self._state = "stopped"
        why = "its task was cancelled" if self._failure is None else described(self._failure)
        log("supervisor_ended_by_itself", level="error", error=why)
        failures.raise_first()

    async def _end_background(self) -> None:
        """Take all steps of an end. Whatever one of them raises first is raised when all were taken."""
        failures = Failures()
        for name in self._STEPS:
            with failures.kept(name.strip("_")):
                await getattr(self, name)()
        self._state = "stopped"
        failures.raise_first()

    _STEPS = (
        "_tell_queued",
        "_end_running",
        "_watch_abandoned",
        "_leave_lanes_task",
        "_leave_services",
        "_stop_watchdog",
        "_give_back",
    )
    """In this order: abandoned bodies stay behind."""

    async def _tell_queued(self) -> None:
        for execution in reversed(list(self._scheduler.live.values())):
            what = "started" if execution.run.attempt == 1 else "was tried again"
            execution.ask_to_end(RunState.CANCELLED, f"the supervisor stopped before it {what}")

    async def _end_running(self) -> None:
        self._scheduler.shut()
        await Drain(self._scheduler).cancel_rest("the supervisor is stopping")  # the lanes' timers are needed for it

    async def _watch_abandoned(self) -> None:
        if self._scheduler.abandoned:
            Background().start(self._release_zombies, "end of abandoned bodies")

    async def _leave_lanes_task(self) -> None:
        with anyio.CancelScope(shield=True):
            self._leave_lanes.set()
            if self._lanes_task.started and not self._scheduler.abandoned:
                await self._lanes_task.over.wait()

    async def _leave_services(self) -> None:
        self._services_left = await self._services.leave(self.services_timeout)

    async def _stop_watchdog(self) -> None:
        self.watchdog.stop()

    async def _give_back(self) -> None:
        self._belongings.give_back()

    def _raise_failure(self) -> None:
        """Raise what a background task has failed with."""
        error, failure = self._lanes_task.error, self._failure
        self._failure = None
        if failure is not None:
            raise failure
        if self._services.error is not None:
            raise self._services.error
        if error is not None and not isinstance(error, anyio.get_cancelled_exc_class()):
            raise error


def _hooks(**hooks: Hook | None) -> Hooks:
    for name, hook in hooks.items():
        if hook is not None:
            callback(name, hook, f"{name}(run)", 1)
    return Hooks(*hooks.values())


def _check_root(root: str) -> None:
    """Make the sessions directory if need be, and see that it can be written.

    Raises:
        InvalidSession: it cannot.
    """
    try:
        os.makedirs(root, mode=0o700, exist_ok=True)
        if not stat.S_ISDIR(os.stat(root).st_mode):
            raise NotADirectoryError(20, "Not a directory", root)
        if not os.access(root, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied", root)
    except OSError as error:
        raise InvalidSession(
            f"sessions: {root!r} cannot be used ({error.strerror}); allowed: a writable directory"
        ) from error
