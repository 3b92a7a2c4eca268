"""The end of a run, or of one attempt at it: its outcome, and what it leaves to others.

Each run that ends goes through `finish`, and gives back its place, slot and queue positions in `leave`. Both are parts
of one synchronous change: no cancellation comes in between, and hooks, log lines and finalizers run after it.
"""

from __future__ import annotations

from typing import Any

from locks import RunEnded, Superseded, _effects
from locks._events import log

from ..run import Outcome, RunState
from .board import Board
from .deadlock import Waits
from .execution import NOT_HELD, Execution
from .outcomes import fields, log_timeout, of_the_process, outcome_of
from .phase import OVER, QUEUED, Phase
from .pools import Pools
from .raised import Raised
from .start import Starting
from .steer import Steering


class Finishing:
    """How runs end."""

    def __init__(self, board: Board, starting: Starting, steering: Steering, waits: Waits, pools: Pools) -> None:
        self._board = board
        self._starting = starting
        self._steering = steering
        self._waits = waits
        self._pools = pools

    def finish(
        self,
        execution: Execution,
        state: RunState,
        reason: str,
        *,
        value: Any = None,
        raised: Raised | None = None,
    ) -> None:
        """End a run, from any phase, and let its successors go on."""
        run, follower = execution.run, self._hand_on(execution)
        self.close(execution, Phase.ABANDONED if execution in self._board.abandoned else Phase.ENDED)
        if run.attempt > 1 and run.started_at is None:
            run.attempt -= 1  # the next attempt never was
        outcome = outcome_of(execution, state, reason, value, raised)
        if state is RunState.TIMED_OUT and run.started_at is None:
            log_timeout(execution, reason)
        execution.lane.tally.add(outcome)
        self._board.groups[execution.spec.group].tally.add(outcome)
        self._board.history.add(run)
        if execution.parent is not None and execution.parent.children:
            execution.parent.children.pop(execution, None)
        if execution.spec.retry is not None:
            execution.owner.park_if_failed(execution, state)
        self._note_end(execution, outcome)
        if state is not RunState.ABANDONED:
            execution.forget()
        run._end(outcome)
        self._waits.ended(run)
        self._board.hooks.ended(run)
        self._board.live.pop(run.id, None)  # not before: after an interrupt, `serve` ends what is live
        if execution.children:
            execution.ask_children_to_end(reason or "has ended")
        if execution.answering is not None:
            self._end_answered(execution, state, reason, value, raised)
        self.leave(execution)
        if follower is not None and follower.phase in QUEUED:  # its lane or group is full: no run waits with the turn
            follower.release_turn(self._board.registry)
        if state is RunState.FAILED:
            log("run_failed", level="warning", **fields(execution), error=reason, attempts=run.attempt)
        self._board.wake_waiters()

    def _hand_on(self, execution: Execution) -> Execution | None:
        """Hand the turn to the run that is to start next, if there is one; the file then stays open and locked."""
        board, file = self._board, execution.file
        if file is None or execution.claim is None or execution.has_inbox:  # what it has not read may go first
            return None
        follower = board.turns.next_after(file, execution)
        if follower is None or follower.phase is not Phase.IN_LINE or follower.claim is not None:
            return None
        if follower.held_until != NOT_HELD or not board.serving or not board.may_start(follower):
            return None
        execution.hand_turn_to(follower, board.registry)
        return follower

    def _note_end(self, execution: Execution, outcome: Outcome) -> None:
        """Have the inbox, if there is one, keep how the messages of a run have ended."""
        journal, run, messages = self._board.journal, execution.run, execution.messages
        if journal is not None and messages:
            by_process = not self._board.starting and of_the_process(execution.cause)
            journal.ended(run, messages, outcome, parked=run.id in self._board.history.parked, by_process=by_process)

    def _end_answered(
        self,
        execution: Execution,
        state: RunState,
        reason: str,
        value: Any = None,
        raised: Raised | None = None,
    ) -> None:
        """Have the runs whose messages the body has read share its outcome."""
        for answered in execution.take_answered():
            answered.share_cause(execution)
            self.finish(answered, state, reason, value=value, raised=raised)

    def close(self, execution: Execution, to: Phase) -> None:
        """Take from an execution what it may no longer do."""
        if execution.phase not in OVER:  # an interrupt may have come in the middle of this end
            execution.move(to)
        if execution.claim is not None:
            execution.release_turn(self._board.registry)
        if execution.killers:
            execution.kill_processes()
        if execution.claims:
            self._pools.end_all(execution)
        fence = execution.fence
        if execution.successor is not None:
            fence.close(Superseded, execution.successor.fence.holder)
        fence.close(RunEnded)
        if fence.claims:
            self._board.registry.arbiter.end(fence)
        if execution.timer is not None:
            self._board.timers.cancel(execution.timer)
        if execution.hold_timer is not None:
            self._board.timers.cancel(execution.hold_timer)
        if execution.steered_into is not None:
            execution.steered_into.inbox.discard(execution)

    def leave(self, execution: Execution) -> None:
        """Give back place, slot and queue positions, and let the next runs in."""
        lane = execution.lane
        self.leave_lane(execution)
        if execution.has_inbox:
            self._steering.queue_unread(execution)
        if execution.file is not None and execution.steered_into is None:
            follower = self._board.turns.leave(execution.file, execution)
            if follower is not None:
                self._starting.make_ready(follower)
        group = self._board.groups[lane.spec.group]
        if group.has_work:
            self._starting.admit_group(group)
        if lane.retires and lane.idle and self._board.lanes.get(lane.name) is lane:
            del self._board.lanes[lane.name]

    def leave_lane(self, execution: Execution) -> None:
        """Give back a run's place, its slot and its wait outside, and let the next run of its lane be offered."""
        if execution.turn_scope is not None:
            execution.stop_waiting_outside()
        self._board.groups[execution.spec.group].give_back(execution)
        self._board.bodies.pop(execution, None)
        execution.lane.forget(execution)
        if execution.lane.ready or execution.lane.ring is not None:
            # Before another run is let in: its place may be what a run of its lane lacked.
            self._board.groups[execution.spec.group].offer(execution.lane)

    @_effects.change
    def left_late(self, execution: Execution) -> None:
        """An interrupt has come in the middle of an end: what was not given back then is given back now."""
        self.leave(execution)
        self._board.wake_waiters()
