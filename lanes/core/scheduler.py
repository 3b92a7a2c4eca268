"""The scheduler: from a piece of work that `Intake` has taken in to its outcome. `state` tells how it is laid out."""

from __future__ import annotations

import contextvars

import anyio

from locks import LockRegistry, _effects
from locks._events import described, log
from locks._loop import current_loop, current_task, event_type, know_loop, scope_type

from ..layout import SessionLayout
from ..run import RunState
from ..spec_table import SpecTable
from .deadlock import Waits
from .execution import Execution
from .finish import FROM_OUTSIDE, Finishing
from .hooks import Hooks
from .intake import Intake
from .task_host import new_host


class Scheduler(Finishing):
    """Lanes, groups, turns and runs of one supervisor. To be used on the event loop's thread.

    `serve` must be running for anything to start or to time out.
    """

    def __init__(
        self,
        specs: SpecTable,
        registry: LockRegistry,
        layout: SessionLayout,
        *,
        keep_outcomes: int = 1000,
        hooks: Hooks | None = None,
    ) -> None:
        super().__init__(specs, registry, layout, keep_outcomes=keep_outcomes, hooks=hooks)
        self.waits = Waits(self.turns, self.live, registry, self.groups, self.admit_group)
        self.intake = Intake(self)
        self.pace.on_restore = self.admit_all

    async def serve(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Hold the tasks of the bodies, until cancelled: then it ends all runs, and waits for them within their grace.

        Whichever way it ends, each run has an outcome when it has. Bodies that were abandoned keep it waiting.
        """
        self.registry.arbiter.bind()  # here, in a task: the first work may come from a callback of the loop
        self.scope_ends = anyio.current_effective_deadline()
        self.registry.arbiter.wait_sources.append(self.waits.needs)
        try:
            async with new_host() as self.tasks:
                self._task, self.intake.loop = current_task(), current_loop()
                self.hooks.context = contextvars.copy_context()
                know_loop(self.hooks.context)
                self.new_scope, self.new_event = scope_type(), event_type()
                task_status.started()
                try:
                    await self._serve_timers()
                finally:
                    await self._come_to_rest()
        finally:
            self.tasks, self._task = None, None
            self._tell_the_rest()
            self.registry.arbiter.wait_sources.remove(self.waits.needs)

    async def _serve_timers(self) -> None:
        while True:
            try:
                await self.timers.serve()
            except KeyboardInterrupt as error:
                self.failed(error)  # raised further, it would leave everything as it stands

    async def _come_to_rest(self) -> None:
        """End everything, and keep the timers going until it has ended: they bound that. Not to be interrupted."""
        self._end_all(FROM_OUTSIDE)
        self.on_failure(None, False)
        while not self.is_calm():
            try:
                with anyio.CancelScope(shield=True):
                    async with anyio.create_task_group() as group:
                        group.start_soon(self.timers.serve)
                        await self.calm()
                        group.cancel_scope.cancel()
            except (KeyboardInterrupt, anyio.get_cancelled_exc_class()) as error:
                log("supervisor_cancelled_again", level="warning", error=described(error))

    def _tell_the_rest(self) -> None:
        """No task is left: what has no outcome yet would never get one."""
        self.accepting = self.starting = False
        for execution in sorted(self.live.values(), reverse=True):
            try:
                self._finish_untold(execution)
            except Exception as error:
                log("run_not_ended", level="error", run=execution.run.id, error=described(error))

    @_effects.change
    def _finish_untold(self, execution: Execution) -> None:
        if execution.run.outcome is None:
            self._finish(execution, RunState.CANCELLED, "the supervisor has ended")
        elif self.live.pop(execution.run.id, None) is not None:
            self.hooks.ended(execution.run)

    @_effects.change
    def open(self) -> None:
        """Take work, and start what waits."""
        self.accepting = self.starting = True
        for execution in sorted(self.live.values()):
            if execution.is_queued() and not execution.is_ready and self._is_next(execution):
                self._make_ready(execution)

    @_effects.change
    def shut(self) -> None:
        """Take nothing more, and start nothing but children of what runs."""
        self.accepting = self.starting = False
        for lane in self.lanes.values():
            for execution in lane.queued:
                if execution.is_ready and not self.may_start(execution):
                    lane.make_unready(execution)
            self.groups[lane.spec.group].offer(lane)
        for execution in sorted(self.live.values(), reverse=True):
            if execution.in_line and execution.is_queued() and self.may_start(execution):
                self._pass_who_may_not_start(execution)
