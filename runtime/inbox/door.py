"""The way in: a message is checked, kept, and then queued, in the order in which it was accepted.

It is queued by the store's report, on the event loop and not in the sender's task, so the order of ids is the order of
the queue, and a sender that is cancelled meanwhile leaves nothing half done: its message is kept and answered, or it is
not there at all. A message that is expected to start at once is kept as started, so that no second commit stands before
its body; if it could not start after all, that is taken back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import msgspec
from msgspec.structs import replace

from lanes import Answer as PersonsAnswer
from lanes import DedupeConflict, InvalidLane, LaneBusy, LaneFull, Message, Outcome, Run, RunCancelled, RunState
from lanes.checks import is_utf8, shown
from lanes.core.execution import execution_of
from lanes.core.intake import check_dedupe
from lanes.core.needs import would_start
from lanes.core.phase import UNDERWAY
from lanes.core.request import Request
from lanes.core.scheduler import Scheduler
from lanes.message import StoredMessage, digest_of, ids_of
from lanes.spec import LaneSpec, WhenBusy
from locks import TranscriptError
from locks._loop import know_loop
from locks.lowlevel import encode_all

from .accepted import Accepted, Fate, outcome_of_row
from .answer import Answer
from .errors import InboxDown
from .rows import InboxRow, MessageState, NewRow, Taken, decoded
from .store import InboxStore, Report

DEFAULT_REPEATS = 3
Keep = Callable[[NewRow, int, Report], None]
MOST_WHOLE = (1 << 63) - 1
"""The largest whole number that the inbox can keep."""
ALL_REPLAYED = (1 << 62) - 1
"""As `Door.replayed`: nothing is on disk only."""


@dataclass(slots=True)
class _Coming:
    """A message on its way to the disk."""

    request: Request
    policy: WhenBusy
    new: NewRow
    context: Context
    waits: bool
    """Whether it waits for room, on disk, where its lane has filled up meanwhile; else it is refused."""
    answer: Answer[tuple[Taken, Fate]] = field(default_factory=Answer)


class Door:
    """Takes messages in. On the event loop's thread."""

    def __init__(self, scheduler: Scheduler, store: InboxStore) -> None:
        self._scheduler, self.store = scheduler, store
        self.fates: WeakValueDictionary[int, Fate] = WeakValueDictionary()
        """Of messages that something waits for, by id."""
        self.in_memory: dict[int, Run] = {}
        """By id, the messages that runs of this process answer, or have not answered yet."""
        self.forsaken: set[int] = set()
        """Runs with whose messages another node goes on: what they still do to them is kept nowhere."""
        self.begun: set[int] = set()
        """Those that are kept as started already, though their body has not begun."""
        self.on_full: Callable[[str, int], None] = lambda _lane, _message: None
        """Called with a message that is kept and for which its lane has no room: it is to be queued later."""
        self.behind: Callable[[], bool] = lambda: False
        """Whether messages are on disk only."""
        self.replayed: Callable[[str], int] = lambda _lane: ALL_REPLAYED
        """The id up to which what was on disk at the start is in memory, of a lane."""
        self.untold: Callable[[str, str | None, int], bool] = lambda _lane, _session, _message: False
        """Whether a lane, or a session, is still to be told of unknown messages, before it is given this one."""

    async def accept(
        self,
        lane: str,
        message: Any,
        *,
        session: str | None,
        dedupe: str | None,
        priority: str | None,
        timeout: float | None,
        when_busy: WhenBusy | None,
    ) -> Accepted:
        """Keep a message and queue it; see `Supervisor.accept`."""
        if (failure := self.store.failure) is not None:
            raise failure if isinstance(failure, InboxDown) else self._down()
        intake = self._scheduler.intake
        request, policy = intake.message_request(
            lane, message, session=session, timeout=timeout, priority=priority, when_busy=when_busy
        )
        new = new_row(request, priority=priority, timeout=timeout, when_busy=when_busy)
        if dedupe is not None:
            name = storable("dedupe", check_dedupe(dedupe))
            new = replace(new, dedupe=name, digest=digest_of(_given(request).body))
        new = replace(new, started=self._starts_at_once(request, policy))
        try:
            self.refuse(request, policy)
        except (LaneFull, LaneBusy):
            known = None if dedupe is None else await self.store.said(new.lane, new.session, dedupe, new.digest)
            if known is None:
                raise
            message, same_body = known
            if not same_body:
                raise _conflict(new, message) from None
            return await self.find(message)
        return await self.keep(request, policy, new)

    def request_for(self, lane: str, session: str | None, message: Any = None) -> tuple[Request, WhenBusy]:
        """A request for a message of our own: an answer, or what a schedule sends.

        Raises:
            What `Intake.message_request` raises.
        """
        return self._scheduler.intake.message_request(lane, message, session=session, when_busy="queue")

    def refuse(self, request: Request, policy: WhenBusy) -> None:
        """Raise what queueing it now would raise; nothing changes.

        Raises:
            LaneBusy, LaneFull.
        """
        self._scheduler.intake.refuse(request, policy)

    async def keep(
        self, request: Request, policy: WhenBusy, new: NewRow, store: Keep | None = None, *, waits: bool = False
    ) -> Accepted:
        """Keep a message that was checked, and queue it. A checkpoint; cancelled, both happen, or neither.

        Args:
            store: what keeps it, instead of `InboxStore.accept`.
            waits: whether it waits on disk where its lane has filled up meanwhile, as answers do; else it is refused.

        Raises:
            DedupeConflict, LaneBusy, LaneFull: it is not queued, and never will be.
            InboxDown: it is not kept.
        """
        coming = _Coming(request, policy, new, copy_context(), waits or new.first)
        (store or self.store.accept)(new, self.replayed(new.lane), partial(self._kept, coming))
        taken, fate = await coming.answer.wait()
        return Accepted(taken.id, fate, new=True) if taken.new else await self.find(taken.id)

    async def find(self, message: int) -> Accepted:
        """A message that is kept, whatever process accepted it. A checkpoint.

        Raises:
            InvalidLane: none of that id is kept.
        """
        if type(message) is not int or not 0 < message <= MOST_WHOLE:
            raise _not_kept(message)
        fate = self.fate(message, MessageState.ACCEPTED)  # before it is looked for: it may end meanwhile
        if not fate.ended.is_set():
            row = await self.store.find(message)
            if row is None:
                raise _not_kept(message)
            asked = None if row.asked is None else await self.store.find_ask(row.asked)
            if not fate.ended.is_set():
                fate.state = row.state
                if not row.state.open:
                    self.end([message], row.state, outcome_of_row(row, asked))
        return Accepted(message, fate, new=False)

    def end(self, messages: Sequence[int], state: MessageState, outcome: Outcome) -> None:
        """Messages have ended, or a later run goes on with them: all that wait for them are told.

        A call that comes later looks into the store: what waits for a person or for the next generation ends again.
        """
        for fate in filter(None, [self.fates.pop(one, None) for one in messages]):
            fate.end(state, outcome)

    async def look_again(self, messages: Sequence[int]) -> None:
        """Messages may have ended without a run. A checkpoint."""
        for one in messages:
            if (fate := self.fates.get(one)) is not None:
                try:
                    await self.find(one)
                except InvalidLane as error:  # it was forgotten meanwhile: nobody can say any more how it ended
                    fate.fail(error)

    def forsake(self) -> None:
        """Others go on with all that is in memory: this node is lost. What its runs still do is noted nowhere.

        Runs, not messages: this process may be given one of these again while the old run still cleans up.
        """
        live = self._scheduler.board.live.values()
        self.forsaken.update(one.run.id for one in live if ids_of(one.messages or ()))
        for message in self.in_memory:
            if (fate := self.fates.get(message)) is not None:
                fate.run = None
        self.in_memory.clear()
        self.begun.clear()

    def hand_on(self, messages: Sequence[int]) -> None:
        """Others go on with messages that wait in memory: this process drains. Nothing is noted of their runs."""
        gone = set(messages)
        for one in self._scheduler.board.live.values():
            if one.is_queued() and not gone.isdisjoint(ids_of(one.messages or ())):
                self.forsaken.add(one.run.id)
        for message in messages:
            kept = self.in_memory.pop(message, None) is not None
            if kept and (fate := self.fates.get(message)) is not None:
                fate.run = None

    def close(self) -> None:
        """Tell what still waits for messages that others go on with: this process will not know."""
        reason = "the supervisor has stopped; the message is kept"
        outcome = Outcome(state=RunState.CANCELLED, error=RunCancelled(reason), reason=reason)
        self.end(list(self.fates), MessageState.ACCEPTED, outcome)

    def fate(self, message: int, state: MessageState) -> Fate:
        """What becomes of a message; all that wait for it share it."""
        fate = self.fates.get(message)
        if fate is None:
            fate = self.fates[message] = Fate(state)
            fate.run = self.in_memory.get(message)
        return fate

    def _kept(self, coming: _Coming, taken: Taken | None, error: BaseException | None) -> None:
        """The store reports: queue the message."""
        if taken is None:
            coming.answer(None, error)
            return
        if not taken.new:
            conflict = None if taken.same_body else _conflict(coming.new, taken.id)
            coming.answer((taken, None), conflict)
            return
        fate = self.fate(taken.id, MessageState.ACCEPTED)
        new = coming.new
        behind = taken.behind and taken.id > self.replayed(new.lane)
        if taken.elsewhere:
            coming.answer((taken, fate), None)
        elif not new.first and (self.untold(new.lane, new.session, taken.id) or behind):
            self._not_started(taken)
            coming.answer((taken, fate), None)
        elif not self._scheduler.board.accepting:
            self._not_started(taken)
            self.on_full(new.lane, taken.id)  # a restart in the process has begun: it comes when that is over
            coming.answer((taken, fate), None)
        else:
            self._queue(coming, fate, taken)

    def _queue(self, coming: _Coming, fate: Fate, taken: Taken) -> None:
        try:
            run = self.admit(coming.request, coming.policy, coming.new, taken.id, coming.context)
        except Exception as error:  # it has filled up meanwhile
            self._not_started(taken)
            if coming.waits and isinstance(error, LaneFull):
                # It is for this process to make room: no person answers again, and no instant comes again.
                self.on_full(coming.new.lane, taken.id)
                coming.answer((taken, fate), None)
                return
            refusal = error
            self.store.refuse(taken.id, str(error), lambda _, down: coming.answer(None, down or refusal))
            return
        execution = execution_of(run)
        if execution is None or execution.phase not in UNDERWAY or execution.joined:
            self._not_started(taken)
        elif taken.state is MessageState.STARTED:
            self.begun.add(taken.id)
        coming.answer((taken, fate), None)

    def admit(
        self,
        request: Request,
        policy: WhenBusy,
        kept: NewRow | InboxRow,
        message: int,
        context: Context,
        *,
        first: bool = False,
    ) -> Run:
        """Queue a message that is kept.

        Raises:
            LaneBusy, LaneFull: it is not queued.
        """
        request.messages = [message_of_row(kept, message)]
        request.goes_next = kept.first or first
        know_loop(context)
        run = context.run(self._scheduler.intake.admit, request, policy)
        if run.outcome is None:  # else it has ended at once, and that is noted
            self.in_memory[message] = run
        if (fate := self.fates.get(message)) is not None:
            fate.run = run
        return run

    def _not_started(self, taken: Taken) -> None:
        if taken.state is MessageState.STARTED:
            self.store.take_back([taken.id])

    def _starts_at_once(self, request: Request, policy: WhenBusy) -> bool:
        if request.debounce or policy == "steer" or not self._scheduler.board.starting:
            return False
        if self.replayed(request.lane.name) != ALL_REPLAYED:
            return False  # were it taken back, the page that it belongs to might have been read
        return would_start(self._scheduler.board, request.lane, request.file, request.urgency, held=False)

    def _down(self) -> InboxDown:
        return InboxDown(
            f"inbox {self.store.path} takes nothing ({self.store.failure}); allowed: a restart of the supervisor, when "
            "the cause is gone",
            path=self.store.path,
        )


