"""From a queued run to a body that runs: readiness, places and slots, turns.

`queue` puts an execution on its lane and, if it conducts a session, into the session's queue. At the front of its
session, and not held back, it is *ready*; a ready one is admitted when its lane has a place and its group a slot;
admitted, it takes the session's turn in the lock registry and starts. Another process may have that turn: then place
and slot go back, and the run waits outside. One that has nobody before it anywhere takes a shorter way to the same end.
"""

from __future__ import annotations

import math
from functools import partial

import anyio

from locks import Right, _clock, _effects
from locks._loop import know_loop
from locks.lowlevel import FileClaim

from ..checks import Priority
from ..queues.groups import Group
from ..queues.lane import Lane
from ..run import RunState
from .board import State
from .execution import Execution
from .needs import would_start
from .outcomes import Raised, raised_of

_NOT_HELD = -math.inf
_QUEUED = RunState.QUEUED  # a member of an enumeration costs more to look up than a global name


class Starting(State):
    """How runs start."""

    # Queueing

    def queue(self, execution: Execution, *, first: bool = False) -> None:
        """Put a new execution where it has to wait, and start it if it need not.

        Args:
            first: before everybody who waits for its session, or for its lane.
        """
        run, lane = execution.run, execution.lane
        self.lanes[lane.name] = lane
        self.live[run.id] = execution
        held = execution.held_until != _NOT_HELD
        at_once = would_start(self, lane, execution.file, execution.urgency, held=held)
        if at_once:
            self._start_at_once(execution)
            if run.state is not _QUEUED:
                return
        else:
            lane.enqueue(execution)
        if run.wait_deadline is not None:
            execution.timer = self.timers.at(run.wait_deadline, self._queue_timeout, execution)
        if not at_once:
            # While draining only children start: what may not must not stand before them.
            self._stand_in_line(execution, first=first or not self.starting)
        if run.state is _QUEUED:
            self.hooks.waits(run)

    def _start_at_once(self, execution: Execution) -> None:
        """Start a new execution that has nobody before it, without a way through the queues."""
        lane = execution.lane
        if execution.file is not None:
            execution.in_line = True
            self.turns.join(execution.file, execution)
        self.groups[lane.spec.group].take(execution)
        lane.running[execution] = None
        self._start(lane, execution)

    def _stand_in_line(self, execution: Execution, *, first: bool = False) -> None:
        file = execution.file
        if first:
            execution.rank = next(self._front_ranks)
        if file is None:
            self._make_ready(execution)
            return
        execution.in_line = True
        if first:
            behind = self.turns.join_next(file, execution)
            if behind is not None:
                self._hold_back(behind)
            at_front = self.turns.front(file) is execution
        else:
            at_front = self.turns.join(file, execution)
        if at_front:
            self._make_ready(execution)
        else:
            self._lend_priority(file)

    def _lend_priority(self, file: str) -> None:
        """Give who is at the front of a session the class of the most urgent one that waits behind it."""
        front = self.turns.front(file)
        assert front is not None
        urgency = self.turns.most_urgent(file)
        if urgency >= front.urgency:
            return
        if not front.is_queued():
            if not front.has_slot:  # it has lent its slot: what it was lent may be all that it lacks to go on
                front.urgency = urgency
                self.groups[front.spec.group].let_return()
            return
        front.urgency, front.rank = urgency, next(self._front_ranks)
        if front.is_ready:
            front.lane.make_unready(front)
            front.lane.make_ready(front)
            self._admit(front.lane)  # what it was lent may be all that it lacked

    def _hold_back(self, execution: Execution) -> None:
        """Somebody goes before one that was at the front of its session: it waits for its turn again."""
        execution.lane.make_unready(execution)
        execution.urgency = execution.given_urgency
        self.timers.cancel(execution.hold_timer)
        if execution.turn_scope is not None:
            execution.turn_scope.cancel()
            execution.turn_scope = None
        self.groups[execution.spec.group].offer(execution.lane)

    def _pass_who_may_not_start(self, execution: Execution) -> None:
        """Let a child of a running run go before work that is not started any more, and would keep both waiting."""
        file = execution.file
        assert file is not None
        front = self.turns.front(file)
        if front is not None and front is not execution and front.is_queued() and not self.may_start(front):
            self.turns.leave(file, execution)
            execution.in_line = False
            self._stand_in_line(execution, first=True)

    def may_start(self, execution: Execution) -> bool:
        """Whether it may be started at all: draining starts nothing but children of what runs."""
        return self.starting or (execution.parent is not None and not execution.parent.over)

    def _make_ready(self, execution: Execution) -> None:
        """One that has its session's turn before it, if it needs one: let it start when it may."""
        if execution.over or not self.may_start(execution):
            return
        if execution.in_line and execution.file is not None:
            urgency = self.turns.most_urgent(execution.file)
            if urgency < execution.urgency:
                execution.urgency, execution.rank = urgency, next(self._front_ranks)
        if execution.held_until > _clock.clock.now():
            self.timers.cancel(execution.hold_timer)
            execution.hold_timer = self.timers.at(execution.held_until, self._let_go, execution)
            return
        execution.lane.make_ready(execution)
        self._admit(execution.lane)

    def _let_go(self, execution: Execution) -> None:
        """The instant has come before which an execution must not start; or it was moved on."""
        if execution.over or not execution.is_queued():
            return
        if self._is_next(execution):
            self._make_ready(execution)

    def _is_next(self, execution: Execution) -> bool:
        """Whether nobody is before it in its session, and it stands in no inbox."""
        if execution.file is None or not execution.in_line:
            return execution.steered_into is None
        return self.turns.front(execution.file) is execution

    # Admission

    def _admit(self, lane: Lane) -> None:
        """Start whatever may start now in the lane's group."""
        group = self.groups[lane.spec.group]
        group.offer(lane)
        self.admit_group(group)

    @_effects.change
    def admit_group(self, group: Group) -> None:
        """Start whatever may start now in a group."""
        self._to_admit[group] = None
        if self._admitting:
            return  # a run that fails at its start lets its successors in from the loop below: no recursion
        self._admitting = True
        try:
            while self._to_admit:
                group, _ = self._to_admit.popitem()
                if group.returning:
                    group.let_return()
                while self.serving and (admitted := self._next(group)) is not None:
                    self._start(*admitted)
        finally:
            self._admitting = False

    def _next(self, group: Group) -> tuple[Lane, Execution] | None:
        """Who starts next in a group, at the pace that the process can keep."""
        if not self.pace.holds_back(group.spec.name):
            return group.admit()
        now, barred, soonest = _clock.clock.now(), list[Priority](), float("inf")
        while (urgency := group.next_class(barred)) is not None:
            at = self.pace.may_start_at(group.spec.name, urgency, now)
            if at <= now:
                self.pace.started(group.spec.name, urgency, now)
                return group.admit(barred)
            barred.append(urgency)
            soonest = min(soonest, at)
        timer = self._paced.get(group)
        if barred and (timer is None or soonest < timer.due):  # a more urgent class does not wait for a slower one
            self.timers.cancel(timer)
            self._paced[group] = self.timers.at(soonest, self._look_again, group)
        return None

    def _look_again(self, group: Group) -> None:
        self._paced.pop(group, None)
        self.admit_group(group)

    @_effects.change
    def admit_all(self) -> None:
        """Start whatever may start now, in all groups."""
        for group in self.groups.values():
            self.admit_group(group)

    def _start(self, lane: Lane, execution: Execution) -> None:
        execution.begin()
        self.bodies[execution] = None
        failure: Raised | None = None
        turn = False
        try:
            turn = execution.take_turn(self.registry, self._turn_lost)
        except Exception as error:
            failure = raised_of(error)  # the file cannot be opened or locked: the failure of this run alone
        if failure is not None:
            self._finish(execution, RunState.FAILED, failure.said, raised=failure)
            return
        if not turn:
            self._wait_outside(lane, execution)
            return
        run = execution.run
        self.timers.cancel(execution.timer)
        assert run.deadline is not None
        execution.timer = self.timers.at(run.deadline, self._deadline, execution)
        self.hooks.started(run)
        _effects.after(self._start_body, execution)  # a task factory, and a trio instrument, are user code

    def _start_body(self, execution: Execution) -> None:
        """Start a body as a task of its own, in a copy of its submitter's context."""
        context = execution.context
        if execution.over or context is None or self.tasks is None:
            return
        if execution.spec.retry is not None:
            context = context.copy()  # what one attempt sets in it, the next one must not find
        know_loop(context)
        conduct = execution.conduct()
        try:
            self.tasks.start(conduct, execution.task_name, context, partial(self._body_died, execution))
        except Exception as error:
            conduct.close()
            self.body_ended(execution, None, error)

    def _wait_outside(self, lane: Lane, execution: Execution) -> None:
        """Give place and slot back, and wait until the other process has finished its turn."""
        run, fence = execution.run, execution.fence
        run.state, run.started_at, run.deadline = RunState.QUEUED, None, None
        fence.deadline = fence.end_at = float("inf")
        execution.claim = None
        lane.put_back(execution)
        del self.bodies[execution]
        self.groups[lane.spec.group].give_back(execution)
        execution.turn_scope = scope = self.new_scope(shield=True)
        assert self.tasks is not None
        self.tasks.start(
            self._wait_for_turn(execution, scope),
            f"turn for run {run.id}",
            self.hooks.context.copy(),  # with none of the variables of whatever happened to call
            partial(self._wait_died, execution, scope),
        )
        self.groups[lane.spec.group].offer(lane)  # its place is free again

    async def _wait_for_turn(self, execution: Execution, scope: anyio.CancelScope) -> None:
        file, failure = execution.file, None
        assert file is not None
        with scope:
            if execution.is_over():
                return  # it was cancelled before this task began
            try:
                claim = await self.registry.arbiter.acquire(
                    file, Right.TURN, execution.turn_claim(self.registry, self._turn_lost)
                )
            except Exception as error:
                failure = raised_of(error)
            else:
                self._turn_came(execution, claim, scope)
        if failure is not None:
            self._turn_failed(execution, failure)

    @_effects.change
    def _turn_came(self, execution: Execution, claim: FileClaim, scope: anyio.CancelScope) -> None:
        """The other process has finished its turn, which this process holds now."""
        if execution.over or execution.turn_scope is not scope:
            self.registry.arbiter.release(claim)
            return
        execution.claim, execution.turn_scope = claim, None
        self._make_ready(execution)
        if execution.is_queued() and not execution.over:
            # No place or no slot is free: no run may have to wait for one that only waits. Its place in the order of
            # arrival is kept, so it is next again.
            execution.release_turn(self.registry)

    @_effects.change
    def _turn_failed(self, execution: Execution, failure: Raised) -> None:
        if not execution.over:
            self._finish(execution, RunState.FAILED, failure.said, raised=failure)
