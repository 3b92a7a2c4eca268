"""How a supervisor is started, drained and stopped, and how its block is entered and left."""

from __future__ import annotations

import os
import stat
from types import TracebackType
from typing import TYPE_CHECKING

import anyio

from lanes.core.scheduler import Scheduler
from locks import InvalidSession, _clock
from locks._events import log
from locks._loop import current_task, has_ended, on_loop_thread, poster

from .background import to_its_end
from .drain import SETTLE_S, Drain, DrainReport, log_unstarted, refuse_inside
from .ending import Ending
from .failures import Failures
from .phase import STATES, Phase, Standing
from .process.bindings import Bindings
from .restart import Restarts
from .watch.watchdog import Watchdog
from .zombies import AbandonedBodies, Exits

if TYPE_CHECKING:
    from .inbox.service import InboxService

EXIT_ABANDONED = 70
"""The exit code of a process that leaves bodies behind (`EX_SOFTWARE`)."""
_ELSEWHERE = (
    "the supervisor's block was left in another task than it was entered in, which still runs, and whose cancel scopes "
    "are out of order now; the supervisor has stopped; allowed: start() and stop(), which may be called in two tasks"
)


class Life:
    """Starts, drains and stops one supervisor. On the event loop's thread; `Supervisor` documents the calls.

    Args:
        root: the directory of the sessions, or the name of the store.
        local: whether it is a directory.
    """

    def __init__(
        self,
        root: str,
        local: bool,
        standing: Standing,
        scheduler: Scheduler,
        watchdog: Watchdog,
        bindings: Bindings,
        exits: Exits,
        inbox: InboxService | None,
    ) -> None:
        self.ending = Ending(standing, scheduler, watchdog, bindings, inbox)
        self.restarts = Restarts(standing, scheduler, bindings, self.ending, exits, inbox)
        self._local = local
        self._root, self._standing, self._scheduler, self._exits = root, standing, scheduler, exits
        self._watchdog, self._bindings, self._inbox = watchdog, bindings, inbox
        self._starting: anyio.CancelScope | None = None
        self._drain: Drain | None = None
        self._hurried = False
        """Whether a second signal has come: drains end at once."""
        self._block_task: object = None
        """The task that entered the block."""

    async def start(self) -> None:
        """Enter the services and open admission."""
        standing, root = self._standing, self._root
        if not standing.is_in(Phase.NEW):
            raise RuntimeError(f"a supervisor starts once; this one is {STATES[standing.phase]}")
        if self._local:
            _check_root(root)
        standing.move(Phase.STARTING)
        try:
            with anyio.CancelScope() as self._starting:
                await self._bindings.take(root, self.signalled)
                if self._inbox is not None:
                    await self._inbox.open()
                await standing.services.enter(f"supervisor of {root}: services", standing.services_timeout)
            self._starting = None
            if standing.stop_asked.is_set():
                raise SystemExit(128 + self._bindings.signal)
            self._scheduler.board.services = standing.services.made
            await self.ending.begin_lanes(f"supervisor of {root}")
            self.ending.raise_failure()
            if standing.is_in(Phase.STOPPING, Phase.STOPPED):
                raise RuntimeError("the supervisor was stopped while it started")
        except BaseException:
            await self.ending.end()
            raise
        standing.to_loop = poster()
        self._watchdog.start()
        standing.generation = 1
        if standing.is_in(Phase.STARTING):  # a drain that was asked for meanwhile lasts
            standing.move(Phase.RUNNING)
            self._scheduler.open()
            if self._inbox is not None:
                self._inbox.begin()
        log("supervisor_started", sessions=root, pid=os.getpid())
        self._bindings.ready()

    async def stop(self, drain_timeout: float) -> DrainReport:
        """Drain, and end everything. All steps are taken, also when one of them raises."""
        standing, report = self._standing, DrainReport(0, 0, (), ())
        if standing.is_in(Phase.NEW, Phase.STOPPED):
            standing.move(Phase.STOPPED)
            if (failure := standing.take_failure()) is not None:
                raise failure
            return report
        refuse_inside(self._scheduler, "stop")
        standing.move(Phase.STOPPING)
        failures = Failures()
        with failures.kept("notify"):
            self._bindings.stopping()
        grace = max((spec.grace for spec in self._scheduler.board.specs.lanes.values()), default=0.0)
        changes = 7 if self.restarts.under_way else 2  # times that services may have to leave or enter
        bound = drain_timeout + 2 * grace + 2 * SETTLE_S + changes * standing.services_timeout
        with failures.kept("hard_limit"):
            self._exits.limit(_clock.clock.now() + bound, EXIT_ABANDONED, "the stop did not end in time")
        with failures.kept("give_up_restart"):
            await to_its_end(self.restarts.give_up, "end of a restart")
        with failures.kept("drain"):
            report = await self.drain(0.0 if failures.interrupted else drain_timeout)
        with failures.kept("end_background"):
            await to_its_end(self.ending.end, f"stop of {self._root}")
        with failures.kept("log"):
            log_unstarted(report)
            log(
                "supervisor_stopped",
                finished=report.finished,
                cancelled=report.cancelled,
                unstarted=len(report.unstarted),
            )
        failures.raise_first()
        self.ending.raise_failure()
        if self._scheduler.board.abandoned:
            zombies = tuple(execution.run for execution in self._scheduler.board.abandoned)
            self._exits.for_runs(zombies, EXIT_ABANDONED)
            raise AbandonedBodies(zombies)
        if not self.ending.services_left:  # the event loop would wait for them when it ends
            late = f"the services did not leave within {2 * standing.services_timeout:g} s"
            self._exits.now(EXIT_ABANDONED, late)
        return report

    async def drain(self, timeout: float) -> DrainReport:
        """Refuse new work, let running runs finish, then cancel them."""
        standing = self._standing
        self._scheduler.shut()
        if standing.is_in(Phase.STARTING, Phase.RUNNING, Phase.RESTARTING):
            standing.move(Phase.DRAINING)  # before the restart is given up: on its way back it would start queued work
        await self.restarts.give_up()
        self._drain = Drain(self._scheduler)
        if self._hurried:
            self._drain.hurry()
        return await self._drain.finish_or_cancel(timeout)

    def signalled(self, count: int) -> None:
        """The first signal stops the supervisor, the second one ends the drain."""
        self.ending.take_no_more()
        if self._starting is not None:
            self._starting.cancel()
        self._hurried = count > 1
        if self._hurried and self._drain is not None:
            self._drain.hurry()

    # The block

    def enter_block(self) -> None:
        """The body of the block begins: from here on it is cancelled when the supervisor is to stop."""
        self._block_task = current_task()
        self._standing.block = anyio.CancelScope()
        self._standing.block.__enter__()
        if self._standing.stop_asked.is_set():
            self._standing.block.cancel()

    async def leave_block(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        drain_timeout: float,
    ) -> bool:
        """Stop when the body of the block has ended; returns whether what it raised is the cancellation of `signalled`.

        Args:
            drain_timeout: seconds that running runs get; without effect when the body has raised.
        """
        standing, failures = self._standing, Failures()
        swallowed = elsewhere = False
        block, standing.block = standing.block, None
        if not on_loop_thread():  # the loop has ended under it, and its coroutine is collected
            self.ending.end_without_loop()
            return False
        if block is not None and current_task() is not self._block_task:
            elsewhere = True
        elif block is not None:
            with failures.kept("leave_block"):  # raises what is left of a group of exceptions, say
                swallowed = bool(block.__exit__(kind, error, traceback))
        leaves = error is None or swallowed
        in_peace = error is None or (swallowed and standing.stop_asked.is_set())
        failure = standing.take_failure()
        try:
            await self.stop(drain_timeout if in_peace else 0.0)
        except AbandonedBodies:
            if leaves and not failures:
                raise
            log("abandoned_bodies_left", level="error", abandoned=len(self._scheduler.board.abandoned))
        if elsewhere and not has_ended(self._block_task):
            raise RuntimeError(_ELSEWHERE) from error
        failures.raise_first()
        if failure is not None and leaves:
            raise failure
        return swallowed


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
