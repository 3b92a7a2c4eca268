"""Taking work in: what is asked for is checked, and what is busy or full is dealt with, before anything has changed.

The order is that of the questions a sender would ask. Is anything taken at all? Is it allowed? Have I said this before
(`dedupe`)? Does it join what waits already (`debounce`, `collect`)? Is the session busy, and what does that mean for it
(`when_busy`)? Is there room, and which run gives way if not (`when_full`)? Only then is there a run.
"""

from __future__ import annotations

import contextvars
from typing import Any, get_args

from locks import DeadlockError, _clock, _effects
from locks._loop import running_loop

from .. import checks
from ..errors import DedupeConflict, Draining, InvalidLane, wrong_loop
from ..layout import session_of_lane
from ..message import digest_of, message_of
from ..queues.lane import Lane
from ..run import Body, Outcome, Run, RunState, current_run
from ..run_errors import RunError
from ..spec import LaneSpec, WhenBusy
from .board import Board
from .busy import Busy
from .causes import Causes
from .execution import Execution
from .history import DedupeKey, Said
from .needs import would_start
from .overflow import drop_oldest, lane_full
from .owner import Owner
from .phase import OVER
from .request import Request
from .start import Starting
from .steer import Steering

DEBOUNCE_AT_MOST = 10
"""A message waits for quiet at most so many times its lane's `debounce`: a stream without a gap is answered too."""
_MOST_KEY_CHARS = 1024


