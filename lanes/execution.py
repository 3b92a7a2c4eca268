"""One run from the inside: what it takes to start it, to end it in time, and to let go of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import anyio

from locks import Fence, LeaseLost, LockRegistry, Right, _clock
from locks._loop import current_task
from locks.claim import Claim
from locks.holder import current_fence

from .context import RunContext
from .run import Run, RunState, _current
from .session import Session

if TYPE_CHECKING:
    from .lane import Lane, LaneHost
    from .spec import LaneSpec, Priority
    from .timers import Timer


class Owner(Protocol):
    """What an execution needs of its scheduler."""

    services: Mapping[str, Any]
    new_scope: Callable[[], anyio.CancelScope]
    """Makes a cancel scope on the running loop."""

    def end(self, execution: Execution, state: RunState, reason: str) -> None:
        """End a queued or running execution for the given cause."""

    def body_ended(self, execution: Execution, value: Any, error: BaseException | None) -> None:
        """Take note that the body has returned or raised."""

    def session(self, key: str, fence: Fence) -> Session:
        """A session for a run."""


class Execution:
    """The scheduler's side of a run.

    Invariants: `cause` is set once, by the first thing that asks the run to end, and decides its state; `claim` is held
    exactly while the run may conduct its session; `timer` is the one instant that the scheduler looks at it next.
    """

    # Defaults live on the class: one is made per run, and most of these never change.
    is_ready = False
    """Whether it stands in its lane's `ready`."""
    began = False
    """Whether its body was started."""
    hard_deadline = math.inf
    late_s = 0.0
    cause: tuple[RunState, str] | None = None
    claim: Claim | None = None
    timer: Timer | None = None
    turn_scope: anyio.CancelScope | None = None
    """The wait for a turn that another process has."""
    host: LaneHost | None = None
    task: anyio.TaskHandle[None] | None = None
    _body_scope: anyio.CancelScope | None = None

    def __init__(
        self,
        owner: Owner,
        run: Run,
        lane: Lane,
        *,
        body: Callable[..., Any],
        args: tuple[Any, ...],
        context: Context,
        fence: Fence,
        file: str | None,
        timeout: float,
        urgency: Priority,
    ) -> None:
        self._owner = owner
        self.run = run
        self.lane = lane
        self.spec: LaneSpec = lane.spec
        self.body: Callable[..., Any] | None = body
        self.args = args
        self.context: Context | None = context
        self.fence = fence
        self.file = file
        """The transcript whose turn it needs, if it conducts one."""
        self.timeout = timeout
        self.urgency = urgency

    def __lt__(self, other: Execution) -> bool:
        return self.run.id < other.run.id

    @property
    def ending(self) -> bool:
        """Whether it was asked to end."""
        return self.cause is not None

    def is_over(self) -> bool:
        """Whether its run has an outcome. A call, so that no reader takes the answer to outlive an `await`."""
        return self.run.outcome is not None

    def ask_to_end(self, state: RunState, reason: str) -> bool:
        """Ask it to end; returns `False` when something else has asked before, or it is over."""
        if self.cause is not None or self.run.outcome is not None:
            return False
        self._owner.end(self, state, reason)
        return True

    def begin(self) -> None:
        """Set the deadlines: they count from here."""
        run, now = self.run, _clock.clock.now()
        run.state, run.started_at = RunState.RUNNING, now
        self.hard_deadline = now + self.timeout
        idle = self.spec.idle_timeout
        run.deadline = self.hard_deadline if idle is None else min(self.hard_deadline, now + idle)
        self.fence.deadline = self.hard_deadline
        self.fence.end_at = self.hard_deadline + self.spec.grace

    def turn_claim(self, registry: LockRegistry, lost: Callable[[Execution, LeaseLost], Any]) -> Claim:
        """A claim on the turn of its session, with its place in the order of arrival; `lost` is called on the loop."""
        claim = registry.new_claim(max_hold=math.inf, fence=self.fence, arrived_at=self.run.enqueued_at)
        claim.on_lost = partial(lost, self)
        return claim

    def take_turn(self, registry: LockRegistry, lost: Callable[[Execution, LeaseLost], Any]) -> bool:
        """Take the turn of its session unless another process has it; a run without a session has nothing to take."""
        if self.file is None:
            return True
        claim = self.claim
        if claim is None:
            claim = self.turn_claim(registry, lost)
            if not registry.acquire_nowait(self.file, Right.TURN, claim):
                return False
            self.claim = claim
        claim.deadline = self.fence.deadline
        registry.look_by(self.fence.end_at)
        return claim.lost is None

    def release_turn(self, registry: LockRegistry) -> None:
        """Give the turn back, if it has it."""
        claim, self.claim = self.claim, None
        if claim is not None:
            claim.on_lost = None
            registry.release(claim)

    def progress(self) -> None:
        """Start the idle budget anew, within the hard deadline."""
        idle = self.spec.idle_timeout
        if idle is None or self.cause is not None or self.run.deadline is None:
            return
        self.run.deadline = min(self.hard_deadline, _clock.clock.now() + idle)

    def grace_left(self) -> float:
        """Seconds that a clean-up may take from now."""
        now = _clock.clock.now()
        return max(0.0, min(self.fence.end_at - now, self.spec.grace))

    @property
    def task_name(self) -> str:
        """The name of its task."""
        return f"run {self.run.id} on lane {self.run.lane}"

    def cancel_body(self) -> None:
        """Cancel the body; it may clean up and write until its fence closes."""
        if self.task is not None:
            self.task.cancel()

    def stop_telling_body(self) -> None:
        """Let an abandoned body be: cancelling one that swallows it, again and again, would burn the loop."""
        if self._body_scope is not None:
            self._body_scope.shield = True

    def tell_body_again(self) -> None:
        """Let the cancellation of the whole loop reach an abandoned body."""
        if self._body_scope is not None:
            self._body_scope.shield = False

    def session(self, key: str) -> Session:
        """A session, bound to this run's permission to write."""
        return self._owner.session(key, self.fence)

    async def conduct(self) -> None:
        """Run the body as a task of its own; contains everything it raises.

        Cancelling the task's own scope cancels the body; the scope inside is there to be shielded, so that an abandoned
        body is not cancelled over and over.
        """
        run, body = self.run, self.body
        if run.outcome is not None or body is None:
            return  # it was abandoned before the loop came to start it
        if self.cause is not None:
            self._owner.body_ended(self, None, None)  # cancelled before its first step: there is nothing to clean up
            return
        self.began = True
        _current.set(run)
        current_fence.set(self.fence)
        self.fence.task = current_task()
        value: Any = None
        error: BaseException | None = None
        try:
            with self._owner.new_scope() as self._body_scope:
                value = await body(RunContext(self, self._owner.services), *self.args)
        except BaseException as raised:
            error = raised
        try:
            self._owner.body_ended(self, value, error)
            if isinstance(error, KeyboardInterrupt):
                raise error  # not the run's own: someone ends the whole process
            # A cancellation that is nobody's here (a native `task.cancel()`) ends the run, and must not end the lane.
        finally:
            del value, error, body  # a frame that is its own traceback's end would need the garbage collector
            self.body, self.args, self.context = None, (), None
            self.fence.task = None
