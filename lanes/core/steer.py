"""What is said to a run that is under way: into its inbox, read by its body, or left for the next one."""

from __future__ import annotations

from itertools import takewhile

from locks import _clock, _effects

from ..run import RunState
from .execution import Execution
from .start import Starting


class Steering(Starting):
    """How messages reach a body that runs."""

    def hand_over(self, execution: Execution, target: Execution) -> None:
        """Put a new execution's message into the inbox of a run that is under way; it is queued if it stays unread."""
        run, lane = execution.run, execution.lane
        self.lanes[lane.name] = lane
        self.live[run.id] = execution
        lane.enqueue(execution)
        if run.wait_deadline is not None:
            execution.timer = self.timers.at(run.wait_deadline, self._queue_timeout, execution)
        execution.steered_into = target
        run.answered_by = target.run.id
        target.inbox.put(execution)
        self.hooks.waits(run)

    @_effects.change
    def message_read(self, execution: Execution, taken: Execution) -> None:
        """A body has read a message from its inbox: whoever sent it gets what that body's run ends with."""
        self.timers.cancel(taken.timer)
        taken.lane.forget(taken)
        run = taken.run
        run.state, run.started_at, run.deadline = RunState.RUNNING, _clock.clock.now(), execution.run.deadline
        if execution.answering is None:
            execution.answering = []
        execution.answering.append(taken)

    def _queue_unread(self, execution: Execution) -> None:
        """Queue the messages that a body has left unread, before everybody who waits but those who interrupted it."""
        unread = execution.unread()
        for one in unread:
            one.steered_into = None
            one.run.answered_by = None
        if not unread:
            return
        if execution.file is None:
            ahead = sorted(
                (one for one in execution.lane.queued if one.policy == "interrupt"), key=lambda one: one.rank
            )
            self._go_first(ahead, unread)
            return
        others = [one for one in self.turns.of(execution.file) if one is not execution]
        ahead = list(takewhile(lambda one: one.policy == "interrupt" or one.goes_first, others))
        for one in reversed(unread):
            if ahead:
                one.in_line = True
                self.turns.join_behind(execution.file, ahead[-1], one)
                self._lend_priority(execution.file)
            else:
                self._stand_in_line(one, first=True)

    def _go_first(self, ahead: list[Execution], unread: list[Execution]) -> None:
        """Queue unread messages that need no turn, behind those who go ahead of them."""
        for one in reversed([*ahead, *unread]):
            one.rank = next(self._front_ranks)
        for one in ahead:
            if one.is_ready:
                one.lane.make_unready(one)
                one.lane.make_ready(one)
        for one in unread:  # the first one first: the place that has become free is for whoever is ready
            self._make_ready(one)
