"""The scheduler: from a piece of work that `Intake` has taken in to its outcome. `state` tells how it is laid out."""

from __future__ import annotations

import contextvars
import threading

import anyio

from locks import LockRegistry, _effects
from locks._loop import current_task, event_type, know_loop, scope_type

from .finishing import Finishing
from .hooks import Hooks
from .intake import Intake
from .layout import SessionLayout
from .table import SpecTable
from .waits import Waits


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
        """Hold the task group whose children are the lanes, until cancelled."""
        self.registry.bind()  # here, in a task: the first work may come from a callback of the loop, which is none
        self.registry.wait_sources.append(self.waits.tasks_before)
        try:
            async with anyio.create_task_group() as group:
                self._group, self._task, self.intake.thread = group, current_task(), threading.get_ident()
                self.hooks.context = contextvars.copy_context()
                know_loop(self.hooks.context)
                self.new_scope, self.new_event = scope_type(), event_type()
                for pattern in self.specs.lanes:
                    self._open_host(pattern)
                task_status.started()
                try:
                    await self.timers.serve()
                finally:
                    self._end_queued()
        finally:
            self._group, self._task = None, None
            self.registry.wait_sources.remove(self.waits.tasks_before)

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