class Intake:
    """The way in of one scheduler. On the event loop's thread, as `submit` and `post` see to."""

    def __init__(
        self, board: Board, starting: Starting, steering: Steering, causes: Causes, owner: Owner[Execution]
    ) -> None:
        self._board = board
        self._starting = starting
        self._steering = steering
        self._causes = causes
        self.busy = Busy(board)
        self._owner = owner
        """Of the executions that it makes."""
        self._next_id = 0

    def number_from(self, first: int) -> None:
        """Have the ids of runs count from there: other processes have the lower ones. Before there is any run."""
        self._next_id = first

    def submit(
        self,
        lane: str,
        body: Body,
        args: tuple[Any, ...],
        *,
        session: str | None = None,
        turn: bool = True,
        timeout: float | None = None,
        priority: str | None = None,
        bound_to: Execution | None = None,
    ) -> Run:
        """Queue a piece of work. Never blocks.

        Args:
            bound_to: the run whose child it is.

        Raises:
            Draining, DeadlockError, InvalidLane, InvalidSession, LaneBusy, LaneFull, WrongThread: no run exists.
            RecursionError: hooks set off hooks without an end; no run exists.
        """
        if not callable(body):
            raise InvalidLane(
                f"fn: {checks.shown(body)} cannot be called; allowed: an async function that takes the context"
            )
        request = self.checked(lane, body, session, turn, timeout, priority, bound_to)
        request.args = args
        return self.admit(request, request.spec.when_busy)

    def post(
        self,
        lane: str,
        message: Any,
        *,
        session: str | None = None,
        timeout: float | None = None,
        priority: str | None = None,
        when_busy: WhenBusy | None = None,
        dedupe: str | None = None,
    ) -> Run:
        """Queue a message for the lane's handler. Never blocks.

        Raises:
            DedupeConflict, Draining, InvalidLane, InvalidSession, LaneBusy, LaneFull, WrongThread: nothing was taken.
            RecursionError: hooks set off hooks without an end; nothing was taken.
        """
        request, policy = self.message_request(
            lane, message, session=session, timeout=timeout, priority=priority, when_busy=when_busy
        )
        if dedupe is not None:
            assert request.messages is not None
            request.key = (request.lane.name, request.session, check_dedupe(dedupe))
            request.digest = digest_of(request.messages[0].body)
        return self.admit(request, policy)

    def message_request(
        self,
        lane: str,
        message: Any,
        *,
        session: str | None = None,
        timeout: float | None = None,
        priority: str | None = None,
        when_busy: WhenBusy | None = None,
    ) -> tuple[Request, WhenBusy]:
        """A message for the lane's handler, checked, and its policy; nothing has changed.

        Raises:
            What `checked` raises.
        """
        spec = self._board.specs.find(lane)
        if spec.handler is None:
            raise InvalidLane(
                f"lane {checks.shown(lane)} has no handler; post needs LaneSpec(handler=...), or use submit"
            )
        given = message_of(message)
        request = self.checked(lane, spec.handler, session, timeout=timeout, priority=priority, spec=spec)
        request.messages = [given]
        policy = request.spec.when_busy
        if when_busy is not None:
            checks.choice("when_busy", when_busy, get_args(WhenBusy))
            policy = when_busy
        return request, policy

    def checked(
        self,
        lane: str,
        body: Body,
        session: str | None = None,
        turn: bool = True,
        timeout: float | None = None,
        priority: str | None = None,
        bound_to: Execution | None = None,
        *,
        spec: LaneSpec | None = None,
    ) -> Request:
        """Work that is asked for, checked; nothing has changed. User code may be asked: the layout's `path`.

        Args:
            spec: the lane's, if the caller has looked it up.

        Raises:
            What `submit` raises, but for `LaneBusy` and `LaneFull`.
        """
        board = self._board
        if running_loop() is not board.loop and board.serving:
            raise wrong_loop(
                "submit and post belong to the event loop's thread; use submit_threadsafe, post_threadsafe"
            )
        if not board.accepting and (bound_to is None or not board.serving):
            raise Draining("the supervisor does not accept work: it is draining, stopped, or not started yet")
        _effects.refuse_endless("submit, post")
        known = board.lanes.get(lane) if isinstance(lane, str) else None  # type: ignore[redundant-expr]  # not checked yet
        if spec is None:
            spec = known.spec if known is not None else board.specs.find(lane)
        session = session_of_lane(lane, session)
        file = board.layout.file_of(session) if session is not None else None
        queue = known if known is not None else Lane(lane, spec)
        hard = spec.timeout if timeout is None else checks.seconds("timeout", timeout)
        if spec.idle_timeout is not None and spec.idle_timeout > hard:
            raise InvalidLane(
                f"lane {lane!r}, timeout: {hard} s is shorter than idle_timeout ({spec.idle_timeout} s), "
                "which it would hide"
            )
        if not isinstance(turn, bool):
            raise InvalidLane(f"turn: {checks.shown(turn)} is not allowed; allowed: True or False")
        urgency = queue.urgency if priority is None else checks.priority(priority)
        needs_turn = file if turn else None
        if bound_to is not None and needs_turn is not None:
            _refuse_inherited_turn(bound_to, needs_turn, session)
        parent = current_run() if bound_to is None else bound_to.run
        if parent is not None and parent.outcome is not None:
            parent = None
        return Request(queue, spec, session, file, needs_turn, hard, urgency, body, parent=parent, bound_to=bound_to)

    def admit(self, request: Request, policy: WhenBusy) -> Run:
        """The run that does what is asked for: a new one, or one that it joins.

        Raises:
            DedupeConflict, LaneBusy, LaneFull: nothing has changed.
        """
        if request.messages is not None:  # other work has no route
            self.busy.compare_routes(request, policy)
        return self.take(request, policy)

    @_effects.change
    def take(self, request: Request, policy: WhenBusy) -> Run:
        """As `admit`, when the routes have been compared: a change."""
        board, spec = self._board, request.spec
        # Looked up again: user code that was asked since may have made or ended the lane.
        lane = request.lane = board.lanes.get(request.lane.name, request.lane)
        if board.specs.was_changed and lane.name not in board.lanes:
            lane.respec(board.specs.find(lane.name))  # it was made before that, and its message kept on disk meanwhile
        if request.key is not None and (known := self._said_before(request, request.key)) is not None:
            return known
        joined, target, older, before, is_full = self._plan(request, policy)
        if joined is not None:
            assert request.messages is not None
            joined.join(request.messages, spec.debounce)
            if request.key is not None:
                board.history.know(request.key, Said(joined.run, request.digest))
            return joined.run
        if not is_full:
            return self._taken(request, policy, target, older).run
        assert spec.queue_limit is not None
        with _effects.marked(lane):
            execution = self._taken(request, policy, target, older)
            while lane.waiting > max(spec.queue_limit, before) and drop_oldest(board, execution):
                pass
        return execution.run

    def refuse(self, request: Request, policy: WhenBusy) -> None:
        """Raise what `admit` would raise at this instant. Nothing changes but the request."""
        self.busy.compare_routes(request, policy)
        self._plan(request, policy)

    def _plan(
        self, request: Request, policy: WhenBusy
    ) -> tuple[Execution | None, Execution | None, list[Execution], int, bool]:
        """What becomes of a request: the run that it joins; the run under way that it interrupts or is handed to; the
        runs that it supersedes; how many wait on its lane without those; and whether one of them has to give way.

        Raises:
            LaneBusy, LaneFull.
        """
        spec, lane = request.spec, request.lane
        plain = policy == "queue"
        target = None if plain else self.busy.target(request, policy)
        if (
            target is None
            and request.messages is not None
            and (policy == "collect" or (spec.debounce and request.debounce))
        ):
            joined = self.busy.joinable(request, policy)
            if joined is not None:
                return joined, None, [], 0, False
        if policy == "reject":
            self.busy.refuse(request)
        older = [] if plain else self.busy.outdated(request, policy)
        before = lane.waiting
        if older:
            before -= sum(1 + one.joined for one in older if one.lane is lane)
        held = bool(spec.debounce and request.debounce)
        if (
            spec.queue_limit is None
            or request.beyond_limit
            or before < spec.queue_limit
            or would_start(self._board, lane, request.file, request.urgency, held=held)
        ):
            return None, target, older, before, False
        # A hook that is called for what was dropped from a lane drops nothing more from it: that would have no end.
        if spec.when_full == "reject" or not lane.queued or _effects.is_marked(lane):
            raise lane_full(lane)
        return None, target, older, before, True

    def ended_run(self, request: Request, reason: str, attempts: int) -> Run:
        """A run that has failed before there was this scheduler."""
        self._next_id += 1
        turn = request.file is not None
        run = Run(self._next_id, request.lane.name, request.session, turn, None, _clock.clock.now())
        run.attempt = attempts
        failed = RunError(f"run on lane {run.lane} failed in an earlier process: {reason}", run)
        run._end(Outcome(state=RunState.FAILED, error=failed, reason=reason, attempts=attempts))
        return run

    def _said_before(self, request: Request, key: DedupeKey) -> Run | None:
        """The run of the message that its sender has sent under the same key before, if that one counts."""
        said = self._board.history.known(key, request.spec.dedupe_keeps)
        if said is not None and said.digest != request.digest:
            raise _conflict(request, key[-1], said.run)
        return said.run if said is not None else None

    def _taken(self, request: Request, policy: WhenBusy, target: Execution | None, older: list[Execution]) -> Execution:
        """A new run, put where its policy wants it: nothing is in its way any more.

        Args:
            target: the run under way that it interrupts, or is handed to.
            older: runs that wait, and that it supersedes.
        """
        spec = request.spec
        is_handed_over = policy == "steer" and target is not None
        execution = self._execution_of(request, policy if request.conducts() and not is_handed_over else "queue")
        if policy == "steer" and target is not None:
            self._steering.hand_over(execution, target)
            return execution
        if spec.debounce and request.debounce:
            now = execution.run.enqueued_at
            most = DEBOUNCE_AT_MOST * spec.debounce
            if spec.queue_timeout is not None:
                # Else a stream without a pause would end in the queue, only because it never paused.
                most = max(spec.debounce, min(most, spec.queue_timeout / 2))
            execution.hold(now + spec.debounce, now + most)
        goes_next = request.goes_next or (
            execution.policy == "interrupt" and (bool(older) or self.busy.is_busy(request))
        )
        self._starting.queue(execution, first=goes_next)
        # Last: a run that ends lets the next one in, which must be the newest.
        for one in older if target is None else (*older, target):
            if execution.phase not in OVER:  # its file could not be opened
                self._causes.supersede(one, execution)
        return execution

    def _execution_of(self, request: Request, policy: WhenBusy) -> Execution:
        board, lane = self._board, request.lane
        self._next_id += 1
        now = _clock.clock.now()
        run = Run(self._next_id, lane.name, request.session, request.file is not None, request.parent, now)
        if lane.spec.queue_timeout is not None:
            run.wait_deadline = now + lane.spec.queue_timeout - request.waited_s
        run.attempt = request.attempt
        execution = Execution(
            self._owner,
            run,
            lane,
            body=request.body,
            args=request.args,
            messages=request.messages,
            context=contextvars.copy_context(),
            fence=board.new_fence(lane.name, run.id),
            session_file=request.session_file,
            file=request.file,
            timeout=request.timeout,
            urgency=request.urgency,
            policy=policy,
            goes_first=request.goes_first,
        )
        run._execution = execution
        if request.key is not None:
            board.history.know(request.key, Said(run, request.digest))
        if request.bound_to is not None:
            execution.bind_to(request.bound_to)
        return execution


