"""The scheduler: from a queued piece of work to its outcome.

How a run moves. `Intake` makes an execution, and `queue` puts it on its lane and, if it conducts a session, into the
session's queue. At the front of its session, and not held back, it is *ready*; a ready one is admitted when its lane
has a place and its group a slot; admitted, it takes the session's turn in the lock registry (another process may have
it: then it gives place and slot back and waits outside) and starts. Whatever asks it to end goes through `end`, whoever
lets go of it goes through `_leave`; both are synchronous, so no cancellation can come in between. A run that is tried
again leaves like one that has ended, but for its place in the session, and its next attempt is a new execution.
"""

from __future__ import annotations

import contextvars
import math
import threading
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from itertools import count, takewhile
from typing import Any

import anyio
from anyio.abc import TaskGroup

from locks import Fence, LeaseLost, LockRegistry, Right, RunEnded, Superseded, _clock
from locks._events import described, log
from locks._loop import event_type, know_loop, scope_type

from .admission import Group
from .checks import Priority
from .ending import deadline_reason, fields, log_timeout, outcome_of, queue_reason
from .execution import Execution
from .history import History
from .hooks import Hooks
from .host import LaneHost, spawn
from .intake import Intake
from .lane import Lane
from .layout import SessionLayout
from .pace import Pace
from .run import Run, RunState
from .session import Session
from .stacks import stack_of
from .table import SpecTable
from .timers import Timer, Timers
from .turns import Turns
from .unframed import scrub
from .waits import Waits

_LEAST_GRACE_S = 0.02
_NOT_HELD = -math.inf
# An enumeration's member costs more to look up than a global name, and these are asked for several times per run.
_QUEUED, _RUNNING, _DONE = RunState.QUEUED, RunState.RUNNING, RunState.DONE


