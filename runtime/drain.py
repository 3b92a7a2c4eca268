"""Coming to rest: running work finishes, or is cancelled, or is left behind and named."""

from __future__ import annotations

from dataclasses import dataclass

import anyio

from lanes import Run, RunState
from lanes.execution import Execution
from lanes.scheduler import Scheduler

_SETTLE_S = 1.0  # beyond the longest grace: for outcomes to be recorded after the last body was abandoned


@dataclass(frozen=True, slots=True)
class DrainReport:
    """What became of the work when a supervisor drained."""

    finished: int
    """Runs that had ended, in whatever way, when the drain was over."""
    cancelled: int
    """Runs that were cancelled at the end of the drain and ended within their grace."""
    abandoned: tuple[Run, ...]
    """Runs whose bodies ignored their cancellation, and still run."""
    unstarted: tuple[Run, ...]
    """Runs that were still queued."""


async def finish_or_cancel(scheduler: Scheduler, timeout: float) -> DrainReport:
    """Let running runs finish for `timeout` seconds, then cancel them and wait for their grace. A checkpoint.

    Cancelled, it cancels the runs at once, waits for their grace, and raises afterwards.
    """
    before = scheduler.running()
    left: list[Execution] = []
    try:
        with anyio.move_on_after(timeout):
            await scheduler.calm()
    finally:
        left = scheduler.running()
        for execution in left:
            execution.ask_to_end(RunState.CANCELLED, "the supervisor is stopping")
        grace = max((execution.spec.grace for execution in left), default=0.0)
        with anyio.CancelScope(shield=True, deadline=anyio.current_time() + grace + _SETTLE_S):
            if left:
                await scheduler.calm()
    zombies = scheduler.abandoned
    unstarted = sorted((e.run for lane in scheduler.lanes.values() for e in lane.queued), key=lambda run: run.id)
    return DrainReport(
        finished=sum(execution not in left and execution not in zombies for execution in before),
        cancelled=sum(execution not in zombies for execution in left),
        abandoned=tuple(execution.run for execution in zombies),
        unstarted=tuple(unstarted),
    )
