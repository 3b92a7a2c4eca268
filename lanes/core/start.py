"""From a queued run to a body that runs: readiness, places and slots, turns.

`queue` puts an execution on its lane and, if it conducts a session, into the session's queue. At the front of its
session, and not held back, a run is *ready*. A ready run is admitted when its lane has a place and its group a slot:
it takes the session's turn in the lock registry and starts. When another process has that turn, place and slot go
back, and the run waits outside. A run that finds no other run before it (`needs.would_start`) starts at once. Whether
anything is started at all, for example while the supervisor drains, is `Board.may_start`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count
from operator import attrgetter

import anyio

from locks import Right, _clock, _effects
from locks._loop import know_loop
from locks.lowlevel import FileClaim

from ..checks import Priority
from ..queues.groups import Group
from ..queues.lane import Lane
from ..queues.timers import Timer
from ..run import RunState
from .board import Board
from .body_task import conduct
from .execution import NOT_HELD, Execution
from .needs import would_start
from .phase import OVER, QUEUED, Phase
from .raised import Raised, raised_of


def _nothing(_execution: Execution, _urgency: Priority) -> None:
    """No run waits elsewhere."""


class Starting:
    """How runs start: the queues of sessions, and admission. It reports what becomes of a run to the run's owner."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._to_admit: dict[Group[Execution], None] = {}
        """Groups in which something may start."""
        self._admitting = False
        self._paced: dict[Group[Execution], Timer] = {}
        """Groups that a timer will look at again, since admission is slowed."""
        self._front_ranks = count(-1, -1)
        self.on_lent: Callable[[Execution, Priority], object] = _nothing
        """Called when the body of a run goes on with a more urgent class: its waits are as urgent."""

    # Queueing

    def queue(self, execution: Execution, *, first: bool = False) -> None:
        """Put a new execution where it has to wait, and start it if it need not.

        Args:
            first: before all that wait for its session, or for its lane.
        """
        run, lane = execution.run, execution.lane
        self._board.lanes[lane.name] = lane
        self._board.live[run.id] = execution
        held = execution.held_until != NOT_HELD
        at_once = would_start(self._board, lane, execution.file, execution.urgency, held=held)
        if at_once:
            self._start_at_once(execution)
            if execution.phase not in QUEUED:
                return
        else:
            lane.enqueue(execution)
        self.limit_wait(execution)
        if not at_once:
            # While draining only children start: what may not must not stand before them.
            self.stand_in_line(execution, first=first or not self._board.starting)
        if execution.phase in QUEUED:
            self._board.hooks.waits(run)

    def limit_wait(self, execution: Execution) -> None:
        """Set the timer that ends its wait in the queue, if its lane has a limit for that."""
        if execution.run.wait_deadline is not None:
            timers, owner = self._board.timers, execution.owner
            execution.timer = timers.at(execution.run.wait_deadline, owner.queue_timeout, execution)

    def _start_at_once(self, execution: Execution) -> None:
        """Start a new execution that has none before it, without a way through the queues."""
        lane = execution.lane
        if execution.file is not None:
            self._board.turns.join(execution.file, execution)
        self._board.groups[lane.spec.group].take(execution)
        lane.running[execution] = None
        self._start(lane, execution)

    def stand_in_line(self, execution: Execution, *, first: bool = False) -> None:
        """Put a run into the queue of its session, last or as the next one; without a session it is ready at once."""
        file = execution.file
        execution.wait_in_line()
        if first:
            self.put_first(execution)
        if file is None:
            self.make_ready(execution)
            return
        if first:
            behind = self._board.turns.join_next(file, execution)
            if behind is not None:
                self._hold_back(behind)
            at_front = self._board.turns.front(file) is execution
        else:
            at_front = self._board.turns.join(file, execution)
        if at_front:
            self.make_ready(execution)
        else:
            self.lend_priority(file)

    def lend_priority(self, file: str) -> None:
        """Give the front of a session the class of the most urgent run that waits behind it."""
        front = self._board.turns.front(file)
        assert front is not None
        urgency = self._board.turns.most_urgent(file)
        if urgency >= front.urgency:
            return
        if not front.is_queued():
            group = self._board.groups[front.spec.group]
            if front not in group.holders:  # it has lent its slot: the lent class may be all that it lacks to go on
                front.urgency = urgency
                group.let_return()
            if front.claims:
                self.on_lent(front, urgency)
            return
        front.urgency, front.rank = urgency, next(self._front_ranks)
        if front.phase is Phase.READY:
            front.lane.make_ready(front)
            self.admit(front.lane)  # what it was lent may be all that it lacked

    def _hold_back(self, execution: Execution) -> None:
        """Have the front of a session wait for its turn again: another run goes before it."""
        execution.lane.make_unready(execution)
        execution.urgency = execution.given_urgency
        self._board.timers.cancel(execution.hold_timer)
        execution.wait_in_line()
        self._board.groups[execution.spec.group].offer(execution.lane)

    def _pass_what_may_not_start(self, execution: Execution) -> None:
        """Let a child of a running run go before work that does not start any more, and would keep both waiting."""
        file = execution.file
        assert file is not None
        front = self._board.turns.front(file)
        if front is not None and front is not execution and front.is_queued() and not self._board.may_start(front):
            self._board.turns.leave(file, execution)
            self.stand_in_line(execution, first=True)

    def make_ready(self, execution: Execution) -> None:
        """Let a run start when it may; nothing is before it in its session."""
        if execution.phase is not Phase.IN_LINE or not self._board.may_start(execution):
            return
        if execution.file is not None:
            urgency = self._board.turns.most_urgent(execution.file)
            if urgency < execution.urgency:
                execution.urgency, execution.rank = urgency, next(self._front_ranks)
        if execution.held_until > _clock.clock.now():
            execution.move(Phase.HELD_BACK)
            execution.hold_timer = self._board.timers.at(execution.held_until, self._let_go, execution)
            return
        execution.move(Phase.READY)
        execution.lane.make_ready(execution)
        self.admit(execution.lane)

    def _let_go(self, execution: Execution) -> None:
        """The instant has come before which an execution must not start; or it was moved on."""
        execution.wait_in_line()
        self.make_ready(execution)

    def put_first(self, execution: Execution) -> None:
        """Have it start before all others on its lane; an answer, behind older ones that do so."""
        ahead: list[Execution] = []
        if answer := execution.answer_id:
            ahead = [one for one in execution.lane.queued if one.rank < 0 < one.answer_id < answer]
        for one in (execution, *sorted(ahead, key=attrgetter("rank"), reverse=True)):
            one.rank = next(self._front_ranks)
            if one.phase is Phase.READY:
                one.lane.make_ready(one)

    # Opening and shutting

    def take_work(self) -> None:
        """Take work, and start none yet."""
        self._board.accepting = True

    @_effects.change
    def open(self) -> None:
        """Take work, and start what waits."""
        board = self._board
        board.accepting = board.starting = True
        for one in sorted(board.live.values()):
            if one.phase is Phase.IN_LINE and (one.file is None or board.turns.front(one.file) is one):
                self.make_ready(one)

    @_effects.change
    def shut(self) -> None:
        """Take nothing more, and start nothing but children of what runs."""
        board = self._board
        board.accepting = board.starting = False
        for lane in board.lanes.values():
            for one in lane.queued:
                if one.phase is Phase.READY and not board.may_start(one):
                    one.wait_in_line()
                    lane.make_unready(one)
            board.groups[lane.spec.group].offer(lane)
        for one in sorted(board.live.values(), reverse=True):
            if one.in_line and one.is_queued() and board.may_start(one):
                self._pass_what_may_not_start(one)

    # Admission

    def admit(self, lane: Lane[Execution]) -> None:
        """Start the runs that may start now in the lane's group."""
        group = self._board.groups[lane.spec.group]
        group.offer(lane)
        self.admit_group(group)

    @_effects.change
    def admit_group(self, group: Group[Execution]) -> None:
        """Start the runs that may start now in a group."""
        self._to_admit[group] = None
        if self._admitting:
            return  # a run that fails at its start lets its successors in from the loop below: no recursion
        self._admitting = True
        try:
            while self._to_admit:
                group, _ = self._to_admit.popitem()
                if group.returning:
                    group.let_return()
                while self._board.serving and (admitted := self._next(group)) is not None:
                    self._start(*admitted)
        finally:
            self._admitting = False

    def _next(self, group: Group[Execution]) -> tuple[Lane[Execution], Execution] | None:
        """The run that starts next in a group, at the pace that the process can keep."""
        if not self._board.throttle.holds_back(group.spec.name):
            return group.admit()
        now, barred, soonest = _clock.clock.now(), list[Priority](), float("inf")
        while (urgency := group.next_class(barred)) is not None:
            at = self._board.throttle.may_start_at(group.spec.name, urgency, now)
            if at <= now:
                self._board.throttle.started(group.spec.name, urgency, now)
                return group.admit(barred)
            barred.append(urgency)
            soonest = min(soonest, at)
        timer = self._paced.get(group)
        if barred and (timer is None or soonest < timer.due):  # a more urgent class does not wait for a slower one
            self._board.timers.cancel(timer)
            self._paced[group] = self._board.timers.at(soonest, self._look_again, group)
        return None

    def _look_again(self, group: Group[Execution]) -> None:
        self._paced.pop(group, None)
        self.admit_group(group)

    @_effects.change
    def admit_all(self) -> None:
        """Start the runs that may start now, in all groups."""
        for group in self._board.groups.values():
            self.admit_group(group)

    def _start(self, lane: Lane[Execution], execution: Execution) -> None:
        execution.begin()
        self._board.bodies[execution] = None
        failure: Raised | None = None
        turn = False
        try:
            ownership = self._board.ownership
            if ownership is None:
                turn = execution.take_turn(self._board.registry)
            else:
                turn = execution.file is None or ownership.owns(execution.file)
        except Exception as error:
            failure = raised_of(error)  # the file cannot be opened or locked: the failure of this run alone
        if failure is not None:
            execution.owner.finish(execution, RunState.FAILED, failure.said, raised=failure)
            return
        if not turn:
            self._wait_outside(lane, execution)
            return
        run = execution.run
        if execution.timer is not None:
            self._board.timers.cancel(execution.timer)
        assert run.deadline is not None
        execution.timer = self._board.timers.at(run.deadline, execution.owner.deadline_came, execution)
        self._board.hooks.started(run)
        _effects.after(self._start_body, execution)  # a task factory, and a trio instrument, are user code

    def _start_body(self, execution: Execution) -> None:
        """Start a body as a task of its own, in a copy of its submitter's context."""
        context, tasks = execution.context, self._board.tasks
        if execution.phase in OVER or context is None or tasks is None:
            return
        if execution.spec.retry is not None:
            context = context.copy()  # what one attempt sets in it, the next one must not find
        know_loop(context)
        body, died = conduct(execution, tasks), partial(execution.owner.body_died, execution)
        try:
            tasks.start(body, execution.task_name, context, died)
        except Exception as error:
            body.close()
            execution.owner.body_ended(execution, None, error)

    def _wait_outside(self, lane: Lane[Execution], execution: Execution) -> None:
        """Give place and slot back, and wait until the other process has finished its turn."""
        scope = self._board.new_scope(shield=True)
        execution.wait_outside(scope)
        lane.put_back(execution)
        del self._board.bodies[execution]
        self._board.groups[lane.spec.group].give_back(execution)
        assert self._board.tasks is not None
        self._board.tasks.start(
            self._wait_for_turn(execution, scope),
            f"turn for run {execution.run.id}",
            self._board.hooks.context.copy(),  # with none of the caller's variables
            partial(execution.owner.wait_died, execution, scope),
        )
        self._board.groups[lane.spec.group].offer(lane)  # its place is free again

    async def _wait_for_turn(self, execution: Execution, scope: anyio.CancelScope) -> None:
        file, registry, ownership, failure = execution.file, self._board.registry, self._board.ownership, None
        claim: FileClaim | None = None
        assert file is not None
        with scope:
            if execution.over:
                return  # it was cancelled before this task began
            try:
                if ownership is not None:
                    await ownership.want(file)
                else:  # what it holds may be another claim than it asked with: the file may have been replaced
                    claim = await registry.arbiter.acquire(file, Right.TURN, execution.turn_claim(registry))
            except Exception as error:
                failure = raised_of(error)
            else:
                self._turn_came(execution, claim, scope)
        if failure is not None:
            self._turn_failed(execution, failure)

    @_effects.change
    def _turn_came(self, execution: Execution, claim: FileClaim | None, scope: anyio.CancelScope) -> None:
        """The other process has finished its turn, which this process holds now."""
        if execution.phase is not Phase.WAITS_OUTSIDE or execution.turn_scope is not scope:
            if claim is not None:
                self._board.registry.arbiter.release(claim)
            return
        execution.wait_in_line(claim)
        self.make_ready(execution)
        if execution.phase in QUEUED:
            # No place or no slot is free: no run may have to wait for a run that only waits. Its place in the order of
            # arrival is kept, so it is next again.
            execution.release_turn(self._board.registry)

    @_effects.change
    def _turn_failed(self, execution: Execution, failure: Raised) -> None:
        if not execution.over:
            execution.owner.finish(execution, RunState.FAILED, failure.said, raised=failure)