class Scheduler:
    """Lanes, groups, turns and runs of one supervisor. To be used on the event loop's thread.

    `serve` must be running for anything to start or to time out.
    """

    def __init__(
        self,
        specs: SpecTable,
        registry: LockRegistry,
        layout: SessionLayout,
        *,
        keep_outcomes: int = 1000,
        hooks: Hooks | None = None,
    ) -> None:
        self.specs = specs
        self.registry = registry
        self.layout = layout
        self.services: Mapping[str, Any] = {}
        self.new_scope: Callable[[], anyio.CancelScope] = anyio.CancelScope
        self.new_event: Callable[[], anyio.Event] = anyio.Event
        self.accepting = False
        """Whether work is taken from outside."""
        self.starting = False
        """Whether queued work is started. While it is not, children of running runs are."""
        self.lanes: dict[str, Lane] = {}
        self.hosts: dict[str, LaneHost] = {}
        """The task group in which bodies are started now, by their lane's pattern."""
        self.groups = {name: Group(spec) for name, spec in specs.groups.items()}
        self.turns = Turns()
        self.live: dict[int, Execution] = {}
        self.bodies: dict[Execution, None] = {}
        """Those that hold a place, in the order in which they started."""
        self.history = History(keep_outcomes)
        self.abandoned: dict[Execution, tuple[float, str]] = {}
        """Bodies that ignored their cancellation and still run: since when, and where they stood then."""
        self.late_writes_refused = 0
        self.late_events_dropped = 0
        self._refusals = threading.Lock()
        self.timers = Timers()
        self.pace = Pace()
        self.waits = Waits(self.turns, self.live, registry, self.groups, self.admit_group)
        self.hooks = hooks or Hooks(None, None, None)
        self.intake = Intake(self)
        self._group: TaskGroup | None = None
        self._to_admit: dict[Group, None] = {}
        """Groups in which something may start."""
        self._admitting = False
        self._paced: dict[Group, Timer] = {}
        """Groups that a timer will look at again, since admission is slowed."""
        self._calm: anyio.Event | None = None
        self._gone: anyio.Event | None = None
        self._front_ranks = count(-1, -1)

    async def serve(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Hold the task group whose children are the lanes, until cancelled."""
        self.registry.bind()  # here, in a task: the first work may come from a callback of the loop, which is none
        self.registry.wait_sources.append(self.waits.tasks_before)
        try:
            async with anyio.create_task_group() as group:
                self._group, self.intake.thread = group, threading.get_ident()
                self.hooks.context = contextvars.copy_context()
                know_loop(self.hooks.context)
                self.new_scope, self.new_event = scope_type(), event_type()
                for pattern in self.specs.lanes:
                    self._open_host(pattern)
                task_status.started()
                await self.timers.serve()
        finally:
            self._group = None
            self.registry.wait_sources.remove(self.waits.tasks_before)

    @property
    def serving(self) -> bool:
        """Whether anything can start."""
        return self._group is not None

    # Queueing

    def queue(self, execution: Execution, *, first: bool = False) -> None:
        """Put a new execution where it has to wait, and start it if it need not.

        Args:
            first: before everybody who waits for its session, or for its lane.
        """
        run, lane = execution.run, execution.lane
        self.lanes[lane.name] = lane
        self.live[run.id] = execution
        at_once = self._starts_at_once(execution)
        if at_once:
            self._start_at_once(execution)
            if run.state is not _QUEUED:
                return
        else:
            lane.enqueue(execution)
        if run.wait_deadline is not None:
            execution.timer = self.timers.at(run.wait_deadline, self._queue_timeout, execution)
        if not at_once:
            self._stand_in_line(execution, first=first)
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

    def _starts_at_once(self, execution: Execution) -> bool:
        """Whether a new execution would be admitted in the moment that it is ready: nobody is before it anywhere."""
        lane, file = execution.lane, execution.file
        return (
            self.starting
            and not lane.queued
            and len(lane.running) < lane.spec.capacity
            and (file is None or self.turns.front(file) is None)
            and execution.held_until == _NOT_HELD
            and self._group is not None
            and not self._admitting
            and not self.pace.why
            and self.groups[lane.spec.group].would_start(execution.urgency)
        )

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

    def message_read(self, execution: Execution, taken: Execution) -> None:
        """A body has read a message from its inbox: whoever sent it gets what that body's run ends with."""
        self.timers.cancel(taken.timer)
        taken.lane.forget(taken)
        run = taken.run
        run.state, run.started_at, run.deadline = RunState.RUNNING, _clock.clock.now(), execution.run.deadline
        if execution.answering is None:
            execution.answering = []
        execution.answering.append(taken)

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
        if not front.is_queued() or urgency >= front.urgency:
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

    def may_start(self, execution: Execution) -> bool:
        """Whether it may be started at all: draining starts nothing but children of what runs."""
        return self.starting or (execution.parent is not None and not execution.parent.over)

    def _make_ready(self, execution: Execution) -> None:
        """One that has its session's turn before it, if it needs one: let it start when it may."""
        if not self.may_start(execution):
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

    # Starting

    def _admit(self, lane: Lane) -> None:
        """Start whatever may start now in the lane's group."""
        group = self.groups[lane.spec.group]
        group.offer(lane)
        self.admit_group(group)

    def admit_group(self, group: Group) -> None:
        """Start whatever may start now in a group."""
        self._to_admit[group] = None
        if self._admitting:
            return  # a run that ends while others are admitted lets its successors in from there: no recursion
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
        if not self.pace.why or group.spec.name == "control":
            return group.admit()
        now, barred, soonest = _clock.clock.now(), list[Priority](), float("inf")
        while (urgency := group.next_class(barred)) is not None:
            at = self.pace.may_start_at(group.spec.name, urgency)
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

    def open(self) -> None:
        """Take work, and start what waits."""
        self.accepting = self.starting = True
        for execution in sorted(self.live.values()):
            if execution.is_queued() and not execution.is_ready and self._is_next(execution):
                self._make_ready(execution)

    def _is_next(self, execution: Execution) -> bool:
        """Whether nobody is before it in its session, and it stands in no inbox."""
        if execution.file is None or not execution.in_line:
            return execution.steered_into is None
        return self.turns.front(execution.file) is execution

    def shut(self) -> None:
        """Take nothing more, and start nothing but children of what runs."""
        self.accepting = self.starting = False
        for lane in self.lanes.values():
            for execution in lane.queued:
                if execution.is_ready and not self.may_start(execution):
                    lane.make_unready(execution)
            self.groups[lane.spec.group].offer(lane)

    def admit_all(self) -> None:
        """Start whatever may start now, in all groups."""
        for group in self.groups.values():
            self.admit_group(group)

    def _start(self, lane: Lane, execution: Execution) -> None:
        execution.begin()
        self.bodies[execution] = None
        failure: Exception | None = None
        turn = False
        try:
            turn = execution.take_turn(self.registry, self._turn_lost)
        except Exception as error:
            failure = error  # the file cannot be opened or locked: the run's failure, nobody else's
        if failure is not None:
            self._finish(execution, RunState.FAILED, described(failure), error=failure)
            return
        if not turn:
            self._wait_outside(lane, execution)
            return
        run = execution.run
        self.timers.cancel(execution.timer)
        assert run.deadline is not None
        execution.timer = self.timers.at(run.deadline, self._deadline, execution)
        execution.host = host = self.hosts[lane.spec.pattern]
        self.hooks.started(run)
        host.start(execution)

    def _open_host(self, pattern: str) -> None:
        """Have a task group for the bodies of a pattern's lanes."""
        self.hosts[pattern] = host = LaneHost()
        self._spawn(host.serve, f"lanes {pattern}")

    def _spawn(self, body: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        """Start a task of our own, with none of the variables of whoever happened to call."""
        assert self._group is not None
        self.hooks.context.copy().run(spawn, self._group, body, name)

    def _wait_outside(self, lane: Lane, execution: Execution) -> None:
        """Give place and slot back, and wait until the other process has finished its turn."""
        run, fence = execution.run, execution.fence
        run.state, run.started_at, run.deadline = RunState.QUEUED, None, None
        fence.deadline = fence.end_at = float("inf")
        execution.claim = None
        lane.put_back(execution)
        del self.bodies[execution]
        self.groups[lane.spec.group].give_back(execution)
        execution.turn_scope = scope = self.new_scope()
        self._spawn(partial(self._wait_for_turn, execution, scope), f"turn for run {run.id}")
        self.groups[lane.spec.group].offer(lane)  # its place is free again

    async def _wait_for_turn(self, execution: Execution, scope: anyio.CancelScope) -> None:
        file, failure = execution.file, None
        assert file is not None
        with scope:
            if execution.is_over():
                return  # it was cancelled before this task began
            try:
                claim = await self.registry.acquire(
                    file, Right.TURN, execution.turn_claim(self.registry, self._turn_lost)
                )
            except Exception as error:
                failure = error
            else:
                if execution.is_over() or execution.turn_scope is not scope:
                    self.registry.release(claim)
                    return
                execution.claim, execution.turn_scope = claim, None
                self._make_ready(execution)
                if execution.run.state is RunState.QUEUED:
                    # No place or no slot is free: nobody may have to wait for a run that only waits. Its place in the
                    # order of arrival is kept, so it is next again.
                    execution.release_turn(self.registry)
        if failure is not None and not execution.is_over():
            self._finish(execution, RunState.FAILED, described(failure), error=failure)

    # Ending

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
            reason = reason or deadline_reason(execution)
        execution.cause = (state, reason)
        run.reason = reason
        end_at = now + execution.spec.grace
        self.registry.end_by(execution.fence, end_at)
        self.timers.cancel(execution.timer)
        # However short the grace, a body that does end gets a few rounds of the loop to do it in.
        execution.timer = self.timers.at(max(end_at, now + _LEAST_GRACE_S), self._abandon, execution)
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
        front = self.turns.front(execution.file) if execution.file is not None else None
        reason = queue_reason(execution, front, self.groups[execution.spec.group])
        self.end(execution, RunState.TIMED_OUT, reason)

    def _deadline(self, execution: Execution) -> None:
        deadline = execution.run.deadline
        assert deadline is not None
        if _clock.clock.now() < deadline:  # `progress()` has moved it
            execution.timer = self.timers.at(deadline, self._deadline, execution)
            return
        self.end(execution, RunState.TIMED_OUT, "")

    def _turn_lost(self, execution: Execution, error: LeaseLost) -> None:
        """The session was taken from a run: by hand, or by the steward because this loop was late."""
        deadline = execution.run.deadline
        if deadline is not None and _clock.clock.now() >= deadline:
            self.end(execution, RunState.TIMED_OUT, "")
        else:
            self.end(execution, RunState.CANCELLED, f"its turn was revoked: {error}")

    def _abandon(self, execution: Execution) -> None:
        """The grace has passed and the body still runs: go on without it."""
        if execution.over or execution.cause is None:
            return
        state, reason = execution.cause
        if not execution.began:
            self._finish(execution, state, reason)
            return
        stack = stack_of(execution.fence.task)
        execution.stop_telling_body()
        self.abandoned[execution] = (_clock.clock.now(), stack)
        host = execution.host
        if host is not None and self.hosts.get(execution.spec.pattern) is host:
            host.close()
            self._open_host(execution.spec.pattern)
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

    def body_ended(self, execution: Execution, value: Any, error: BaseException | None) -> None:
        """Turn what the body did into the run's outcome, or into its next attempt."""
        if execution.over:
            self._abandoned_ended(execution)
            return
        if error is None and execution.cause is None and _clock.clock.now() < execution.fence.end_at:
            self._finish(execution, _DONE, "", value=value)
            return
        cancelled = error is not None and isinstance(error, anyio.get_cancelled_exc_class())
        if execution.cause is None and _clock.clock.now() >= execution.fence.end_at:
            self.end(execution, RunState.TIMED_OUT, "")  # it kept the loop, and its turn was taken from it meanwhile
        if execution.cause is None and cancelled:
            execution.cause = (RunState.CANCELLED, "cancelled from outside the supervisor")
        if execution.cause is None:
            if error is None:
                self._finish(execution, RunState.DONE, "", value=value)
            elif not self._try_again(execution, RunState.FAILED, error):
                self._finish(execution, RunState.FAILED, described(error), error=error)
            return
        state, reason = execution.cause
        if not self._try_again(execution, state, error):
            self._finish(execution, state, reason, value=value, error=None if cancelled else error)

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
        error: BaseException | None = None,
    ) -> None:
        """End a run, in whatever state it was, and let its successors go on."""
        run = execution.run
        self._close(execution)
        if run.attempt > 1 and run.started_at is None:
            run.attempt -= 1  # the next attempt never was
        outcome = outcome_of(execution, state, reason, value, error)
        if state is RunState.TIMED_OUT and run.started_at is None:
            log_timeout(execution, reason)
        execution.lane.tally.add(outcome)
        self.groups[execution.spec.group].tally.add(outcome)
        self.live.pop(run.id, None)
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
        if execution.children:
            execution.ask_children_to_end(reason or "has ended")
        if execution.answering is not None:
            answering, execution.answering = execution.answering, None
            for answered in answering:
                answered.cause, answered.late_s = execution.cause, execution.late_s
                self._finish(answered, state, reason, value=value, error=error)
        self._leave(execution)
        if state is RunState.FAILED:
            log("run_failed", level="warning", **fields(execution), error=reason, attempts=run.attempt)
        if self._calm is not None:
            self._settle()

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
            self.registry.end(fence)
        self.timers.cancel(execution.timer)
        if execution.hold_timer is not None:
            self.timers.cancel(execution.hold_timer)
        target = execution.steered_into
        if target is not None and not target.over:
            target.inbox.discard(execution)

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
        if lane.ready or lane.ring is not None:
            group.offer(lane)
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
        if execution.lane.ring is not None:
            # Before anybody is let in: it may be the one for whom its lane stands in the ring.
            self.groups[execution.spec.group].offer(execution.lane)

    def _queue_unread(self, execution: Execution) -> None:
        """Queue the messages that a body has left unread, before everybody who waits but those who interrupted it."""
        unread = execution.unread()
        for one in unread:
            one.steered_into = None
            one.run.answered_by = None
        if not unread:
            return
        if execution.file is None:
            ahead = sorted((one for one in execution.lane.queued if one.interrupts), key=lambda one: one.rank)
            self._go_first(ahead, unread)
            return
        others = [one for one in self.turns.of(execution.file) if one is not execution]
        ahead = list(takewhile(lambda one: one.interrupts or one.goes_first, others))
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

    # Trying again

    def _try_again(self, execution: Execution, state: RunState, error: BaseException | None) -> bool:
        """Queue the next attempt of a run whose body has failed, if there is one to come."""
        retry, run = execution.spec.retry, execution.run
        if retry is None or run.attempt >= retry.attempts or not self.may_start(execution):
            return False
        if state is RunState.FAILED:
            if error is None or not retry.is_for(error):
                return False
            why = described(error)
        elif state is RunState.TIMED_OUT and retry.timeouts:
            why = run.reason
        else:
            return False
        if execution.parent is not None and (execution.parent.over or execution.parent.ending):
            return False
        self._close(execution)
        wait_s = retry.wait_after(run.attempt)
        if error is not None:
            scrub(error)  # what the attempt held must be free before the next one begins
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

    # Looking and waiting

    def find(self, run_id: int) -> Run | None:
        """A live run, or one that is over and still kept."""
        execution = self.live.get(run_id)
        return execution.run if execution is not None else self.history.find(run_id)

    def running(self) -> list[Execution]:
        """The executions whose bodies run and are not abandoned."""
        return list(self.bodies)

    def is_calm(self) -> bool:
        """Whether no body runs that is not abandoned."""
        return not self.bodies

    async def calm(self) -> None:
        """Wait until no body runs that is not abandoned. A checkpoint."""
        while not self.is_calm():
            if self._calm is None:
                self._calm = anyio.Event()
            await self._calm.wait()
        await anyio.lowlevel.checkpoint()

    async def gone(self) -> None:
        """Wait until no abandoned body runs any more. A checkpoint."""
        while self.abandoned:
            if self._gone is None:
                self._gone = anyio.Event()
            await self._gone.wait()
        await anyio.lowlevel.checkpoint()

    def _settle(self) -> None:
        if self._calm is not None and self.is_calm():
            self._calm.set()
            self._calm = None

    def session(self, key: str, fence: Fence) -> Session:
        """A session, for the run that `fence` belongs to."""
        return Session(key, self.layout, self.registry, fence)

    def new_fence(self, lane: str, run_id: int) -> Fence:
        """A run's permission to write."""
        return Fence(lane=lane, run_id=run_id, on_refused=self._refused)

    def _refused(self) -> None:
        with self._refusals:  # late writes come from threads
            self.late_writes_refused += 1
