"""The next attempt of a run whose body has failed, on a lane with `retry`.

The failed attempt gives back its place, its slot and its turn, as at an end, but the run keeps its place in the queue
of its session. The next attempt is a new execution. `lanes.retry` says when it comes, `raised` what is worth one.
"""

from __future__ import annotations

from locks import _clock
from locks._events import log

from ..run import RunState
from .board import Board
from .execution import Execution
from .finish import Finishing
from .outcomes import fields
from .phase import UNDERWAY, Phase
from .raised import Raised
from .start import Starting


class Retrying:
    """How runs are tried again."""

    def __init__(self, board: Board, starting: Starting, finishing: Finishing) -> None:
        self._board = board
        self._starting = starting
        self._finishing = finishing

    def try_again(self, execution: Execution, state: RunState, raised: Raised | None) -> bool:
        """Queue the next attempt of a run whose body has failed, if its lane allows one."""
        retry, run = execution.spec.retry, execution.run
        if retry is None or run.attempt >= retry.attempts or not self._board.may_start(execution):
            return False
        if execution.is_answered:
            return False  # the answer is in the transcript: another attempt would give a second one
        if state is RunState.FAILED:
            if raised is None or not raised.retryable:
                return False
            why = raised.said
        elif state is RunState.TIMED_OUT and retry.timeouts:
            why = run.reason
        else:
            return False
        if execution.parent is not None and execution.parent.phase not in UNDERWAY:
            return False
        if self._board.journal is not None and (ids := execution.message_ids()):
            self._board.journal.tried(ids)
        self._finishing.close(execution, Phase.REPLACED)
        wait_s = retry.wait_after(run.attempt)
        follower = execution.next_attempt(self._board.new_fence(run.lane, run.id))
        follower.hold(_clock.clock.now() + wait_s)
        reason = f"attempt {run.attempt} of {retry.attempts} failed ({why}); again in {wait_s:.3g} s"
        log("run_retried", level="warning", **fields(execution), attempt=run.attempt, error=why, wait_s=wait_s)
        execution.lane.tally.retries += 1
        self._board.groups[execution.spec.group].tally.retries += 1
        run.attempt += 1
        run.state, run.reason, run.started_at, run.deadline = RunState.QUEUED, reason, None, None
        execution.ask_children_to_end(f"tries again: {why}")
        self._hand_on(execution, follower)
        self._board.wake_waiters()
        return True

    def _hand_on(self, execution: Execution, follower: Execution) -> None:
        """Put the next attempt where the one before it stood."""
        lane = execution.lane
        self._board.live[execution.run.id] = follower
        self._finishing.leave_lane(execution)
        lane.enqueue_first(follower)  # it came before those that have not started
        self._take_messages_along(execution, follower)
        follower.wait_in_line()
        if execution.file is not None:
            self._board.turns.replace(execution.file, execution, follower)
        self._starting.make_ready(follower)
        self._starting.admit(lane)

    def _take_messages_along(self, execution: Execution, follower: Execution) -> None:
        """Hand the messages of the failed attempt to the next one: those that it has read, then the unread."""
        again = execution.answering or []
        for one in again:
            # Its lane may have been retired meanwhile, and made again.
            one.lane.respec(self._board.specs.find(one.lane.name))  # nor was it told of other limits then
            one.lane = self._board.lanes.setdefault(one.lane.name, one.lane)
            one.lane.enqueue(one)
        for one in [*again, *execution.unread()]:
            one.hand_to(follower)
