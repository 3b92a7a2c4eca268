"""From a cause to an outcome, or to the next attempt.

Whatever asks a run to end goes through `end`, and each run that ends leaves its lane and session through `_leave`. Both
are parts of one synchronous change: no cancellation comes in between, and hooks, log lines and finalizers run after it.
A run that is tried again leaves like one that has ended, but for its place in its session. Its next attempt is a new
execution.
"""

from __future__ import annotations

from typing import Any

import anyio

from locks import LeaseLost, RunEnded, Superseded, _clock, _effects
from locks._events import described, log
from locks._loop import asyncio_runs

from ..body.stacks import stack_of
from ..run import RunState
from .execution import Execution
from .loop_lag import late_reason
from .outcomes import Raised, deadline_reason, fields, log_timeout, outcome_of, queue_reason, raised_of
from .steer import Steering

_LEAST_GRACE_S = 0.02
FROM_OUTSIDE = "cancelled from outside the supervisor"
_DONE = RunState.DONE  # a member of an enumeration costs more to look up than a global name


class Finishing(Steering):
    """How runs end."""

    @_effects.change
    def end(self, execution: Execution, state: RunState, reason: str) -> bool:
        """Ask a run to end, for the first cause that comes: cancel its body, let it clean up, and see that it does."""
        run = execution.run
        if execution.cause is not None or execution.over:
            return False
        now = _clock.clock.now()
        if run.state is RunState.QUEUED:
            execution.cause = (state, reason)
            self._finish(execution, state, reason)
            return True
        if execution.steered_into is not None:
            return self.end(execution.steered_into, state, reason)  # that body has read its message, and answers it
        if state is RunState.TIMED_OUT:
            assert run.deadline is not None
            execution.late_s = max(0.0, now - run.deadline)
            reason = (reason or deadline_reason(execution)) + late_reason(self.lateness, run.deadline, now)
        execution.cause = (state, reason)
        run.reason = reason
        end_at = now + execution.spec.grace
        self.registry.arbiter.end_by(execution.fence, end_at)
        self.timers.cancel(execution.timer)
        # However short the grace, a body that does end gets a few rounds of the loop to do it in.
        due = max(end_at, now + _LEAST_GRACE_S)
        execution.timer = self.timers.at(due, self._abandon, execution, due)
        if state is RunState.TIMED_OUT:
            log_timeout(execution, execution.run.reason)
        execution.ask_children_to_end(reason)
        execution.cancel_body()
        return True

    def supersede(self, execution: Execution, successor: Execution) -> None:
        """Have a newer run take the place of one that is under way."""
        if self.end(execution, RunState.SUPERSEDED, f"superseded by run {successor.run.id}"):
            execution.successor = successor

    def _queue_timeout(self, execution: Execution) -> None:
        """A run has waited for as long as it may: say for what."""
        reason = queue_reason(execution)
        due, now = execution.run.wait_deadline, _clock.clock.now()
        if due is not None and execution.is_queued():
            execution.late_s = max(0.0, now - due)
            reason += late_reason(self.lateness, due, now)
        self.end(execution, RunState.TIMED_OUT, reason)

    def _deadline(self, execution: Execution) -> None:
        deadline = execution.run.deadline
        assert deadline is not None
        if deadline < execution.hard_deadline and execution in self.waits:
            execution.progress()  # it has said what it waits for, and that has limits of its own
            deadline = execution.run.deadline
            assert deadline is not None
        if _clock.clock.now() < deadline:  # it was moved
            execution.timer = self.timers.at(deadline, self._deadline, execution)
            return
        self.end(execution, RunState.TIMED_OUT, "")

    @_effects.change
    def _turn_lost(self, execution: Execution, error: LeaseLost) -> None:
        """The session was taken from a run: by hand, or by the steward because this loop was late."""
        deadline = execution.run.deadline
        if deadline is not None and _clock.clock.now() >= deadline:
            self.end(execution, RunState.TIMED_OUT, "")
        else:
            self.end(execution, RunState.CANCELLED, f"its turn was revoked: {error}")

    def _abandon(self, execution: Execution, due: float) -> None:
        """The grace has passed and the body still runs: go on without it."""
        if execution.over or execution.cause is None:
            return
        more_s = self._more_grace(execution, due)
        if more_s:
            again = _clock.clock.now() + more_s
            execution.forgiven, execution.timer = True, self.timers.at(again, self._abandon, execution, again)
            return
        state, reason = execution.cause
        if not execution.began:
            self._finish(execution, state, reason)
            return
        stack = stack_of(execution.fence.task)
        execution.stop_telling_body()
        self.abandoned[execution] = (_clock.clock.now(), stack)
        reason = f"{reason}; its body ignored that for {execution.spec.grace:g} s and was abandoned"
        log(
            "run_abandoned",
            level="error",
            **fields(execution),
            reason=reason,
            abandoned=len(self.abandoned),
            stack=stack,
        )
        self._finish(execution, RunState.ABANDONED, reason)

    def _more_grace(self, execution: Execution, due: float) -> float:
        """How much longer a body may take, once, because the loop came late and it had no chance to end.

        A timer that is merely late is no reason to wait, but for one more round of the loop. (What the body may write,
        and how long it holds its session, does not depend on this: other processes wait for that.)
        """
        now, grace = _clock.clock.now(), execution.spec.grace
        if now - due < _LEAST_GRACE_S or execution.forgiven:
            return 0.0
        return max(_LEAST_GRACE_S, min(grace, self.lateness.stood_still_s(due - grace, now)))

    def body_ended(self, execution: Execution, value: Any, error: BaseException | None) -> None:
        """Turn what the body did into the run's outcome, or into its next attempt."""
        if error is None:
            self._body_ended(execution, value, None, False)
        else:
            cancelled = isinstance(error, anyio.get_cancelled_exc_class())
            self._body_ended(execution, value, raised_of(error, execution.spec.retry), cancelled)

    @_effects.change
    def _body_ended(self, execution: Execution, value: Any, raised: Raised | None, cancelled: bool) -> None:
        if execution.over:
            self._abandoned_ended(execution)
            return
        if raised is None and execution.cause is None and _clock.clock.now() < execution.fence.end_at:
            self._finish(execution, _DONE, "", value=value)
            return
        if execution.cause is None and _clock.clock.now() >= execution.fence.end_at:
            self.end(execution, RunState.TIMED_OUT, "")  # it kept the loop, and its turn was taken from it meanwhile
        if execution.cause is None and cancelled:
            if self._is_torn_down():
                self._end_queued()  # before this one's end lets the next one in
            execution.cause = (RunState.CANCELLED, FROM_OUTSIDE)
        if execution.cause is None:
            if raised is None:
                self._finish(execution, RunState.DONE, "", value=value)
            elif not self._try_again(execution, RunState.FAILED, raised):
                self._finish(execution, RunState.FAILED, raised.said, raised=raised)
            return
        state, reason = execution.cause
        if not self._try_again(execution, state, raised):
            self._finish(execution, state, reason, value=value, raised=None if cancelled else raised)

    def _body_died(self, execution: Execution, error: BaseException | None) -> None:
        """The task of a body has ended: report what it could not report by itself, since it had not begun, say."""
        if not execution.over or execution in self.abandoned:
            self.body_ended(execution, None, error)
            execution.forget()
        if execution in self.bodies:
            self._left_late(execution)
        self._task_died(error)

    @_effects.change
    def _left_late(self, execution: Execution) -> None:
        """An interrupt has come in the middle of an end: what was not given back then is given back now."""
        self._leave(execution)
        self._settle()

    def _wait_died(self, execution: Execution, scope: anyio.CancelScope, error: BaseException | None) -> None:
        """The task that waits for another process's turn has ended: it may have been cancelled by what found it."""
        if not execution.over and execution.turn_scope is scope:
            if self._is_torn_down():
                self._end_queued()
            self.end(execution, RunState.CANCELLED, FROM_OUTSIDE)
        self._task_died(error)

    def interrupted(self, by: Execution, error: KeyboardInterrupt) -> bool:
        """A body raised `KeyboardInterrupt`: end everything else; returns whether it is to be raised out of the loop.

        asyncio knows no other way to end a program. trio has one that ends each task in order: what waits raises it.
        When the loop is being torn down already, raising it once more would cut that short.
        """
        leaves = asyncio_runs() and not self._is_torn_down()
        self._end_all(f"the supervisor was interrupted (KeyboardInterrupt in {by.task_name})", but=by)
        self.on_failure(error, leaves)
        return leaves

    def _task_died(self, error: BaseException | None) -> None:
        """What a task has raised beyond its body: a hook's `KeyboardInterrupt`, or a fault of our own."""
        if isinstance(error, KeyboardInterrupt):
            self.failed(error, raised=asyncio_runs())  # asyncio has raised it out of the loop, trio has not
        elif isinstance(error, Exception):
            self.failed(error)

    def failed(self, error: BaseException, *, raised: bool = False) -> None:
        """Something of our own has failed, or the process is to end: end everything, and have the owner raise it."""
        self._end_all(f"the supervisor has failed ({described(error)})")
        self.on_failure(error, raised)

    @_effects.change
    def _end_all(self, reason: str, *, but: Execution | None = None) -> None:
        """Ask everything to end but one run, and start nothing any more."""
        self._end_queued()
        for execution in reversed(self.running()):
            if execution is not but:
                self.end(execution, RunState.CANCELLED, reason)

    def _is_torn_down(self) -> bool:
        """Whether asyncio cancels all tasks, as at the end of `asyncio.run`; on trio the groups see to the order."""
        return self._task is not None and bool(getattr(self._task, "cancelling", int)())

    @_effects.change
    def _end_queued(self) -> None:
        """Nothing starts any more: tell those who wait, the latest first, lest each one lets the next one in."""
        self.accepting = self.starting = False
        for execution in sorted(self.live.values(), reverse=True):
            # One that another's end has let in just now has not begun either.
            if execution.is_queued() or not (execution.began or execution.steered_into is not None):
                self.end(execution, RunState.CANCELLED, "the supervisor was cancelled before it started")

    def _abandoned_ended(self, execution: Execution) -> None:
        self.abandoned.pop(execution, None)
        if not self.abandoned and self._gone is not None:
            self._gone.set()
            self._gone = None
        log("abandoned_body_ended", **fields(execution))
        self._settle()

    def _finish(
        self,
        execution: Execution,
        state: RunState,
        reason: str,
        *,
        value: Any = None,
        raised: Raised | None = None,
    ) -> None:
        """End a run, in whatever state it was, and let its successors go on."""
        run = execution.run
        self._close(execution)
        if run.attempt > 1 and run.started_at is None:
            run.attempt -= 1  # the next attempt never was
        outcome = outcome_of(execution, state, reason, value, raised)
        if state is RunState.TIMED_OUT and run.started_at is None:
            log_timeout(execution, reason)
        execution.lane.tally.add(outcome)
        self.groups[execution.spec.group].tally.add(outcome)
        self.history.add(run)
        if execution.parent is not None and execution.parent.children:
            execution.parent.children.pop(execution, None)
        if execution.spec.retry is not None:
            self._park_if_failed(execution, state)
        if state is not RunState.ABANDONED:
            execution.forget()
        run._end(outcome)
        self.waits.ended(run)
        self.hooks.ended(run)
        self.live.pop(run.id, None)  # not before: whatever interrupts this, what is live is told in the end
        if execution.children:
            execution.ask_children_to_end(reason or "has ended")
        if execution.answering is not None:
            self._tell_answered(execution, state, reason, value, raised)
        self._leave(execution)
        if state is RunState.FAILED:
            log("run_failed", level="warning", **fields(execution), error=reason, attempts=run.attempt)
        if self._calm is not None:
            self._settle()

    def _tell_answered(
        self,
        execution: Execution,
        state: RunState,
        reason: str,
        value: Any = None,
        raised: Raised | None = None,
    ) -> None:
        """Those whose messages the body has read share its outcome."""
        answering, execution.answering = execution.answering or (), None
        for answered in answering:
            answered.cause, answered.late_s = execution.cause, execution.late_s
            self._finish(answered, state, reason, value=value, raised=raised)

    def _close(self, execution: Execution) -> None:
        """Take from an execution what it may no longer do."""
        execution.over = True
        if execution.claim is not None:
            execution.release_turn(self.registry)
        if execution.killers:
            execution.kill_processes()
        fence = execution.fence
        if execution.successor is not None:
            fence.close(Superseded, execution.successor.fence.holder)
        fence.close(RunEnded)
        if fence.claims:
            self.registry.arbiter.end(fence)
        self.timers.cancel(execution.timer)
        if execution.hold_timer is not None:
            self.timers.cancel(execution.hold_timer)
        if execution.steered_into is not None:
            execution.steered_into.inbox.discard(execution)

    def _leave(self, execution: Execution) -> None:
        """Give back place, slot and queue positions, and let the next ones in."""
        lane = execution.lane
        self._leave_lane(execution)
        if execution.has_inbox:
            self._queue_unread(execution)
        if execution.in_line and execution.file is not None:
            follower = self.turns.leave(execution.file, execution)
            if follower is not None:
                self._make_ready(follower)
        group = self.groups[lane.spec.group]
        if group.has_work:
            self.admit_group(group)
        if lane.spec.wild and lane.idle and self.lanes.get(lane.name) is lane:
            del self.lanes[lane.name]

    def _leave_lane(self, execution: Execution) -> None:
        if execution.turn_scope is not None:
            execution.turn_scope.cancel()
            execution.turn_scope = None
        self.groups[execution.spec.group].give_back(execution)
        self.bodies.pop(execution, None)
        execution.lane.forget(execution)
        if execution.lane.ready or execution.lane.ring is not None:
            # Before anybody is let in: its place may be what another one of its lane lacked.
            self.groups[execution.spec.group].offer(execution.lane)

    # Trying again

    def _try_again(self, execution: Execution, state: RunState, raised: Raised | None) -> bool:
        """Queue the next attempt of a run whose body has failed, if there is one to come."""
        retry, run = execution.spec.retry, execution.run
        if retry is None or run.attempt >= retry.attempts or not self.may_start(execution):
            return False
        if state is RunState.FAILED:
            if raised is None or not raised.retryable:
                return False
            why = raised.said
        elif state is RunState.TIMED_OUT and retry.timeouts:
            why = run.reason
        else:
            return False
        if execution.parent is not None and (execution.parent.over or execution.parent.ending):
            return False
        self._close(execution)
        wait_s = retry.wait_after(run.attempt)
        follower = execution.next_attempt(self.new_fence(run.lane, run.id))
        follower.held_until = _clock.clock.now() + wait_s
        reason = f"attempt {run.attempt} of {retry.attempts} failed ({why}); again in {wait_s:.3g} s"
        log("run_retried", level="warning", **fields(execution), attempt=run.attempt, error=why, wait_s=wait_s)
        execution.lane.tally.retries += 1
        self.groups[execution.spec.group].tally.retries += 1
        run.attempt += 1
        run.state, run.reason, run.started_at, run.deadline = RunState.QUEUED, reason, None, None
        execution.ask_children_to_end(f"tries again: {why}")
        self._hand_on(execution, follower)
        self._settle()
        return True

    def _hand_on(self, execution: Execution, follower: Execution) -> None:
        """Put the next attempt where the one before it stood."""
        lane = execution.lane
        self.live[execution.run.id] = follower
        self._leave_lane(execution)
        lane.enqueue(follower)
        lane.queued.move_to_end(follower, last=False)  # it came before those that have not started
        self._take_messages_along(execution, follower)
        if execution.file is not None:
            follower.in_line = True
            self.turns.replace(execution.file, execution, follower)
        self._make_ready(follower)
        self._admit(lane)

    def _take_messages_along(self, execution: Execution, follower: Execution) -> None:
        """What the failed attempt has read from its inbox, the next one must read again; unread ones first come too."""
        again = execution.answering or []
        for one in again:
            one.run.state, one.run.started_at, one.run.deadline = RunState.QUEUED, None, None
            # Its lane may have been retired meanwhile, and be there anew.
            one.lane = self.lanes.setdefault(one.lane.name, one.lane)
            one.lane.enqueue(one)
        for one in [*again, *execution.unread()]:
            one.steered_into = follower
            follower.inbox.put(one)

    def _park_if_failed(self, execution: Execution, state: RunState) -> None:
        """Keep what will not be tried again for somebody to decide, on a lane where things are tried again."""
        retry = execution.spec.retry
        if retry is None or execution.body is None or execution.steered_into is not None:
            return
        overran = execution.cause is not None and execution.cause[0] is RunState.TIMED_OUT
        # One that had to be abandoned is not tried again, but its sender's work is not lost for that.
        if state is RunState.FAILED or (overran and retry.timeouts and execution.run.started_at is not None):
            self.intake.park(execution)