def message_of_row(kept: NewRow | InboxRow, message: int) -> StoredMessage:
    """A message as its handler gets it."""
    route = decoded(kept.route)
    if kept.ask is None:
        return StoredMessage(decoded(kept.body), route, message)
    answer = PersonsAnswer(**decoded(kept.body))
    return StoredMessage(answer.value, route, message, answer)


def new_row(
    request: Request,
    *,
    priority: str | None = None,
    timeout: float | None = None,
    when_busy: WhenBusy | None = None,
) -> NewRow:
    """A message that was checked, as it is kept; by default under the settings of its lane.

    Raises:
        InvalidLane: it is not what JSON has.
    """
    given = _given(request)
    return NewRow(
        lane=storable("lane", request.lane.name),
        session=request.session,
        priority=priority,
        timeout=timeout,
        when_busy=when_busy,
        body=as_json("message", given.body),
        route=as_json("route", given.route),
        repeat=repeats(request.spec),
    )


def _given(request: Request) -> Message:
    assert request.messages is not None
    return request.messages[0]


def repeats(spec: LaneSpec) -> int:
    """How often a body may be given a message of a lane, over the ends of processes."""
    if not spec.repeat:
        return 0
    return spec.retry.attempts if spec.retry is not None else DEFAULT_REPEATS


