"""The scheduler: from a submitted piece of work to its outcome.

How a run moves. `submit` makes an execution and queues it on its lane and, if it conducts a session, for the session's
turn. At the front of its session it is *ready*; a ready one is admitted when its lane has a place and its group a slot;
admitted, it takes the session's turn in the lock registry (another process may have it: then it gives place and slot
back and waits outside) and starts. Whatever asks it to end goes through `end`, whoever lets go of it goes through
`_leave`; both are synchronous, so no cancellation can come in between.
"""

from __future__ import annotations

import contextvars
import threading
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from itertools import count
from typing import Any

import anyio
from anyio.abc import TaskGroup

from locks import Fence, LeaseLost, LockRegistry, Right, _clock
from locks._events import described, log
from locks._loop import scope_type

from .admission import Group
from .ending import deadline_reason, fields, log_timeout, outcome_of, queue_reason
from .errors import Draining, InvalidLane, LaneFull
from .execution import Execution
from .hooks import Hook, Hooks
from .lane import Lane, LaneHost, spawn
from .layout import SessionLayout, session_of_lane
from .run import Body, Run, RunState, current_run
from .session import Session
from .spec import Priority, SpecTable, priority, seconds
from .timers import Timers
from .turns import Turns

_LEAST_GRACE_S = 0.02


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
        on_run_start: Hook | None = None,
        on_run_end: Hook | None = None,
    ) -> None:
        self.specs = specs
        self.registry = registry
        self.layout = layout
        self.services: Mapping[str, Any] = {}
        self.new_scope: Callable[[], anyio.CancelScope] = anyio.CancelScope
        self.accepting = False
        """Whether `submit` takes work."""
        self.starting = False
        """Whether queued work is started."""
        self.lanes: dict[str, Lane] = {}
        self.groups = {name: Group(spec) for name, spec in specs.groups.items()}
        self.turns = Turns()
        self.live: dict[int, Execution] = {}
        self.abandoned: set[Execution] = set()
        self.late_writes_refused = 0
        self._refusals = threading.Lock()
        self.ended: dict[RunState, int] = dict.fromkeys((s for s in RunState if s.ended), 0)
        self.timers = Timers()
        self._finished: OrderedDict[int, Run] = OrderedDict()
        self._keep = keep_outcomes
        self._hooks = Hooks(on_run_start, on_run_end)
        self._ids = count(1)
        self._group: TaskGroup | None = None
        self._to_admit: dict[Group, None] = {}
        """Groups in which something may start."""
        self._admitting = False
        self._calm: anyio.Event | None = None
        self._gone: anyio.Event | None = None
        self._own_context = contextvars.Context()

    async def serve(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Hold the task group whose children are the lanes, until cancelled."""
        async with anyio.create_task_group() as group:
            self._group = group
            self._own_context = contextvars.copy_context()
            self.new_scope = scope_type()
            task_status.started()
            await self.timers.serve()

    def _context(self) -> contextvars.Context:
        """The variables of whoever started the supervisor, not those of the run in which it happens to be called."""
        return self._own_context.copy()

    # Submitting

    def submit(
        self,
        lane: str,
        body: Body,
        args: tuple[Any, ...],
        *,
        session: str | None = None,
        turn: bool = True,
        timeout: float | None = None,
        priority_name: str | None = None,
    ) -> Run:
        """Queue a piece of work. Never blocks.

        Raises:
            Draining: nothing is accepted now.
            InvalidLane: the lane is unknown, or a value is not allowed.
            InvalidSession: the session's key is not allowed.
            LaneFull: the lane's queue has reached its limit.
        """
        if not self.accepting:
            raise Draining("the supervisor does not accept work: it is draining, stopped, or not started yet")
        if not callable(body):
            raise InvalidLane(f"fn: {body!r:.80} cannot be called; allowed: an async function that takes the context")
        name: object = lane
        queue = self.lanes.get(name) if isinstance(name, str) else None
        if queue is None:
            queue = Lane(lane, self.specs.find(lane))
        spec = queue.spec
        session = session_of_lane(lane, session)
        file = self.layout.file_of(session) if session is not None else None
        hard = spec.timeout if timeout is None else seconds("timeout", timeout)
        if spec.idle_timeout is not None and spec.idle_timeout > hard:
            raise InvalidLane(
                f"lane {lane!r}, timeout: {hard} s is shorter than idle_timeout ({spec.idle_timeout} s), "
                "which it would hide"
            )
        urgency = queue.urgency if priority_name is None else priority(priority_name)
        needs_turn = file if turn else None
        if (
            spec.queue_limit is not None
            and len(queue.queued) >= spec.queue_limit
            and not self._would_start(queue, needs_turn, urgency)
        ):
            raise LaneFull(
                f"lane {lane!r} is full: {len(queue.queued)} queued; allowed: {spec.queue_limit} (queue_limit)",
                lane=lane,
                queued=len(queue.queued),
                limit=spec.queue_limit,
            )
        now = _clock.clock.now()
        parent = current_run()
        if parent is not None and parent.outcome is not None:
            parent = None
        run = Run(next(self._ids), lane, session, turn and session is not None, parent.id if parent else None, now)
        execution = Execution(
            self,
            run,
            queue,
            body=body,
            args=args,
            context=contextvars.copy_context(),
            fence=Fence(lane=lane, run_id=run.id, on_refused=self._refused),
            file=needs_turn,
            timeout=hard,
            urgency=urgency,
        )
        run._execution = execution
        self._queue(execution)
        return run

    def _would_start(self, lane: Lane, file: str | None, urgency: Priority) -> bool:
        """Whether one more would start at once, so that a limit of 0 means: no waiting, not: no work."""
        return (
            self.starting
            and not lane.queued
            and len(lane.running) < lane.spec.capacity
            and (file is None or self.turns.front(file) is None)
            and self.groups[lane.spec.group].would_start(urgency)
        )

    def _queue(self, execution: Execution) -> None:
        run, lane, spec = execution.run, execution.lane, execution.spec
        self.lanes[lane.name] = lane
        self.live[run.id] = execution
        lane.queued.add(execution)
        if spec.queue_timeout is not None:
            execution.timer = self.timers.at(
                run.enqueued_at + spec.queue_timeout, partial(self._queue_timeout, execution)
            )
        if execution.file is None or self.turns.join(execution.file, execution):
            lane.make_ready(execution)
            self._admit(lane)

    # Starting

    def _admit(self, lane: Lane) -> None:
        """Start whatever may start now in the lane's group."""
        group = self.groups[lane.spec.group]
        group.offer(lane)
        self._to_admit[group] = None
        if self._admitting:
            return  # a run that ends while others are admitted lets its successors in from there: no recursion
        self._admitting = True
        try:
            while self._to_admit:
                group, _ = self._to_admit.popitem()
                while self.starting and (admitted := group.admit()) is not None:
                    self._start(*admitted)
        finally:
            self._admitting = False

    def admit_all(self) -> None:
        """Start whatever may start now; after `starting` was set."""
        for lane in list(self.lanes.values()):
            self._admit(lane)

    def _start(self, lane: Lane, execution: Execution) -> None:
        execution.begin()
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
        execution.timer = self.timers.at(run.deadline, partial(self._deadline, execution))
        if lane.host is None:
            lane.host = LaneHost()
            self._spawn(lane.host.serve, f"lane {lane.name}")
        execution.host = lane.host
        self._hooks.started(run, self._own_context)
        lane.host.start(execution)

    def _spawn(self, body: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        """Start a task of our own, with none of the variables of whoever happened to call."""
        assert self._group is not None
        self._context().run(spawn, self._group, body, name)

    def _wait_outside(self, lane: Lane, execution: Execution) -> None:
        """Give place and slot back, and wait until the other process has finished its turn."""
        run, fence = execution.run, execution.fence
        run.state, run.started_at, run.deadline = RunState.QUEUED, None, None
        fence.deadline = fence.end_at = float("inf")
        execution.claim = None
        lane.put_back(execution)
        self.groups[lane.spec.group].give_back(execution)
        execution.turn_scope = scope = anyio.CancelScope()
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
                if execution.is_over():
                    self.registry.release(claim)
                    return
                execution.claim, execution.turn_scope = claim, None
                execution.lane.make_ready(execution)
                self._admit(execution.lane)
                if execution.run.state is RunState.QUEUED:
                    # No place or no slot is free: nobody may have to wait for a run that only waits. Its place in the
                    # order of arrival is kept, so it is next again.
                    execution.release_turn(self.registry)
        if failure is not None and not execution.is_over():
            self._finish(execution, RunState.FAILED, described(failure), error=failure)

    # Ending

    def end(self, execution: Execution, state: RunState, reason: str) -> None:
        """Ask a run to end, for the first cause that comes: cancel its body, let it clean up, and see that it does."""
        run = execution.run
        if execution.cause is not None or run.outcome is not None:
            return
        now = _clock.clock.now()
        if run.state is RunState.QUEUED:
            execution.cause = (state, reason)
            self._finish(execution, state, reason)
            return
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
        execution.timer = self.timers.at(max(end_at, now + _LEAST_GRACE_S), partial(self._abandon, execution))
        if state is RunState.TIMED_OUT:
            log_timeout(execution, execution.run.reason)
        execution.cancel_body()

    def _queue_timeout(self, execution: Execution) -> None:
        """A run has waited for as long as it may: say for what."""
        front = self.turns.front(execution.file) if execution.file is not None else None
        reason = queue_reason(execution, front, self.groups[execution.spec.group])
        self.end(execution, RunState.TIMED_OUT, reason)

    def _deadline(self, execution: Execution) -> None:
        deadline = execution.run.deadline
        assert deadline is not None
        if _clock.clock.now() < deadline:  # `progress()` has moved it
            execution.timer = self.timers.at(deadline, partial(self._deadline, execution))
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
        run, lane = execution.run, execution.lane
        if run.outcome is not None or execution.cause is None:
            return
        state, reason = execution.cause
        if not execution.began:
            self._finish(execution, state, reason)
            return
        execution.stop_telling_body()
        self.abandoned.add(execution)
        if lane.host is not None and lane.host is execution.host:
            lane.host.close()
            lane.host = None
        reason = f"{reason}; its body ignored that for {execution.spec.grace:g} s and was abandoned"
        log("run_abandoned", level="error", **fields(execution), reason=reason, abandoned=len(self.abandoned))
        self._finish(execution, RunState.ABANDONED, reason)

    def body_ended(self, execution: Execution, value: Any, error: BaseException | None) -> None:
        """Turn what the body did into the run's outcome."""
        run = execution.run
        if run.outcome is not None:
            self.abandoned.discard(execution)
            if not self.abandoned and self._gone is not None:
                self._gone.set()
                self._gone = None
            log("abandoned_body_ended", **fields(execution))
            self._settle()
            return
        cancelled = error is not None and isinstance(error, anyio.get_cancelled_exc_class())
        if execution.cause is None and _clock.clock.now() >= execution.fence.end_at:
            self.end(execution, RunState.TIMED_OUT, "")  # it kept the loop, and its turn was taken from it meanwhile
        if execution.cause is None and cancelled:
            execution.cause = (RunState.CANCELLED, "cancelled from outside the supervisor")
        if execution.cause is None:
            if error is None:
                self._finish(execution, RunState.DONE, "", value=value)
            else:
                self._finish(execution, RunState.FAILED, described(error), error=error)
            return
        state, reason = execution.cause
        self._finish(execution, state, reason, value=value, error=None if cancelled else error)

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
        execution.release_turn(self.registry)
        self.registry.end(execution.fence)
        self.timers.cancel(execution.timer)
        outcome = outcome_of(execution, state, reason, value, error)
        if state is RunState.TIMED_OUT and run.started_at is None:
            log_timeout(execution, reason)
        self.ended[state] += 1
        self.live.pop(run.id, None)
        self._finished[run.id] = run
        while len(self._finished) > self._keep:
            self._finished.popitem(last=False)
        if state is not RunState.ABANDONED:
            execution.body, execution.args, execution.context = None, (), None
        run._end(outcome)
        self._hooks.ended(run, self._own_context)
        self._leave(execution)
        if state is RunState.FAILED:
            log("run_failed", level="warning", **fields(execution), error=reason)
        self._settle()

    def _leave(self, execution: Execution) -> None:
        """Give back place, slot and queue positions, and let the next ones in."""
        lane = execution.lane
        if execution.turn_scope is not None:
            execution.turn_scope.cancel()
            execution.turn_scope = None
        if execution in lane.running:
            lane.running.discard(execution)
            self.groups[lane.spec.group].give_back(execution)
        lane.forget(execution)
        if execution.file is not None:
            follower = self.turns.leave(execution.file, execution)
            if follower is not None:
                follower.lane.make_ready(follower)
                if follower.lane is not lane:
                    self._admit(follower.lane)
        self._admit(lane)
        if lane.spec.wild and lane.idle and self.lanes.get(lane.name) is lane:
            del self.lanes[lane.name]
            if lane.host is not None:
                lane.host.close()
                lane.host = None

    # Looking and waiting

    def find(self, run_id: int) -> Run | None:
        """A live or recently finished run."""
        execution = self.live.get(run_id)
        return execution.run if execution is not None else self._finished.get(run_id)

    def running(self) -> list[Execution]:
        """The executions whose bodies run and are not abandoned."""
        return [e for lane in self.lanes.values() for e in lane.running]

    def is_calm(self) -> bool:
        """Whether no body runs that is not abandoned."""
        return not any(group.running for group in self.groups.values())

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

    def _refused(self) -> None:
        with self._refusals:  # late writes come from threads
            self.late_writes_refused += 1
