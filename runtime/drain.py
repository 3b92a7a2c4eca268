"""Coming to rest: running work finishes, or is cancelled, or is left behind and named."""

from __future__ import annotations

from dataclasses import dataclass

import anyio

from lanes import Run, RunState, current_run
from lanes.core.execution import Execution
from lanes.core.scheduler import Scheduler
from locks import DeadlockError
from locks._events import log

SETTLE_S = 1.0
"""Beyond the longest grace: for outcomes to be recorded after the last body was abandoned."""


@dataclass(frozen=True, slots=True)
class DrainReport:
    """What became of the work when a supervisor drained."""

    finished: int
    """Runs that had ended, in any state, when the drain was over."""
    cancelled: int
    """Runs that were cancelled at the end of the drain and ended within their grace."""
    abandoned: tuple[Run, ...]
    """Runs whose bodies ignored their cancellation, and still run."""
    unstarted: tuple[Run, ...]
    """Runs that were still queued."""
    kept: tuple[Run, ...] = ()
    """Those of them whose messages an inbox keeps: the next process answers them."""


def refuse_inside(scheduler: Scheduler, what: str) -> None:
    """See that a call is not awaited by a run that the call would wait for.

    Raises:
        DeadlockError: it is.
    """
    run = current_run()
    if run is not None and run.outcome is None and scheduler.board.find(run.id) is run:
        raise DeadlockError(f"{what}() waits for run {run.id} on lane {run.lane}, which awaits it", run_id=run.id)


class Drain:
    """One drain of a scheduler that takes and starts nothing more."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._before = scheduler.board.running()
        self._left: list[Execution] = []
        self._waiting = anyio.CancelScope()

    def hurry(self) -> None:
        """Wait no longer for running runs to finish."""
        self._waiting.cancel()

    async def let_finish(self, timeout: float) -> bool:
        """Wait for running runs, for `timeout` seconds at most; returns whether all have ended. A checkpoint.

        Cancelled, nothing has changed.
        """
        self._waiting.deadline = anyio.current_time() + timeout
        with self._waiting:
            await self._scheduler.board.wait_idle()
        return self._scheduler.board.is_idle()

    async def cancel_rest(self, reason: str) -> None:
        """Cancel what still runs, and wait for its grace; not interrupted by cancellation. A checkpoint.

        When work is started again, because a restart has come in between, it is not this drain's to cancel.
        """
        if self._scheduler.board.starting:
            return
        self._left = self._scheduler.board.running()
        for execution in self._left:
            execution.ask_to_end(RunState.CANCELLED, reason)
        grace = max((execution.spec.grace for execution in self._left), default=0.0)
        # Twice: a body that had no chance to end, because the loop came late, gets its grace again.
        # And as often as the loop comes so late that this is over before the timers that abandon have rung.
        with anyio.CancelScope(shield=True):
            while self._left and self._scheduler.board.serving and not self._scheduler.board.is_idle():
                with anyio.move_on_after(2 * grace + SETTLE_S):
                    await self._scheduler.board.wait_idle()

    def report(self) -> DrainReport:
        """What became of the runs that ran when the drain began, and of the queued ones."""
        zombies, left = self._scheduler.board.abandoned, self._left
        queued = [execution for lane in self._scheduler.board.lanes.values() for execution in lane.queued]
        queued.sort(key=lambda one: one.run.id)
        return DrainReport(
            finished=sum(execution not in left and execution not in zombies for execution in self._before),
            cancelled=sum(execution not in zombies for execution in left),
            abandoned=tuple(execution.run for execution in zombies),
            unstarted=tuple(one.run for one in queued),
            kept=tuple(one.run for one in queued if one.is_kept()),
        )

    async def finish_or_cancel(self, timeout: float) -> DrainReport:
        """Let running runs finish for `timeout` seconds, then cancel them and wait for their grace. A checkpoint.

        Cancelled, it cancels the runs at once, waits for their grace, and raises afterwards.
        """
        try:
            await self.let_finish(timeout)
        finally:
            await self.cancel_rest("the supervisor is stopping")
        return self.report()


def log_unstarted(report: DrainReport) -> None:
    """Log each run that will not be started: its outcome reaches its sender, which may not be the operator.

    But for those that an inbox keeps: they are not lost, and it says how many there are.
    """
    kept = set(report.kept)
    for run in report.unstarted:
        if run in kept:
            continue
        log("run_not_started", level="warning", run=run.id, lane=run.lane, session=run.session)
