"""Runs that failed in their last attempt: each is kept until an operator decides, and can be submitted again."""

from __future__ import annotations

from functools import partial
from typing import Any

from locks import _clock, _effects
from locks._events import log

from ..checks import Priority
from ..message import Message, ids_of
from ..run import Body, Run, RunState
from .board import Board
from .execution import Execution
from .history import Parked
from .intake import Intake
from .request import Request


class Parking:
    """Keeps work that will not be tried again."""

    def __init__(self, board: Board, intake: Intake) -> None:
        self._board = board
        self._intake = intake

    def park_if_failed(self, execution: Execution, state: RunState) -> None:
        """Keep a run for an operator to decide, if its lane tries runs again and has no attempt left for it."""
        retry = execution.spec.retry
        if retry is None or execution.body is None or execution.steered_into is not None:
            return
        if execution.is_answered:
            return  # only what its body did afterwards has failed
        overran = execution.cause is not None and execution.cause[0] is RunState.TIMED_OUT
        # A run that had to be abandoned is not tried again; its sender's work is kept all the same.
        if state is RunState.FAILED or (overran and retry.timeouts and execution.run.started_at is not None):
            self._park(execution)

    def _park(self, execution: Execution) -> None:
        """Keep a run that will not be tried again, with what it takes to submit it again."""
        run, body, args = execution.run, execution.body, execution.args
        messages = None if execution.messages is None else [*execution.messages]
        for one in execution.answering or ():
            if messages is None:
                self._park(one)  # work that is no message cannot answer them; their own lane's handler can
            else:
                messages += one.messages or ()
        assert body is not None
        options = (run.session, run.turn, execution.timeout, execution.given_urgency)
        again = partial(self._submit_again, run.id, run.lane, body, args, messages, *options)
        self._board.history.park(Parked(run, tuple(messages or ()), _clock.clock.now(), again))
        log("run_parked", level="error", run=run.id, lane=run.lane, session=run.session, attempts=run.attempt)

    def restore(self, request: Request, reason: str, attempts: int) -> Run:
        """Keep a run that an earlier process has parked; returns it, ended as failed."""
        messages = request.messages or []
        run = self._intake.ended_run(request, reason, attempts)
        options = (request.session, request.file is not None, request.timeout, request.urgency)
        again = partial(self._submit_again, run.id, run.lane, request.body, request.args, [*messages], *options)
        self._board.history.park(Parked(run, tuple(messages), _clock.clock.now(), again))
        return run

    def requeued(self, run_id: int, message: int) -> tuple[int, list[int]]:
        """A message of a parked run waits again; returns the run that is parked for the others, and their ids."""
        parked = self._board.history.parked.get(run_id)
        others = [] if parked is None else [one for one in parked.messages if ids_of([one]) != [message]]
        self._board.history.forget_parked(run_id)
        if parked is not None and others:
            request, _ = self._intake.message_request(parked.run.lane, others[0], session=parked.run.session)
            request.messages = others
            reason = parked.run.outcome.reason if parked.run.outcome is not None else ""
            run_id = self.restore(request, reason, parked.run.attempt).id
        return run_id, ids_of(others)

    def _submit_again(
        self,
        parked: int,
        lane: str,
        body: Body,
        args: tuple[Any, ...],
        messages: list[Message] | None,
        session: str | None,
        turn: bool,
        timeout: float,
        urgency: Priority,
    ) -> Run:
        turn = turn or session is None
        request = self._intake.checked(lane, body, session, turn, timeout, urgency.name.lower())
        request.args, request.messages = args, messages
        self._intake.busy.compare_routes(request, "queue")
        return self._admit_again(request, parked)

    @_effects.change
    def _admit_again(self, request: Request, parked: int) -> Run:
        run = self._intake.take(request, "queue")
        self._board.history.resubmitted(parked, run)
        return run