def as_json(what: str, value: Any) -> bytes:
    """A body or a route as it is kept.

    Raises:
        InvalidLane: it would not come back equal; the message says where.
    """
    if value is None:
        return b"null"
    try:
        encode_all([{what: value}], what)
    except TranscriptError as error:
        raise InvalidLane(f"{what}: cannot be kept: {error}; allowed: what JSON has") from error
    return msgspec.json.encode(value)


def storable(what: str, value: Any) -> str:
    """Text that the inbox can keep.

    Raises:
        InvalidLane: it is none: half of a surrogate pair, as a file name may have, has no UTF-8.
    """
    if not isinstance(value, str) or not is_utf8(value):
        raise InvalidLane(f"{what}: {shown(value)} cannot be kept; allowed: text without half of a surrogate pair")
    return value


def _not_kept(message: object) -> InvalidLane:
    return InvalidLane(f"message: {shown(message)} is not kept; allowed: the id of a message in the inbox")


def _conflict(new: NewRow, known: int) -> DedupeConflict:
    return DedupeConflict(
        f"dedupe: {shown(new.dedupe)} is the key of message {known} on lane {new.lane!r}, which has another body; "
        "allowed: the same body, or another key",
        lane=new.lane,
        session=new.session,
        key=new.dedupe,
        run=known,
    )
