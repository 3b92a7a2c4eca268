"""What ends a run: a request, a deadline, a lost turn, the end of its body, the end of the process.

Each cause goes through `end`, and the first one decides. A run that has not started ends at once. The body of a run
that is under way is cancelled; the run ends when its body has ended, or when its grace has passed: then it is
abandoned. Each of these is one synchronous change: no cancellation comes in between, and hooks, log lines and
finalizers run after it.
"""

from __future__ import annotations

from typing import Any

import anyio

from locks import LeaseLost, _clock, _effects
from locks._events import described, log
from locks._loop import asyncio_runs

from ..asking import WaitsForAnswer
from ..body.stacks import stack_of
from ..run import RunState
from .board import Board
from .deadlock import Waits
from .execution import Execution
from .finish import Finishing
from .loop_lag import late_reason
from .next_attempt import Retrying
from .outcomes import FROM_OUTSIDE, deadline_reason, fields, log_timeout, queue_reason
from .phase import OVER, QUEUED, Phase
from .raised import Raised, raised_of

_LEAST_GRACE_S = 0.02
_DONE = RunState.DONE  # a member of an enumeration costs more to look up than a global name


class Causes:
    """What ends runs."""

    def __init__(self, board: Board, finishing: Finishing, retrying: Retrying, waits: Waits) -> None:
        self._board = board
        self._finishing = finishing
        self._retrying = retrying
        self._waits = waits

    @_effects.change
    def end(self, execution: Execution, state: RunState, reason: str) -> bool:
        """Ask a run to end, for the first cause that comes: cancel its body, let it clean up, and see that it does."""
        run = execution.run
        if execution.cause is not None or execution.phase in OVER:
            return False
        now, late_s = _clock.clock.now(), 0.0
        due = run.wait_deadline if execution.phase in QUEUED else run.deadline
        if execution.phase is Phase.READ_BY_ANOTHER:
            assert execution.steered_into is not None
            return self.end(execution.steered_into, state, reason)  # that body has read its message, and answers it
        if state is RunState.TIMED_OUT:
            assert due is not None
            late_s = max(0.0, now - due)
            reason = (reason or deadline_reason(execution)) + late_reason(self._board.lateness, due, now)
        execution.note_cause(state, reason, late_s)
        if execution.phase in QUEUED:
            self._finishing.finish(execution, state, reason)
            return True
        end_at = now + execution.spec.grace
        self._board.registry.arbiter.end_by(execution.fence, end_at)
        self._board.timers.cancel(execution.timer)
        # However short the grace, a body that does end gets a few rounds of the loop to do it in.
        due = max(end_at, now + _LEAST_GRACE_S)
        execution.timer = self._board.timers.at(due, self._abandon, execution, due)
        if state is RunState.TIMED_OUT:
            log_timeout(execution, execution.run.reason)
        execution.ask_children_to_end(reason)
        execution.cancel_body()
        return True

    def supersede(self, execution: Execution, successor: Execution) -> None:
        """Have a newer run take the place of one that is under way."""
        if self.end(execution, RunState.SUPERSEDED, f"superseded by run {successor.run.id}"):
            execution.successor = successor

    def queue_timeout(self, execution: Execution) -> None:
        """A run has waited for as long as it may; the reason names what for."""
        self.end(execution, RunState.TIMED_OUT, queue_reason(execution))

    def deadline_came(self, execution: Execution) -> None:
        """End a run at its deadline, unless `progress()` or a wait for another run has moved the deadline."""
        deadline = execution.run.deadline
        assert deadline is not None
        if deadline < execution.hard_deadline and execution in self._waits:
            execution.progress()  # its body waits for another run, which has limits of its own
            deadline = execution.run.deadline
            assert deadline is not None
        if _clock.clock.now() < deadline:  # it was moved
            execution.timer = self._board.timers.at(deadline, self.deadline_came, execution)
            return
        self.end(execution, RunState.TIMED_OUT, "")

    @_effects.change
    def turn_lost(self, execution: Execution, error: LeaseLost) -> None:
        """The session was taken from a run: by hand, or by the steward because this loop was late."""
        deadline = execution.run.deadline
        if deadline is not None and _clock.clock.now() >= deadline:
            self.end(execution, RunState.TIMED_OUT, "")
        else:
            self.end(execution, RunState.CANCELLED, f"its turn was revoked: {error}")

    def _abandon(self, execution: Execution, due: float) -> None:
        """The grace has passed and the body still runs: go on without it."""
        if execution.phase is not Phase.ENDING:
            return
        more_s = self._more_grace(execution, due)
        if more_s:
            again = _clock.clock.now() + more_s
            execution.extend_grace(self._board.timers.at(again, self._abandon, execution, again))
            return
        assert execution.cause is not None
        state, reason = execution.cause
        if not execution.began:
            self._finishing.finish(execution, state, reason)
            return
        stack = stack_of(execution.fence.task)
        execution.shield_body()
        self._board.abandoned[execution] = (_clock.clock.now(), stack)
        reason = f"{reason}; its body ignored that for {execution.spec.grace:g} s and was abandoned"
        log(
            "run_abandoned",
            level="error",
            **fields(execution),
            reason=reason,
            abandoned=len(self._board.abandoned),
            stack=stack,
        )
        self._finishing.finish(execution, RunState.ABANDONED, reason)

    def _more_grace(self, execution: Execution, due: float) -> float:
        """How much longer a body may take, once, because the loop came late and it had no chance to end.

        A timer that is merely late is no reason to wait, but for one more round of the loop. (What the body may write,
        and how long it holds its session, does not depend on this: other processes wait for that.)
        """
        now, grace = _clock.clock.now(), execution.spec.grace
        if now - due < _LEAST_GRACE_S or execution.grace_extended:
            return 0.0
        return max(_LEAST_GRACE_S, min(grace, self._board.lateness.stood_still_s(due - grace, now)))

    def body_ended(self, execution: Execution, value: Any, error: BaseException | None) -> None:
        """Turn what the body did into the run's outcome, or into its next attempt."""
        if isinstance(error, WaitsForAnswer):
            value, error = error.question, None
        if error is None:
            self._body_ended(execution, value, None, False)
        else:
            cancelled = isinstance(error, anyio.get_cancelled_exc_class())
            self._body_ended(execution, value, raised_of(error, execution.spec.retry), cancelled)

    @_effects.change
    def _body_ended(self, execution: Execution, value: Any, raised: Raised | None, cancelled: bool) -> None:
        if execution.phase in OVER:
            self._abandoned_ended(execution)
            return
        if raised is None and execution.cause is None and _clock.clock.now() < execution.fence.end_at:
            self._finishing.finish(execution, _DONE, "", value=value)
            return
        if execution.cause is None and _clock.clock.now() >= execution.fence.end_at:
            self.end(execution, RunState.TIMED_OUT, "")  # it kept the loop, and its turn was taken from it meanwhile
        if execution.cause is None and cancelled:
            execution.note_cause(RunState.CANCELLED, FROM_OUTSIDE)
            if self._is_torn_down():
                self._end_queued()  # before this one's end lets the next one in
        if execution.cause is None:
            if raised is None:
                self._finishing.finish(execution, RunState.DONE, "", value=value)
            elif not self._retrying.try_again(execution, RunState.FAILED, raised):
                self._finishing.finish(execution, RunState.FAILED, raised.said, raised=raised)
            return
        state, reason = execution.cause
        if not self._retrying.try_again(execution, state, raised):
            self._finishing.finish(execution, state, reason, value=value, raised=None if cancelled else raised)

    def body_died(self, execution: Execution, error: BaseException | None) -> None:
        """The task of a body has ended: report what it could not report by itself, since it had not begun, say.

        Raises nothing but a `KeyboardInterrupt`: the caller is the event loop, which would only log it.
        """
        try:
            if execution.phase not in OVER or execution in self._board.abandoned:
                self.body_ended(execution, None, error)
                execution.forget()
            if execution in self._board.bodies:
                self._finishing.left_late(execution)
        except Exception as fault:  # the one, perhaps, that the end of the body has met
            if execution.phase in OVER:  # else its grace ends it
                self._board.bodies.pop(execution, None)
                self._board.wake_waiters()
            error = error if isinstance(error, Exception) else fault
        self._task_died(error)

    def wait_died(self, execution: Execution, scope: anyio.CancelScope, error: BaseException | None) -> None:
        """The task that waits for another process's turn has ended: it may have been cancelled by what found it."""
        if not execution.over and execution.turn_scope is scope:
            if self._is_torn_down():
                self._end_queued()
            self.end(execution, RunState.CANCELLED, FROM_OUTSIDE)
        self._task_died(error)

    def interrupted(self, by: Execution, error: KeyboardInterrupt) -> bool:
        """A body raised `KeyboardInterrupt`: end everything else; returns whether it is to be raised out of the loop.

        asyncio knows no other way to end a program. On trio what waits for the supervisor raises it, so that each task
        ends in order. When the loop is being torn down already, raising it once more would cut that short.
        """
        leaves = asyncio_runs() and not self._is_torn_down()
        self.end_all(f"the supervisor was interrupted (KeyboardInterrupt in {by.task_name})", but=by)
        self._board.on_failure(error, leaves)
        return leaves

    def _task_died(self, error: BaseException | None) -> None:
        """What a task has raised beyond its body: a hook's `KeyboardInterrupt`, or a fault of our own."""
        if isinstance(error, KeyboardInterrupt):
            self.failed(error, raised=asyncio_runs())  # asyncio has raised it out of the loop, trio has not
        elif isinstance(error, Exception):
            self.failed(error)

    def failed(self, error: BaseException, *, raised: bool = False) -> None:
        """Something of our own has failed, or the process is to end: end everything, and have the owner raise it."""
        self.end_all(f"the supervisor has failed ({described(error)})")
        self._board.on_failure(error, raised)

    @_effects.change
    def end_all(self, reason: str, *, but: Execution | None = None) -> None:
        """Ask everything to end but one run, and start nothing any more."""
        self._end_queued()
        for execution in reversed(self._board.running()):
            if execution is not but:
                self.end(execution, RunState.CANCELLED, reason)

    def _is_torn_down(self) -> bool:
        """Whether asyncio cancels all tasks, as at the end of `asyncio.run`; on trio the groups see to the order."""
        return self._board.task is not None and bool(getattr(self._board.task, "cancelling", int)())

    @_effects.change
    def _end_queued(self) -> None:
        """End what has not begun, the latest first, so that no end lets the next run in. Nothing starts any more."""
        self._board.accepting = self._board.starting = False
        for execution in sorted(self._board.live.values(), reverse=True):
            # A run that another one's end has let in just now has not begun either.
            if execution.phase in QUEUED or execution.phase is Phase.STARTED:
                self.end(execution, RunState.CANCELLED, "the supervisor was cancelled before it started")

    def _abandoned_ended(self, execution: Execution) -> None:
        if self._board.abandoned.pop(execution, None) is not None:
            execution.move(Phase.ENDED)
        log("abandoned_body_ended", **fields(execution))
        self._board.wake_waiters()
