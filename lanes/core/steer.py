"""Messages to a run that is under way: into its inbox, read by its body, or left for the next run."""

from __future__ import annotations

from itertools import takewhile

from locks import _effects

from .board import Board
from .execution import Execution
from .start import Starting


class Steering:
    """How messages reach a body that runs."""

    def __init__(self, board: Board, starting: Starting) -> None:
        self._board = board
        self._starting = starting

    def hand_over(self, execution: Execution, target: Execution) -> None:
        """Put a new execution's message into the inbox of a run that is under way; it is queued if it stays unread."""
        run, lane = execution.run, execution.lane
        self._board.lanes[lane.name] = lane
        self._board.live[run.id] = execution
        lane.enqueue(execution)
        self._starting.limit_wait(execution)
        execution.hand_to(target)
        self._board.hooks.waits(run)

    @_effects.change
    def message_read(self, execution: Execution, taken: Execution) -> None:
        """Note that a body has read a message from its inbox: its sender gets what that body's run ends with."""
        self._board.timers.cancel(taken.timer)
        taken.lane.forget(taken)
        taken.read_by(execution)
        if self._board.journal is not None and taken.messages:
            self._board.journal.was_read(taken.messages)

    def queue_unread(self, execution: Execution) -> None:
        """Queue the messages that a body has left unread, before all that wait but what interrupted it, and answers."""
        unread = execution.unread()
        for one in unread:
            one.wait_in_line()
        if not unread:
            return
        if execution.file is None:
            ahead = sorted((one for one in execution.lane.queued if _goes_before_unread(one)), key=lambda one: one.rank)
            self._go_first(ahead, unread)
            return
        others = [one for one in self._board.turns.of(execution.file) if one is not execution]
        ahead = list(takewhile(_goes_before_unread, others))
        for one in reversed(unread):
            if ahead:
                self._board.turns.join_behind(execution.file, ahead[-1], one)
                self._starting.lend_priority(execution.file)
            else:
                self._starting.stand_in_line(one, first=True)

    def _go_first(self, ahead: list[Execution], unread: list[Execution]) -> None:
        """Queue unread messages that need no turn, behind those that go ahead of them."""
        for one in reversed([*ahead, *unread]):
            self._starting.put_first(one)
        for one in unread:  # in order: the place that has become free is for the first
            self._starting.make_ready(one)


def _goes_before_unread(one: Execution) -> bool:
    return one.policy == "interrupt" or one.goes_first or bool(one.answer_id)
