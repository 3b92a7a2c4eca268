"""The scheduler: it puts its parts together, and serves them while the supervisor runs.

Work comes in by `intake`. `start` has it wait and start, `steer` hands messages to runs that are under way; `causes`
has what ends a run, and `finish` and `next_attempt` what becomes of it then. They share one `board`.
"""

from __future__ import annotations

import contextvars

import anyio

from locks import _effects
from locks._events import described, log
from locks._loop import checkpoint_of_loop, current_loop, current_task, event_type, know_loop, scope_type

from ..run import RunState
from .board import Board
from .causes import Causes
from .configuring import Configuring
from .deadlock import Waits
from .execution import Execution
from .extending import extend
from .finish import Finishing
from .intake import Intake
from .next_attempt import Retrying
from .outcomes import FROM_OUTSIDE
from .parking import Parking
from .pools import Pools
from .start import Starting
from .steer import Steering
from .task_host import new_host


class Scheduler:
    """Lanes, groups, turns and runs of one supervisor. To be used on the event loop's thread.

    `serve` must be running for anything to start or to time out. The board is for reading, but for its `services`,
    `lateness`, `throttle` and `on_failure`, which the supervisor sets.
    """

    def __init__(self, board: Board) -> None:
        self.board = board
        starting = Starting(board)
        steering = Steering(board, starting)
        self.waits = waits = Waits(board, starting.admit_group)
        self.pools = pools = Pools(board, waits)
        self._finishing = finishing = Finishing(board, starting, steering, waits, pools)
        self._causes = causes = Causes(board, finishing, Retrying(board, starting, finishing), waits)
        self.intake = intake = Intake(board, starting, steering, causes, self)
        board.throttle.on_restore = starting.admit_all

        # For the supervisor
        self.take_work, self.open, self.shut = starting.take_work, starting.open, starting.shut
        self.admit_all = starting.admit_all
        self.configuring = Configuring(board, starting, pools)
        # As the owner of its executions; each name is that of the part itself, so that no call takes two steps
        self.submit, self.message_read, self.wait_for = intake.submit, steering.message_read, waits.wait
        self.extend = extend
        self.pool, starting.on_lent = pools.grant, pools.lent
        self.parking = Parking(board, intake)
        self.finish, self.park_if_failed = finishing.finish, self.parking.park_if_failed
        self.end, self.interrupted = causes.end, causes.interrupted
        self.queue_timeout, self.deadline_came = causes.queue_timeout, causes.deadline_came
        self.turn_lost, self.wait_died = causes.turn_lost, causes.wait_died
        self.body_ended, self.body_died = causes.body_ended, causes.body_died

    async def serve(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Hold the tasks of the bodies, until cancelled: then it ends all runs, and waits for them within their grace.

        Whichever way it ends, each run has an outcome when it has. Bodies that were abandoned keep it waiting.
        """
        # Here, in a task: the first work may come from a callback of the loop, which is none.
        self.board.registry.arbiter.bind()
        self.board.scope_ends = anyio.current_effective_deadline()
        self.board.registry.arbiter.wait_sources.append(self.waits.needs)
        try:
            async with new_host() as self.board.tasks:
                self.board.task, self.board.loop = current_task(), current_loop()
                self.board.hooks.context = contextvars.copy_context()
                know_loop(self.board.hooks.context)
                self.board.new_scope, self.board.new_event = scope_type(), event_type()
                self.board.checkpoint = checkpoint_of_loop()
                task_status.started()
                try:
                    await self._serve_timers()
                finally:
                    await self._come_to_rest()
        finally:
            self.board.tasks, self.board.task = None, None
            self._end_the_rest()
            self.board.registry.arbiter.wait_sources.remove(self.waits.needs)

    async def _serve_timers(self) -> None:
        while True:
            try:
                await self.board.timers.serve()
            except KeyboardInterrupt as error:
                self._causes.failed(error)  # raised further, it would leave everything as it stands

    async def _come_to_rest(self) -> None:
        """End everything, and keep the timers going until it has ended: they bound that. Not to be interrupted."""
        self._causes.end_all(FROM_OUTSIDE)
        self.board.on_failure(None, False)
        while not self.board.is_idle():
            try:
                with anyio.CancelScope(shield=True):
                    async with anyio.create_task_group() as group:
                        group.start_soon(self.board.timers.serve)
                        await self.board.wait_idle()
                        group.cancel_scope.cancel()
            except (KeyboardInterrupt, anyio.get_cancelled_exc_class()) as error:
                log("supervisor_cancelled_again", level="warning", error=described(error))

    def _end_the_rest(self) -> None:
        """No task is left: what has no outcome yet would never get one."""
        self.board.accepting = self.board.starting = False
        for execution in sorted(self.board.live.values(), reverse=True):
            try:
                self._finish_left(execution)
            except Exception as error:
                log("run_not_ended", level="error", run=execution.run.id, error=described(error))

    @_effects.change
    def _finish_left(self, execution: Execution) -> None:
        if execution.run.outcome is None:
            self._finishing.finish(execution, RunState.CANCELLED, "the supervisor has ended")
        elif self.board.live.pop(execution.run.id, None) is not None:
            self.board.hooks.ended(execution.run)
