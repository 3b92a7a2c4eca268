"""How a supervisor ends: because it was stopped, because its start failed, or by itself, when its lanes have ended.

The lanes are the children of a background task, which lasts as long as any body does, so abandoned bodies stay behind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from lanes import RunState
from lanes.core.scheduler import Scheduler
from locks._events import described, log

from .background import Background
from .drain import Drain
from .failures import Failures
from .phase import Phase, Standing
from .process.bindings import Bindings
from .watch.watchdog import Watchdog

if TYPE_CHECKING:
    from .inbox.service import InboxService


class Ending:
    """Takes down everything that a supervisor has. On the event loop's thread."""

    STEPS = (
        "tell_queued",
        "end_running",
        "watch_abandoned",
        "leave_lanes_task",
        "leave_services",
        "close_inbox",
        "stop_watchdog",
        "give_back",
    )
    """The methods that `end` calls, in this order."""

    def __init__(
        self,
        standing: Standing,
        scheduler: Scheduler,
        watchdog: Watchdog,
        bindings: Bindings,
        inbox: InboxService | None,
    ) -> None:
        self.lanes = Background()
        """The task whose children are the lanes."""
        self.services_left = True
        """Whether the services left when they last had to."""
        self._standing, self._scheduler, self._watchdog, self._bindings = standing, scheduler, watchdog, bindings
        self._inbox = inbox
        self._leave = anyio.Event()
        scheduler.board.on_failure = self._lanes_failed

    async def begin_lanes(self, name: str) -> None:
        """Start the task of the lanes, called `name`, and wait until it serves or has ended. A checkpoint."""
        ready = anyio.Event()
        self.lanes.start(lambda: self._serve_lanes(ready), name, ready=ready)
        await ready.wait()
        if not self.lanes.began:  # asyncio can cancel a task before its first step: no lane has served
            self._lanes_failed(None, False)

    async def end(self) -> None:
        """Take all steps. A checkpoint. The first exception is raised when all were taken."""
        failures = Failures()
        for name in self.STEPS:
            with failures.kept(name):
                await getattr(self, name)()
        self._standing.move(Phase.STOPPED)
        failures.raise_first()

    def end_without_loop(self) -> None:
        """Let go of what outlives an event loop that is gone: what ran on it cannot be ended in order any more."""
        failures = Failures()
        if self._inbox is not None:
            self._inbox.store.let_go()
        for name, step in (("stop_watchdog", self._watchdog.stop), ("give_back", self._bindings.give_back)):
            with failures.kept(name):
                step()
        self._standing.move(Phase.STOPPED)
        failures.raise_first()

    def raise_failure(self) -> None:
        """Raise what a background task has failed with."""
        failure, error = self._standing.take_failure(), self.lanes.error
        if failure is not None:
            raise failure
        if self._standing.services.error is not None:
            raise self._standing.services.error
        if error is not None and not isinstance(error, anyio.get_cancelled_exc_class()):
            raise error

    def take_no_more(self) -> None:
        """Close admission for good, and have the code that uses the supervisor go no further."""
        self._standing.end_use()
        if self._standing.is_in(Phase.RUNNING, Phase.RESTARTING):
            self._scheduler.shut()
            self._standing.move(Phase.DRAINING)

    # The steps

    async def tell_queued(self) -> None:
        """End the queued runs: nothing starts them any more."""
        for execution in reversed(list(self._scheduler.board.live.values())):
            what = "started" if execution.run.attempt == 1 else "was tried again"
            execution.ask_to_end(RunState.CANCELLED, f"the supervisor stopped before it {what}")

    async def end_running(self) -> None:
        """Cancel the running runs and wait for their grace, while the lanes' timers, which bound it, still go."""
        self._scheduler.shut()
        await Drain(self._scheduler).cancel_rest("the supervisor is stopping")

    async def watch_abandoned(self) -> None:
        """See to it that abandoned bodies end with the event loop."""
        if self._scheduler.board.abandoned:
            Background().start(self._release_zombies, "end of abandoned bodies")

    async def leave_lanes_task(self) -> None:
        """End the task of the lanes; abandoned bodies keep it."""
        with anyio.CancelScope(shield=True):
            self._leave.set()
            if self.lanes.started and not self._scheduler.board.abandoned:
                await self.lanes.over.wait()

    async def leave_services(self) -> None:
        """Have the services leave."""
        self.services_left = await self._standing.services.leave(self._standing.services_timeout)

    async def close_inbox(self) -> None:
        """Commit what the inbox was given, and close it."""
        if self._inbox is not None:
            await self._inbox.close()

    async def stop_watchdog(self) -> None:
        """Watch the event loop no more."""
        self._watchdog.stop()

    async def give_back(self) -> None:
        """Give the directory, the signals and the socket back."""
        self._bindings.give_back()

    # The task of the lanes

    async def _serve_lanes(self, ready: anyio.Event) -> None:
        """A background task: the task group whose children are the lanes. Lasts as long as any body does."""
        try:
            async with anyio.create_task_group() as group:
                await group.start(self._scheduler.serve)
                ready.set()
                await self._leave.wait()
                group.cancel_scope.cancel()
        finally:
            self._scheduler.shut()
            ready.set()
            if not self._leave.is_set():  # it failed by itself, or the loop ends
                await self._end_by_itself()

    def _lanes_failed(self, error: BaseException | None, raised: bool) -> None:
        """The scheduler ends everything by itself: go no further.

        Args:
            error: what the block, or `stop`, is to raise; `None` when a task of this supervisor was cancelled.
            raised: whether it is raised out of the event loop.
        """
        standing = self._standing
        if self._leave.is_set():
            return  # the task was told to end
        if error is None and not standing.stop_asked.is_set() and not standing.is_in(Phase.STOPPING, Phase.STOPPED):
            error = RuntimeError(
                "a task of the supervisor was cancelled from outside: it has ended all runs, and stops"
            )
        if standing.failure is None and not raised:
            standing.failure = error
        self.take_no_more()

    async def _end_by_itself(self) -> None:
        """The lanes are gone: let go of everything else."""
        failures = Failures()
        self.take_no_more()
        for step in (self.leave_services, self.close_inbox, self.stop_watchdog, self.give_back):
            with failures.kept(step.__name__):
                await step()
        standing = self._standing
        if not standing.is_in(Phase.STOPPING):
            standing.move(Phase.STOPPED)
        why = "its task was cancelled" if standing.failure is None else described(standing.failure)
        log("supervisor_ended_by_itself", level="error", error=why)
        failures.raise_first()

    async def _release_zombies(self) -> None:
        """A background task: when the whole loop ends, let that cancellation reach the abandoned bodies too."""
        try:
            await self._scheduler.board.wait_abandoned()
        finally:
            for execution in self._scheduler.board.abandoned:
                execution.unshield_body()
