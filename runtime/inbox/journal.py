"""What runs do with messages that are kept, written down. Implements `lanes.core.journal.Journal`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from lanes import Message, Outcome, Question, Run, RunCancelled, RunState
from lanes.asking import NewQuestion
from lanes.body.session import Session
from lanes.core.body_task import interrupt_in
from lanes.message import ids_of
from locks import Fence, _effects

from .answer import Answer
from .asks import Asks
from .door import Door
from .errors import InboxDown
from .rows import MessageState

_ENDS = {
    RunState.DONE: MessageState.DONE,
    RunState.SUPERSEDED: MessageState.SUPERSEDED,
    RunState.CANCELLED: MessageState.CANCELLED,
}
_MOST_RESULT_BYTES = 1 << 20
Conduct = Callable[[str | None, Fence, Sequence[int]], Awaitable[None]]
AnswerTogether = Callable[[Session, Mapping[str, Any], Sequence[int], bytes | None], Awaitable[None]]


class InboxJournal:
    """Keeps what becomes of messages. On the event loop's thread."""

    def __init__(self, door: Door, asks: Asks) -> None:
        self._door, self._store, self._asks = door, door.store, asks
        self.cut: dict[int, None] = {}
        """Messages whose runs ended because the supervisor restarts or stops, in order: nothing is written of them."""
        self.parked: dict[int, int] = {}
        """Of messages that are parked, the run that was to answer them."""
        self._finished: set[int] = set()
        """Messages that are kept as done while their runs go on."""
        self.conduct: Conduct | None = None
        """Keeps that a body begins, in a store that machines share."""
        self.answer: AnswerTogether | None = None
        """Keeps an answer and that it is given at once, where transcript and messages are in one store."""
        self.cut_by: tuple[type[Exception], ...] = ()
        """Errors by which a shared store cuts runs off: their messages are put right, here or by another node."""
        self.on_cut: Callable[[list[int]], None] = lambda _ids: None
        """Called with the messages of such a run."""
        self.on_end: Callable[[str], None] = lambda _lane: None
        """Called when a run of a lane has ended that had messages."""

    async def begin(self, messages: Sequence[Message], path: str | None, fence: Fence) -> None:
        """Keep that a body is given messages, unless that is kept already."""
        if self.conduct is not None:
            if path is not None or ids_of(messages):
                await self.conduct(path, fence, ids_of(messages))
            return
        fresh = [one for one in ids_of(messages) if one not in self._door.begun]
        self._door.begun.difference_update(ids_of(messages))
        if fresh:
            answer = Answer[int]()
            self._store.begin(fresh, answer)
            await answer.wait()

    def was_read(self, messages: Sequence[Message]) -> None:
        """A body was given messages without waiting."""
        if ids := ids_of(messages):
            self._store.begin(ids, None)

    def tried(self, ids: Sequence[int]) -> None:
        """An attempt at a run has failed, and the run waits for the next one."""
        self._store.wait_again(ids)

    async def finish(self, session: Session, record: Mapping[str, Any], ids: Sequence[int], result: Any) -> None:
        """Append the answer to messages, and keep that they are answered."""
        if self.answer is not None:
            await self.answer(session, record, ids, _as_json(result))
        else:
            await session.append(record)
            answer = Answer[int]()
            self._store.end(ids, MessageState.DONE, "", _as_json(result), answer)
            await answer.wait()
        self._finished.update(ids)

    async def ask(self, run: Run, route: Any, new: NewQuestion) -> Question:
        """Keep a question to a person."""
        return await self._asks.ask(run, route, new)

    async def settled(self) -> None:
        """Wait until all that was noted is kept."""
        answer = Answer[None]()
        self._store.settle(answer)
        await answer.wait()

    def cancelled(self, *, lane: str | None, session: str | None, reason: str) -> None:
        """End what waits on disk only."""
        if self._door.behind():
            self._store.cancel_waiting(lane, session, reason, partial(self._cancelled, reason))

    def reset(self, session: str, reason: str) -> None:
        """End what waits on disk only, and withdraw the questions of a session."""
        self._store.withdraw(session, reason)
        self.cancelled(lane=None, session=session, reason=reason)

    async def cancel_waiting(
        self, lane: str | None, session: str | None, reason: str, *, message: int | None = None, upto: int | None = None
    ) -> list[int]:
        """End what waits, on disk only or not; returns the messages. A checkpoint.

        Raises:
            InboxDown: that could not be kept.
        """
        answer = Answer[list[int]]()

        def cancelled(ids: list[int] | None, down: BaseException | None) -> None:
            self._cancelled(reason, ids, down)
            answer(ids, down)

        self._store.cancel_waiting(lane, session, reason, cancelled, message=message, upto=upto)
        return await answer.wait()

    def _cancelled(self, reason: str, ids: list[int] | None, _down: BaseException | None) -> None:
        door = self._door
        for one in ids or ():
            if (run := door.in_memory.get(one)) is not None:
                run.cancel(reason)  # its page had been read before
            elif one in door.fates:
                error = RunCancelled(f"message {one} was cancelled while it waited: {reason}")
                door.end([one], MessageState.CANCELLED, Outcome(state=RunState.CANCELLED, error=error, reason=reason))

    def ended(self, run: Run, messages: Sequence[Message], outcome: Outcome, *, parked: bool, by_process: bool) -> None:
        """A run that was to answer messages has ended."""
        door, ids = self._door, ids_of(messages)
        if run.id in door.forsaken:  # another node goes on with them
            door.forsaken.discard(run.id)
            self._finished.difference_update(ids)
            self.on_end(run.lane)
            return
        for one in ids:
            door.in_memory.pop(one, None)
            self.parked.pop(one, None)
        door.begun.difference_update(ids)
        if done := self._finished.intersection(ids):  # however the run has ended, and that is kept already
            self._finished -= done
            door.end(list(done), MessageState.DONE, outcome)
            ids = [one for one in ids if one not in done]
        if not ids:
            self.on_end(run.lane)
            return
        if parked and isinstance(outcome.error, (InboxDown, *self.cut_by)):
            # Its message is not: it is put right, and whoever does that has this process forget the parked run.
            self.parked.update(dict.fromkeys(ids, run.id))
        if not by_process and isinstance(outcome.error, self.cut_by):
            self.on_cut(ids)
            self.on_end(run.lane)
            return
        if by_process or isinstance(outcome.error, InboxDown) or _is_interrupt(outcome.error):
            self.cut.update(dict.fromkeys(ids))
            door.end(ids, MessageState.ACCEPTED, outcome)
            return
        if isinstance(outcome.value, Question) and outcome.state is RunState.DONE:
            self._store.wait_for(ids, outcome.value.id, partial(self._kept, ids, MessageState.WAITING, outcome))
            self.on_end(run.lane)
            return
        state = _state(outcome, parked)
        _effects.after(self._note_end, run.id, ids, state, outcome)  # making JSON of a value can call user code
        self.on_end(run.lane)

    def _note_end(self, run: int, ids: list[int], state: MessageState, outcome: Outcome) -> None:
        def kept(noted: object, error: BaseException | None) -> None:
            if state is MessageState.PARKED and error is None:  # not before: what is kept as parked is looked at
                self.parked.update(dict.fromkeys(ids, run))
            self._kept(ids, state, outcome, noted, error)

        self._store.end(ids, state, outcome.reason, _as_json(outcome.value), kept)

    def _kept(
        self, ids: list[int], state: MessageState, outcome: Outcome, noted: object, error: BaseException | None
    ) -> None:
        fates = list(filter(None, map(self._door.fates.get, ids)))
        if error is not None:
            for fate in fates:
                fate.fail(error)
        elif self.conduct is not None and isinstance(noted, int) and noted < len(ids):
            for fate in fates:  # another node has them, and decides how they end: whoever waits is told that
                fate.run = None
        else:
            self._door.end(ids, state, outcome)


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether a body was interrupted, by Ctrl-C say: then the process is to end, and the message has not failed."""
    return error is not None and interrupt_in(error) is not None


def _state(outcome: Outcome, parked: bool) -> MessageState:
    if parked:
        return MessageState.PARKED
    if outcome.state is RunState.CANCELLED and outcome.reason.startswith("dropped"):
        return MessageState.DROPPED
    return _ENDS.get(outcome.state, MessageState.FAILED)


def _as_json(result: Any) -> bytes | None:
    """What a run returned, if it has JSON that is not enormous."""
    if result is None:
        return None
    try:
        data = msgspec.json.encode(result)
    except (TypeError, ValueError, RecursionError):
        return None
    return data if len(data) <= _MOST_RESULT_BYTES else None
