"""One run from the inside: what it takes to start it, to end it in time, and to let go of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Unpack

import anyio

from locks import Fence, LeaseLost, LockRegistry, Right, _clock, _effects
from locks._loop import Signal, running_loop
from locks.lowlevel import FileClaim

from ..asking import NewQuestion, Question
from ..body.grant import PoolGrant
from ..body.inbox import Inbox
from ..body.session import Session
from ..errors import InvalidLane, wrong_loop
from ..message import answer_in, ids_of
from ..run import Body, Options, Run, RunState
from .owner import Owner
from .phase import MOVES, OVER, QUEUED, UNDERWAY, Phase
from .task_host import BodyScope

if TYPE_CHECKING:
    from ..checks import Priority
    from ..message import Message
    from ..queues.lane import Lane
    from ..queues.pool import Claim
    from ..queues.timers import Timer
    from ..spec import LaneSpec, WhenBusy


@dataclass(slots=True)
class Wait:
    """A body waits for a run, for its end and then for a slot again; or for a grant of a pool."""

    run: Run | None
    """`None` once that run has ended."""
    limited: bool
    """Whether a time limit of the body's own ends the wait."""
    claim: Claim[Execution] | None = None
    """The grant of a pool that it waits for instead."""


NOT_HELD = -math.inf