def check_dedupe(given: Any) -> str:
    """A sender's own name for a message.

    Raises:
        InvalidLane: it is none.
    """
    if not isinstance(given, str) or not 0 < len(given) <= _MOST_KEY_CHARS:
        raise InvalidLane(
            f"dedupe: {checks.shown(given)} is not allowed; allowed: 1 to {_MOST_KEY_CHARS} characters of text"
        )
    return given


def _conflict(request: Request, key: str, run: Run) -> DedupeConflict:
    """The refusal of another message under the same key."""
    return DedupeConflict(
        f"dedupe: {checks.shown(key)} is the key of run {run.id} on lane {request.lane.name!r}, whose message has "
        "another body; allowed: the same body, or another key",
        lane=request.lane.name,
        session=request.session,
        key=key,
        run=run.id,
    )


def _refuse_inherited_turn(parent: Execution, file: str, session: str | None) -> None:
    """A child that conducts what its parent conducts would wait for it, while the parent waits for the child."""
    above: Execution | None = parent
    while above is not None:
        if above.file == file and not above.over:
            raise DeadlockError(
                f"a child of run {parent.run.id} would wait for the turn of session {checks.shown(session)}, which "
                f"{above.fence.holder} has; allowed: turn=False, or detached=True",
                path=file,
                chain=((parent.fence.holder, file, above.fence.holder),),
            )
        above = above.parent
