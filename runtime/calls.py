"""Calls of `Supervisor` that take more than a call of the scheduler: from threads, `run`, `cancel`, `reset`, parked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import copy_context
from typing import Any

import anyio

from lanes import Draining, InvalidLane, Parked, Run, RunState, WrongThread, current_run
from lanes.core.reset import begin as begin_reset
from lanes.core.reset import concerns
from lanes.core.scheduler import Scheduler
from locks import DeadlockError, _effects
from locks._loop import LOOK_S, know_loop, loop_has_ended, on_loop_thread

from .phase import Standing


class Calls:
    """The calls of one supervisor that concern work; `Supervisor` documents them. None of them waits behind work."""

    def __init__(self, scheduler: Scheduler, standing: Standing) -> None:
        self._scheduler, self._standing = scheduler, standing

    def on_loop(self, name: str, call: Callable[..., Run], *args: Any, **options: Any) -> Run:
        """Have the event loop make a call, called `name` to users; blocks until it has. On any other thread."""
        to_loop = self._standing.to_loop
        if on_loop_thread():
            raise WrongThread(f"{name}_threadsafe would block the event loop; use {name} there")
        if to_loop is None:
            raise Draining("the supervisor does not accept work: it is not started yet")
        from concurrent.futures import Future  # noqa: PLC0415 -- it brings `logging` along, and few programs call this

        done: Future[Run] = Future()
        context = copy_context()  # the caller's, not that of the loop's callback

        def make_call() -> None:
            if not done.set_running_or_notify_cancel():
                return
            try:
                know_loop(context)  # anyio marks that of a worker thread as one without an event loop
                done.set_result(context.run(call, *args, **options))
            except BaseException as error:
                done.set_exception(error)

        to_loop(make_call)
        while True:
            try:
                return done.result(LOOK_S)
            except TimeoutError:
                # A loop that has ended makes no call any more, and reports that to no thread.
                if (not self._scheduler.board.serving or loop_has_ended(self._scheduler.board.loop)) and done.cancel():
                    raise Draining("the supervisor does not accept work: it has stopped") from None

    async def result_of(self, run: Run) -> Any:
        """Wait, and return what the body returned; cancelling the waiter cancels the run. A checkpoint."""
        try:
            return await run.result()
        except DeadlockError:
            run.cancel("waiting for it would never have ended")
            raise
        finally:
            if run.outcome is None:
                run.cancel("whoever waited for it was cancelled")

    @_effects.change
    def cancel(self, *, lane: str | None, session: str | None, reason: str, queued: bool) -> int:
        """Ask all runs of a lane, of a session, or all to end; returns how many were asked."""
        if queued and (journal := self._scheduler.board.journal) is not None:
            journal.cancelled(lane=lane, session=session, reason=reason)
        return end_runs(self._scheduler, lane, session, reason, queued=queued)

    async def reset(
        self, key: str, *, archive: bool, elsewhere: Callable[[str], Awaitable[None]] | None = None
    ) -> str | None:
        """Start a session afresh; returns where its file is now. A checkpoint.

        Args:
            elsewhere: ends the runs of the session in other processes, and has them write nothing to it any more.
        """
        above = self._conducting(key)
        if above is not None:
            raise DeadlockError(
                f"reset({key!r:.80}) waits for run {above.id} on lane {above.lane}, which awaits it", run_id=above.id
            )
        barred = None if elsewhere is None else anyio.Event()
        run = begin_reset(self._scheduler, key, archive=archive, barred=barred)
        try:
            if elsewhere is not None and barred is not None:
                await elsewhere(key)
                barred.set()
            moved: str | None = await run.result()
            return moved
        finally:
            if run.outcome is None:
                run.cancel("whoever asked for the reset was cancelled")

    def _conducting(self, key: str) -> Run | None:
        """The run that the caller is part of, or one that bounds it, if it names that session."""
        inside = current_run()
        one = self._scheduler.board.live.get(inside.id) if inside is not None else None
        if one is None or one.run is not inside:
            return None  # a run of another supervisor
        file = self._scheduler.board.layout.file_of(key)
        while one is not None and not concerns(one, key, file):
            one = one.parent
        return one.run if one is not None else None

    def discard(self, run_id: int) -> None:
        """Forget a parked run."""
        self.parked(run_id)
        self._scheduler.board.history.forget_parked(run_id)

    def parked(self, run_id: int) -> Parked:
        """A parked run.

        Raises:
            InvalidLane: no such run is parked.
        """
        found = self._scheduler.board.history.parked.get(run_id) if type(run_id) is int else None
        if found is None:
            known = ", ".join(map(str, list(self._scheduler.board.history.parked)[:10])) or "none"
            raise InvalidLane(f"run_id: {run_id!r:.80} is not parked; parked: {known}")
        return found


@_effects.change
def end_runs(scheduler: Scheduler, lane: str | None, session: str | None, reason: str, *, queued: bool) -> int:
    """Ask all runs of a lane, of a session, or all to end; returns how many were asked."""
    chosen = [
        execution
        for execution in list(scheduler.board.live.values())
        if (lane is None or execution.run.lane == lane)
        and (session is None or execution.run.session == session)
        and (queued or execution.run.state is RunState.RUNNING)
    ]
    # The latest first: else each run that ends would start the next one, just for that one to be cancelled.
    return sum(execution.ask_to_end(RunState.CANCELLED, reason) for execution in reversed(chosen))