class Execution:
    """The scheduler's side of a run: one attempt at it. A run that is tried again gets a new one.

    Invariants: only `move` changes `phase`; `cause` is set once, by the first thing that asks the run to end, and
    decides its state; `claim` is held exactly while the run may conduct its session; `timer` is when the scheduler
    looks at it next, and `hold_timer`, while it is held back, the instant before which it must not start.
    """

    # Defaults live on the class: one is made per run, and most of these never change.
    phase = Phase.NEW
    """Where it stands; see `phase.py`."""
    joined = 0
    """Messages that came to it while it was queued."""
    held_until = NOT_HELD
    """When it may start: its sender may say more, or its last attempt has just failed."""
    hold_at_most = math.inf
    hard_deadline = math.inf
    ends_with_parent = False
    """Whether its hard deadline is the one that its parent had when it began: either may be extended afterwards."""
    extended_s = 0.0
    """By how much it has moved its hard deadline."""
    extended_for = ""
    """Why, as it said last."""
    late_s = 0.0
    grace_extended = False
    """Whether it got more time to end because the loop was late."""
    ran_before_s = 0.0
    """Seconds that earlier attempts ran."""
    cause: tuple[RunState, str] | None = None
    successor: Execution | None = None
    """The run that superseded it."""
    claim: FileClaim | None = None
    timer: Timer | None = None
    hold_timer: Timer | None = None
    turn_scope: anyio.CancelScope | None = None
    """The wait for a turn that another process has."""
    _scope: BodyScope | None = None
    """Its body's, while that runs."""
    parent: Execution | None = None
    """The run that it ends with; `None` for a run that no other one bounds."""
    children: dict[Execution, None] | None = None
    steered_into: Execution | None = None
    """The run into whose inbox its message went."""
    wait: Wait | None = None
    """There while the task of its body waits for another run, or for a grant of a pool."""
    claims: dict[Claim[Execution], None] | None = None
    """What it has, or asks for, of pools."""
    answering: list[Execution] | None = None
    """The runs whose messages its body has read from its inbox: they share its outcome."""
    is_answered = False
    """Whether its messages are, though its body may go on."""
    _inbox: Inbox | None = None
    killers: set[Callable[[], None]] | None = None
    """What ends the processes that it runs."""
    barred: dict[str, str] | None = None
    """Of which files its run may write no more, and why."""

    def __init__(
        self,
        owner: Owner[Execution],
        run: Run,
        lane: Lane[Execution],
        *,
        body: Callable[..., Any],
        args: tuple[Any, ...],
        messages: list[Message] | None,
        context: Context,
        fence: Fence,
        session_file: str | None,
        file: str | None,
        timeout: float,
        urgency: Priority,
        policy: WhenBusy = "queue",
        goes_first: bool = False,
    ) -> None:
        self.owner = owner
        self.run = run
        self.lane = lane
        self.spec: LaneSpec = lane.spec
        self.body: Callable[..., Any] | None = body
        self.args = args
        self.messages = messages
        if messages is not None:
            self.joined = len(messages) - 1  # more than one only comes from what was parked
        """What its handler answers; `None` for work that is no message."""
        self.context: Context | None = context
        self.fence = fence
        self.session_file = session_file
        """The transcript of the session that it names, conducted or not."""
        self.file = file
        """The transcript whose turn it needs, if it conducts one."""
        self.timeout = timeout
        self.given_urgency = urgency
        """Its class, as submitted."""
        self.urgency = urgency
        """Its class for admission: while it is queued, at least that of the most urgent behind it in its session."""
        self.policy: WhenBusy = policy
        """What it was taken under. A newer run of a policy in `ONLY_NEWEST` supersedes it while it waits under the
        same."""
        self.goes_first = goes_first
        """Whether no run may go before it, or ask it to give way: it resets its session."""
        self.rank = run.id
        """Its place in the queue of its lane: the lowest goes first."""

    def __lt__(self, other: Execution) -> bool:
        return self.run.id < other.run.id

    def __repr__(self) -> str:
        return f"<Execution of {self.run!r}>"

    @property
    def route(self) -> Any:
        """Where its answer goes."""
        return self.messages[0].route if self.messages else None

    @property
    def answer_id(self) -> int:
        """The id of the message that brings it a person's answer; 0 without one."""
        return answer_in(self.messages)

    def move(self, to: Phase) -> None:
        """Enter the next phase. What belongs to the phase (queues, slots, timers) changes within the same change."""
        assert to in MOVES[self.phase], f"{self!r} cannot move from {self.phase.name} to {to.name}"
        self.phase = to

    def is_queued(self) -> bool:
        """Whether it has not started."""
        return self.phase in QUEUED

    def is_underway(self) -> bool:
        """Whether it runs, and may be talked to or asked to give way."""
        return self.phase in UNDERWAY and not self.goes_first

    @property
    def over(self) -> bool:
        """Whether this attempt may do nothing more: its run has an outcome, or a next attempt."""
        return self.phase in OVER

    @property
    def began(self) -> bool:
        """Whether its body has taken its first step, and its task has not ended."""
        return self.fence.task is not None

    @property
    def in_line(self) -> bool:
        """Whether it needs the turn of its session by itself: not while another run has its message."""
        return self.file is not None and self.steered_into is None

    @property
    def inbox(self) -> Inbox:
        """The messages that were handed to it while it runs."""
        if self._inbox is None:
            self._inbox = Inbox()
            if self.cause is not None or self.phase in OVER:
                self._inbox.shut()  # made after the end, which closes the inboxes that there are
        return self._inbox

    @property
    def has_inbox(self) -> bool:
        """Whether its inbox was made: its body asked for it, or a message was put into it."""
        return self._inbox is not None

    def unread(self) -> list[Execution]:
        """Close the inbox; returns what was not read."""
        left = self._inbox.close() if self._inbox is not None else ()
        return [one for one in left if isinstance(one, Execution)]  # as all are: `put` is called with nothing else

    def was_read(self) -> None:
        """Note that the body that was handed its message has read it."""
        assert self.steered_into is not None
        self.owner.message_read(self.steered_into, self)

    async def kept(self) -> None:
        """Wait until it is kept on disk that its message was read, where the message is. Not to be interrupted."""
        journal = self.owner.board.journal
        if journal is not None and self.messages and ids_of(self.messages):
            with self.owner.board.new_scope(shield=True):
                await journal.settled()

    def message_ids(self) -> list[int]:
        """The ids of the messages that it answers and that an inbox keeps, those that its body has read included."""
        return ids_of(chain(self.messages or (), *(one.messages or () for one in self.answering or ())))

    def is_kept(self) -> bool:
        """Whether an inbox keeps all that it is to answer."""
        return bool(self.messages) and len(self.message_ids()) == len(self.messages or ())

    async def finish(self, session: Session, record: Mapping[str, Any], result: Any) -> None:
        """Append the answer to its messages, and keep that they are answered. A checkpoint."""
        if (journal := self.owner.board.journal) is not None and (ids := self.message_ids()):
            await journal.finish(session, record, ids, result)
            self.is_answered = True
        else:
            await session.append(record)

    def check_may_begin(self, what: str) -> None:
        """Raise unless this attempt may still begin something.

        Raises:
            RunEnded, Superseded: it is over, or its grace has passed.
        """
        fence = self.fence
        if fence.closed or self.phase in OVER:
            try:
                fence.check("")
            except LeaseLost as error:
                raise type(error)(f"{fence.holder} has ended: nothing {what}", path="", holder=fence.holder) from None

    def pool(self, name: str, tokens: int | None) -> PoolGrant:
        """A grant of a pool, to be entered."""
        return self.owner.pool(self, name, tokens)

    async def ask(self, new: NewQuestion) -> Question:
        """Keep a question to a person."""
        if (journal := self.owner.board.journal) is None:
            raise InvalidLane("ask: the supervisor has no inbox; allowed: Supervisor(..., inbox=True)")
        return await journal.ask(self.run, self.route, new)

    @property
    def ending(self) -> bool:
        """Whether it was asked to end."""
        return self.cause is not None

    def is_over(self) -> bool:
        """As `over`. A call, so that no reader takes the answer to outlive an `await`."""
        return self.phase in OVER

    def ask_to_end(self, state: RunState, reason: str) -> bool:
        """Ask it to end; returns `False` when something else has asked before, or it is over."""
        return self.owner.end(self, state, reason)

    def ask_children_to_end(self, why: str) -> None:
        """Ask what it has submitted, and bounds, to end."""
        if self.children:
            for child in reversed(list(self.children)):
                child.ask_to_end(RunState.CANCELLED, f"ended with its parent, run {self.run.id} ({why})")

    def new_event(self) -> Signal:
        """An event of the event loop that serves."""
        return self.owner.board.new_event()

    async def wait_for(self, run: Run, ended: Signal) -> None:
        """Wait for another run, in one of this run's tasks. A checkpoint.

        Raises:
            DeadlockError: as `Run.wait`.
        """
        await self.owner.wait_for(self, run, ended)

    def begin_wait(self, run: Run | None, *, limited: bool, claim: Claim[Execution] | None = None) -> None:
        """The task of its body waits for a run, or for a grant of a pool."""
        self.wait = Wait(run, limited, claim)

    def end_wait(self) -> None:
        """The task of its body goes on."""
        self.wait = None

    def begin(self) -> None:
        """Start, and set the deadlines: they count from here."""
        self.move(Phase.STARTED)
        run, now = self.run, _clock.clock.now()
        run.state, run.started_at, run.reason = RunState.RUNNING, now, ""
        self.hard_deadline = now + self.timeout
        self.ends_with_parent = self.parent is not None and self.parent.hard_deadline <= self.hard_deadline
        if self.parent is not None and self.ends_with_parent:
            self.hard_deadline = self.parent.hard_deadline
        idle = self.spec.idle_timeout
        run.deadline = self.hard_deadline if idle is None else min(self.hard_deadline, now + idle)
        self.fence.began_at, self.fence.deadline = now, self.hard_deadline
        self.fence.end_at = self.hard_deadline + self.spec.grace

    def wait_outside(self, scope: anyio.CancelScope) -> None:
        """Undo `begin`: another process has the turn of its session, and `scope` is the wait for that."""
        self.move(Phase.WAITS_OUTSIDE)
        self._unstart()
        self.fence.deadline = self.fence.end_at = math.inf
        self.claim, self.turn_scope = None, scope

    def wait_in_line(self, claim: FileClaim | None = None) -> None:
        """Wait for what is before it in its session, and no longer for an instant, an inbox or another process.

        Args:
            claim: the turn of its session, when that wait has brought it.
        """
        if self.phase is not Phase.IN_LINE:
            self.move(Phase.IN_LINE)
        if claim is not None:
            self.claim, self.turn_scope = claim, None
        self.stop_waiting_outside()
        if self.steered_into is not None:
            self.steered_into, self.run.answered_by = None, None

    def stop_waiting_outside(self) -> None:
        """End its wait for another process's turn, if it waits for that."""
        if self.turn_scope is not None:
            self.turn_scope.cancel()
            self.turn_scope = None

    def hold(self, until: float, at_most: float = math.inf) -> None:
        """Have it start at `until` at the earliest; messages that join it move that up to `at_most`."""
        self.held_until, self.hold_at_most = until, at_most

    def join(self, messages: list[Message], quiet_s: float | None) -> None:
        """Answer more messages, which came while it waits.

        Args:
            quiet_s: for how long it waits for another one.
        """
        assert self.messages is not None
        self.messages += messages
        self.joined += len(messages)
        self.lane.joined += len(messages)
        if quiet_s:
            self.held_until = min(_clock.clock.now() + quiet_s, self.hold_at_most)

    def hand_to(self, reader: Execution) -> None:
        """Put its message into the inbox of another run: at first, or again for that one's next attempt."""
        if self.phase is not Phase.IN_INBOX:
            self.move(Phase.IN_INBOX)
            self._unstart()
        self.steered_into, self.run.answered_by = reader, reader.run.id
        reader.inbox.put(self)

    def read_by(self, reader: Execution) -> None:
        """Share what the run under way ends with that has read its message."""
        self.move(Phase.READ_BY_ANOTHER)
        run = self.run
        run.state, run.started_at, run.deadline = RunState.RUNNING, _clock.clock.now(), reader.run.deadline
        if reader.answering is None:
            reader.answering = []
        reader.answering.append(self)

    def take_answered(self) -> list[Execution]:
        """The runs whose messages its body has read; each is handed out once."""
        answered, self.answering = self.answering or [], None
        return answered

    def _unstart(self) -> None:
        run = self.run
        run.state, run.started_at, run.deadline = RunState.QUEUED, None, None

    def lend_slot(self) -> None:
        """Note that its body waits for another run. A body that cleans up, or was abandoned, may wait as well."""
        if self.phase in UNDERWAY:
            self.move(Phase.RUNNING_WAITS)

    def want_slot(self) -> None:
        """Note that its body goes on, and takes the next free slot."""
        if self.phase is Phase.RUNNING_WAITS:
            self.move(Phase.RUNNING_NO_SLOT)

    def has_slot_again(self) -> None:
        """Note that it has the slot that it has waited for."""
        if self.phase is Phase.RUNNING_NO_SLOT:
            self.move(Phase.RUNNING)

    def note_cause(self, state: RunState, reason: str, late_s: float = 0.0) -> None:
        """Take the first cause that asks it to end, and note how late that came."""
        assert self.cause is None, "the first cause decides"
        self.cause, self.late_s = (state, reason), late_s
        if self.phase in UNDERWAY:
            self.move(Phase.ENDING)
            self.run.reason = reason

    def share_cause(self, reader: Execution) -> None:
        """End as the run that has read its message does."""
        self.cause, self.late_s = reader.cause, reader.late_s

    def extend_grace(self, timer: Timer) -> None:
        """Wait for its body until another instant, once."""
        self.grace_extended, self.timer = True, timer

    def bind_to(self, parent: Execution) -> None:
        """Make it a child, which ends with its parent."""
        self.parent, self.run.lineage = parent, (*parent.run.lineage, parent.run.id)
        if parent.children is None:
            parent.children = {}
        parent.children[self] = None

    def turn_claim(self, registry: LockRegistry) -> FileClaim:
        """A claim on the turn of its session, with its place in the order of arrival."""
        claim = registry.arbiter.new_claim(max_hold=math.inf, fence=self.fence, arrived_at=self.run.enqueued_at)
        claim.on_lost = partial(self.owner.turn_lost, self)
        return claim

    def take_turn(self, registry: LockRegistry) -> bool:
        """Take the turn of its session unless another process has it; a run without a session has nothing to take."""
        if self.file is None:
            return True
        if self.claim is not None and (self.claim.queue is None or self.claim.queue.holder is not self.claim):
            self.release_turn(registry)  # an exception came while it was handed over
        claim = self.claim
        if claim is None:
            claim = self.turn_claim(registry)
            if not registry.arbiter.acquire_nowait(self.file, Right.TURN, claim):
                return False
            self.claim = claim
        else:  # it came while the run waited: the steward watches it by what the fence said then
            registry.arbiter.look_by(self.fence.end_at)
        claim.time.deadline = self.fence.deadline
        return claim.lost is None

    def hand_turn_to(self, follower: Execution, registry: LockRegistry) -> None:
        """Give the turn back; another run has it at once, if no other process has waited for longer."""
        claim = self.claim
        assert claim is not None
        claim.on_lost = None
        follower.claim = successor = follower.turn_claim(registry)  # first: an exception may come at any line
        held = False
        try:
            held = registry.arbiter.hand_over(claim, successor)
        finally:
            if not held:
                follower.release_turn(registry)
        self.claim = None

    def release_turn(self, registry: LockRegistry) -> None:
        """Give the turn back, if it has it."""
        claim = self.claim
        if claim is not None:
            claim.on_lost = None
            registry.arbiter.release(claim)
            self.claim = None  # afterwards: an exception in between leaves it for the next call

    def progress(self) -> None:
        """Start the idle budget again, within the hard deadline."""
        idle = self.spec.idle_timeout
        if idle is None or self.phase not in UNDERWAY or self.run.deadline is None:
            return
        self.run.deadline = min(self.hard_deadline, _clock.clock.now() + idle)

    def extend(self, more_s: float, reason: str) -> None:
        """Move the hard deadline, and what rests on it; the idle budget starts again."""
        run, idle = self.run, self.spec.idle_timeout
        self.extended_s, self.extended_for = self.extended_s + more_s, reason
        self.hard_deadline += more_s
        run.deadline = self.hard_deadline
        if idle is not None:
            run.deadline = min(run.deadline, _clock.clock.now() + idle)
        for answered in self.answering or ():
            answered.run.deadline = run.deadline
        self.fence.end_at += more_s  # first: the grace counts from the deadline, and never becomes shorter
        self.fence.deadline = self.hard_deadline
        if self.claim is not None:
            self.claim.time.follow_run()

    def may_extend(self, seconds: float, reason: str) -> None:
        """Move its hard deadline, if its lane allows that."""
        self.owner.extend(self, seconds, reason)

    def grace_left(self) -> float:
        """Seconds that a clean-up may take from now."""
        now = _clock.clock.now()
        return max(0.0, min(self.fence.end_at - now, self.spec.grace))

    @property
    def task_name(self) -> str:
        """The name of its task."""
        return f"run {self.run.id} on lane {self.run.lane}"

    def cancel_body(self) -> None:
        """Cancel the body; it may clean up and write until its fence closes.

        It reads nothing more from now on. The cancellation comes when the present change is complete: it calls `cancel`
        of what the body awaits, which may be a user's own future.
        """
        if self._inbox is not None:
            self._inbox.shut()
        _effects.after(self._cancel_scope)

    def _cancel_scope(self) -> None:
        if self._scope is not None:
            self._scope.cancel()  # before the first step there is none: `conduct` sees the cause

    def shield_body(self) -> None:
        """Stop cancelling an abandoned body: one that swallows that, over and over, would burn the loop."""
        if self._scope is not None:
            self._scope.shield()

    def kill_processes(self) -> None:
        """End what it still runs, now."""
        for kill in list(self.killers or ()):
            kill()

    def bar(self, file: str, why: str) -> None:
        """Refuse what this attempt, and each further one, still writes to a file."""
        self.barred = {**(self.barred or {}), file: why}
        self.fence.bar(file, why)

    def unshield_body(self) -> None:
        """Let the cancellation of the whole loop reach an abandoned body."""
        if self._scope is not None:
            self._scope.cancel()

    def session(self, key: str) -> Session:
        """A session, bound to this run's permission to write."""
        layout = self.owner.board.layout
        path = self.session_file if key == self.run.session else None
        if path is None:
            path = layout.file_of(key)
        return Session(key, path, layout.first_line_of(key, path), self.owner.board.sessions, self.fence)

    def emit(self, event: Any) -> None:
        """Hand an event to the readers of the run; after the end it is dropped and counted.

        Raises:
            WrongThread: on another thread than the event loop's.
        """
        if running_loop() is not self.owner.board.loop:
            raise wrong_loop("emit belongs to the event loop's thread; use anyio.from_thread.run_sync(ctx.emit, event)")
        if self.over:
            self.owner.board.late_events_dropped += 1
        else:
            self.run._emit(event)

    def submit(self, lane: str, fn: Body, args: tuple[Any, ...], *, detached: bool, **options: Unpack[Options]) -> Run:
        """Queue a child of its run, or a run that goes on by itself. Raises as `Intake.submit`."""
        return self.owner.submit(lane, fn, args, bound_to=None if detached else self, **options)

    def body_begins(self, task: object, scope: BodyScope) -> None:
        """The body takes its first step, in that task and in that scope."""
        self.move(Phase.RUNNING)
        self._scope, self.fence.task = scope, task

    def body_over(self) -> None:
        """The body has ended, and so has its task but for the step that reports it."""
        self.forget()
        self.fence.task = self._scope = None

    def forget(self) -> None:
        """Let go of what the body was called with; its finalizers run when the present change is complete."""
        if self.fence.task is None:  # else the frame of `conduct` names it all until the change is complete
            _effects.release(self.body, self.args, self.context, self.messages)
        self.body, self.args, self.context, self.messages = None, (), None, None

    def next_attempt(self, fence: Fence) -> Execution:
        """The execution that tries the same run again. Each has a permission to write, and an inbox, of its own."""
        assert self.body is not None and self.context is not None
        again = Execution(
            self.owner,
            self.run,
            self.lane,
            body=self.body,
            args=self.args,
            messages=self.messages,
            context=self.context,
            fence=fence,
            session_file=self.session_file,
            file=self.file,
            timeout=self.timeout,
            urgency=self.given_urgency,
            goes_first=self.goes_first,
        )
        again.joined = self.joined
        for file, why in (self.barred or {}).items():
            again.bar(file, why)
        started = self.run.started_at
        again.ran_before_s = self.ran_before_s + (0.0 if started is None else _clock.clock.now() - started)
        again.parent, self.run._execution = self.parent, again
        if self.parent is not None and self.parent.children is not None:
            self.parent.children.pop(self, None)
            self.parent.children[again] = None
        self.forget()
        return again


def execution_of(run: Run) -> Execution | None:
    """The present attempt at a run; `None` when the run has ended."""
    conductor = run._execution
    return conductor if isinstance(conductor, Execution) else None
