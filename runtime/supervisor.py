"""The supervisor: one process's lanes, locks and services, from start to stop."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self

import anyio

from lanes import GroupSpec, LaneSpec, Run, RunState, SessionLayout, current_run
from lanes.checks import callback, seconds, whole
from lanes.hooks import Hook, Hooks
from lanes.scheduler import Scheduler
from lanes.table import SpecTable
from locks import DeadlockError, InvalidSession, LockRegistry
from locks._events import log
from locks._loop import poster

from .background import Background
from .drain import DrainReport, finish_or_cancel
from .lag import LagMeter, Limits
from .work import Work

ServiceFactory = Callable[[], AbstractAsyncContextManager[Any]]


class AbandonedBodies(RuntimeError):
    """A supervisor stopped, but bodies that ignored their cancellation still run. They are fenced: none can write."""

    def __init__(self, runs: tuple[Run, ...]) -> None:
        super().__init__(f"{len(runs)} abandoned: " + "; ".join(repr(run) for run in runs[:10]))
        self.runs = runs


class Supervisor(Work):
    """Owns everything in one process: its task group's children are lanes, whose children are runs.

    Use it as an async context manager, or call `start` and `stop`, from different tasks if need be. To be used on the
    event loop's thread, but for `submit_threadsafe` and `post_threadsafe`.

    Args:
        sessions: the directory of the transcripts, created when missing, or a `SessionLayout` for an existing one.
        lanes: specifications that add to the default lanes or override them by pattern.
        groups: the same for groups.
        services: name to factory of an async context manager; entered in order before work is accepted, left in
            reverse order, and handed to bodies as `ctx.services`.
        registry: the lock registry; by default one of its own.
        drain_timeout: seconds that running runs get to finish when the context manager is left without an exception.
        keep_outcomes: how many finished runs `find` still knows.
        lag_limit: seconds that the event loop may be late; past it, runs are started slowly until it is well again.
        memory_limit: bytes that the process may have resident; past it, the same. `None` for any number.
        max_abandoned: bodies that may ignore their cancellation; with more, `statistics().healthy` is false.
        on_run_start: called with each run when it starts, and again for each further attempt.
        on_run_end: called with each run when it has its outcome, just before its place and turn are passed on.
        on_wait: called with each run that does not start when it is submitted. The three are plain functions, called on
            the event loop; an exception in one is logged and harms nothing.

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
        drain_timeout: float = 30.0,
        keep_outcomes: int = 1000,
        lag_limit: float = 1.0,
        memory_limit: int | None = None,
        max_abandoned: int = 10,
        on_run_start: Hook | None = None,
        on_run_end: Hook | None = None,
        on_wait: Hook | None = None,
    ) -> None:
        self.layout = sessions if isinstance(sessions, SessionLayout) else SessionLayout(os.fspath(sessions))
        self.registry = registry if registry is not None else LockRegistry()
        self.drain_timeout = seconds("drain_timeout", drain_timeout, zero=True)
        self._scheduler = Scheduler(
            SpecTable(lanes, groups),
            self.registry,
            self.layout,
            keep_outcomes=whole("keep_outcomes", keep_outcomes, 0),
            hooks=_hooks(on_run_start=on_run_start, on_run_end=on_run_end, on_wait=on_wait),
        )
        self._services = dict(services or {})
        memory = None if memory_limit is None else whole("memory_limit", memory_limit, 1)
        self._lag = LagMeter(self._scheduler.pace, Limits(seconds("lag_limit", lag_limit), memory))
        self._max_abandoned = whole("max_abandoned", max_abandoned, 0)
        self._state: Literal["new", "running", "draining", "stopped"] = "new"
        self._services_task, self._lanes_task = Background(), Background()
        self._services_ready = anyio.Event()
        self._services_life: anyio.CancelScope | None = None
        self._leave_services, self._leave_lanes = anyio.Event(), anyio.Event()
        self._block: anyio.CancelScope | None = None

    def __repr__(self) -> str:
        now = self._scheduler
        queued = sum(len(lane.queued) for lane in now.lanes.values())
        return f"<Supervisor of {self.layout.root}, {self._state}: {len(now.running())} running, {queued} queued>"

    # Life

    async def start(self) -> None:
        """Enter the services and open admission. A checkpoint; cancelled or failed, nothing is left running.

        Raises:
            InvalidSession: the sessions directory cannot be used; the message says why.
            Exception: whatever a service raised on entering.
        """
        if self._state != "new":
            raise RuntimeError(f"a supervisor starts once; this one is {self._state}")
        _check_root(os.fspath(self.layout.root))
        self._state = "running"
        name = f"supervisor of {self.layout.root}"
        try:
            life = self._services_life = anyio.CancelScope()
            services = partial(self._serve_services, self._services_ready, self._leave_services, life)
            self._services_task.start(services, f"{name}: services")
            await self._services_ready.wait()
            self._raise_failure()
            lanes_ready = anyio.Event()
            self._lanes_task.start(partial(self._serve_lanes, lanes_ready, self._leave_lanes), name)
            await lanes_ready.wait()
            self._raise_failure()
            if self._leave_lanes.is_set():
                raise RuntimeError("the supervisor was stopped while it started")
        except BaseException:
            await self._end_background()
            raise
        self._to_loop = poster()
        self._scheduler.open()
        log("supervisor_started", sessions=os.fspath(self.layout.root), pid=os.getpid())

    async def stop(self, *, drain_timeout: float | None = None) -> DrainReport:
        """Refuse new work, let running runs finish for `drain_timeout` seconds, cancel the rest, leave the services.

        Bounded: it ends after the drain, the longest grace, and the services' own leaving. Cancelled while it drains,
        it goes on to cancel the runs at once, and raises the cancellation afterwards. Calling it again does nothing.

        Raises:
            AbandonedBodies: some bodies ignored their cancellation; everything else is stopped.
        """
        if self._state in ("new", "stopped"):
            self._state = "stopped"
            return DrainReport(0, 0, (), ())
        self._refuse_inside("stop")
        limit = self.drain_timeout if drain_timeout is None else seconds("drain_timeout", drain_timeout, zero=True)
        report = DrainReport(0, 0, (), ())
        try:
            report = await self.drain(limit)
        finally:
            await self._end_background()
            log(
                "supervisor_stopped",
                finished=report.finished,
                cancelled=report.cancelled,
                unstarted=len(report.unstarted),
            )
        self._raise_failure()
        zombies = tuple(execution.run for execution in self._scheduler.abandoned)
        if zombies:
            Background().start(self._release_zombies, "end of abandoned bodies")
            raise AbandonedBodies(zombies)
        return report

    async def _release_zombies(self) -> None:
        """A background task: when the whole loop ends, let that cancellation reach the abandoned bodies too."""
        try:
            await self._scheduler.gone()
        finally:
            for execution in self._scheduler.abandoned:
                execution.tell_body_again()

    async def drain(self, timeout: float) -> DrainReport:
        """Refuse new work and start none, let running runs finish for `timeout` seconds, then cancel them.

        Children of running runs are still taken and started: their parents wait for them.
        Lasts until `stop`. Cancelled, it cancels the runs at once, waits for their grace, and raises afterwards.
        """
        scheduler = self._scheduler
        timeout = seconds("timeout", timeout, zero=True)
        self._refuse_inside("drain")
        scheduler.shut()
        if self._state == "running":
            self._state = "draining"
        return await finish_or_cancel(scheduler, timeout)

    def _refuse_inside(self, what: str) -> None:
        run = current_run()
        if run is not None and run.outcome is None and self._scheduler.find(run.id) is run:
            raise DeadlockError(f"{what}() waits for run {run.id} on lane {run.lane}, which awaits it", run_id=run.id)

    async def __aenter__(self) -> Self:
        await self.start()
        self._block = anyio.CancelScope()
        self._block.__enter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        assert self._block is not None
        swallowed = self._block.__exit__(kind, error, traceback)
        try:
            await self.stop(drain_timeout=None if error is None else 0.0)
        except AbandonedBodies:
            if error is None or swallowed:
                raise
            log("abandoned_bodies_left", level="error", abandoned=len(self._scheduler.abandoned))
        return swallowed

    async def _serve_services(self, ready: anyio.Event, leave: anyio.Event, life: anyio.CancelScope) -> None:
        """A background task: enter the services in order, and leave them in reverse when it is time."""
        try:
            with life:
                async with AsyncExitStack() as stack:
                    services: dict[str, Any] = {}
                    for name, factory in self._services.items():
                        try:
                            services[name] = await stack.enter_async_context(factory())
                        except Exception as error:
                            error.add_note(f"service {name!r} failed to start; admission stays closed")
                            log("service_failed", level="error", service=name, error=repr(error))
                            raise
                    self._scheduler.services = services
                    ready.set()
                    await leave.wait()
        finally:
            ready.set()

    async def _serve_lanes(self, ready: anyio.Event, leave: anyio.Event) -> None:
        """A background task: the task group whose children are the lanes. Lasts as long as any body does."""
        try:
            async with anyio.create_task_group() as group:
                await group.start(self._scheduler.serve)
                _ = group.start_soon(self._lag.serve, name="loop lag meter")
                ready.set()
                await leave.wait()
                group.cancel_scope.cancel()
        finally:
            self._scheduler.shut()
            ready.set()
            if not leave.is_set() and self._block is not None:
                self._block.cancel()  # it failed by itself: whoever uses the supervisor must not go on

    async def _end_background(self) -> None:
        """Tell queued runs, close the task group, leave the services; abandoned bodies stay behind."""
        for execution in reversed(list(self._scheduler.live.values())):
            what = "started" if execution.run.attempt == 1 else "was tried again"
            execution.ask_to_end(RunState.CANCELLED, f"the supervisor stopped before it {what}")
        with anyio.CancelScope(shield=True):
            self._leave_lanes.set()
            if self._lanes_task.started and not self._scheduler.abandoned:
                await self._lanes_task.over.wait()
            if not self._services_ready.is_set() and self._services_life is not None:
                self._services_life.cancel()
            self._leave_services.set()
            if self._services_task.started:
                await self._services_task.over.wait()
        self._state = "stopped"

    def _raise_failure(self) -> None:
        """Raise what a background task has failed with."""
        for task in (self._services_task, self._lanes_task):
            if task.error is not None and not isinstance(task.error, anyio.get_cancelled_exc_class()):
                raise task.error


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
