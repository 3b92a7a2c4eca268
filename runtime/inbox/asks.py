"""Questions to persons: asked by a handler, answered or expired later, in this process or another.

A question is a row, and nothing else: no task, no turn and no memory waits for its answer. The answer is a message of
its own, kept in the same transaction that closes the question, so there is exactly one.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Literal

import anyio
import msgspec

from lanes import Answer as PersonsAnswer
from lanes import Draining, InvalidLane, LaneError, Question, Run
from lanes.asking import NewQuestion
from lanes.checks import is_utf8, seconds, shown, whole
from lanes.core.intake import check_dedupe
from lanes.core.scheduler import Scheduler
from locks import LockError, process
from locks._events import described, log

from .accepted import Accepted
from .answer import Answer
from .door import ALL_REPLAYED, MOST_WHOLE, Door, as_json, repeats, storable
from .errors import AskClosed, InboxDown, ask_closed
from .rows import Ask, AskedFor, NewRow, Taken, decoded, question_of

_LOOK_S = 30.0
"""How often expiry is looked at at least: the wall clock may be set."""
SHARED_LOOK_S = 2.0
"""The same where other processes ask, too: once such a process is gone, nothing else says when its questions expire."""
_SOON_S = 0.02
_AT_ONCE = 100


class Asks:
    """The questions of one inbox. On the event loop's thread."""

    def __init__(self, scheduler: Scheduler, door: Door) -> None:
        self._scheduler, self._door, self._store = scheduler, door, door.store
        self._more = anyio.Event()
        self.look_s = _LOOK_S
        """How often expiry is looked at at least."""

    async def ask(self, run: Run, route: Any, new: NewQuestion) -> Question:
        """Keep a question; see `RunContext.ask`."""
        expires_s = new.expires.total_seconds() if isinstance(new.expires, timedelta) else new.expires
        if expires_s is not None:
            expires_s = seconds("expires", expires_s)
        if new.key is not None:
            storable("key", check_dedupe(new.key))
        options = None if new.options is None else _options(new.options)
        now = process.wall()
        row = Ask(
            id=secrets.token_hex(8),
            key=new.key,
            lane=run.lane,
            session=run.session,
            route=as_json("route", route),
            question=as_json("question", new.question),
            options=None if options is None else as_json("options", options),
            keep=as_json("keep", new.keep),
            asked_at=now,
            expires_at=None if expires_s is None else now + expires_s,
            state="open",
        )
        answer = Answer[Ask]()
        self._store.ask(row, answer)
        asked = await answer.wait()
        self._more.set()
        return question_of(asked)

    async def answer(self, ask_id: Any, value: Any, by: Any) -> Accepted:
        """Close a question with an answer; see `Supervisor.answer`."""
        may_be_one = isinstance(ask_id, str) and is_utf8(ask_id) and "\0" not in ask_id
        ask = await self._store.find_ask(ask_id) if may_be_one else None
        if ask is None or ask.state != "open":
            raise ask_closed(ask_id, ask)
        question = question_of(ask)
        if question.options is not None and value not in question.options:
            allowed = ", ".join(map(repr, question.options))
            raise InvalidLane(f"value: {shown(value)} is no answer to question {ask.id}; allowed: {allowed}")
        if not isinstance(by, str):
            raise InvalidLane(f"by: {shown(by)} is not allowed; allowed: text")
        return await self._close(ask, "answered", value, by)

    async def open(self, *, lane: str | None, session: str | None, at_most: int) -> list[Question]:
        """The questions that wait for an answer, the oldest first."""
        for what, given in (("lane", lane), ("session", session)):
            if given is not None:
                storable(what, given)
        at_most = min(whole("at_most", at_most, 0, most=None), MOST_WHOLE)
        return [question_of(ask) for ask in await self._store.open_asks(lane, session, at_most)]

    def look_again(self) -> None:
        """Work is taken again: what could not expire meanwhile does now."""
        self._more.set()

    async def serve(self) -> None:
        """Have questions expire, until cancelled."""
        while True:
            more = self._more = anyio.Event()
            try:
                wait_s = await self._expire_due()
            except InboxDown:
                raise
            except LaneError as error:  # the supervisor drains
                log("asks_not_expired", level="warning", error=described(error))
                wait_s = self.look_s
            with anyio.move_on_after(wait_s):
                await more.wait()

    async def _expire_due(self) -> float:
        """Close what is due; returns for how many seconds nothing else is."""
        now = process.wall()
        due = await self._store.due_asks(now, _AT_ONCE)
        for ask in due:
            try:
                await self._close(ask, "expired", None, "")
            except AskClosed:
                continue  # answered meanwhile
            except (Draining, InboxDown):
                raise
            except (LaneError, LockError) as error:  # its lane is there no more: others expire all the same
                log("ask_not_queued", level="warning", ask=ask.id, lane=ask.lane, error=described(error))
                await self._close_only(ask)
        next_at = await self._store.next_expiry()
        # Two clocks may say that it is due and that it is not.
        soonest_s = math.inf if next_at is None else max(0.0 if due else _SOON_S, next_at - process.wall())
        return min(self.look_s, soonest_s)

    async def _close(self, ask: Ask, outcome: Literal["answered", "expired"], value: Any, by: str) -> Accepted:
        """Close a question, and queue the message that says so. A checkpoint; cancelled, both happen, or neither.

        Raises:
            AskClosed: something else has closed it before.
            InboxDown: nothing has changed.
        """
        request, policy = self._door.request_for(ask.lane, ask.session)
        how, new = answer_rows(ask, outcome, value, by, repeats(request.spec))
        return await self._door.keep(request, policy, new, partial(self._store.close_ask, how))

    async def _close_only(self, ask: Ask) -> None:
        """Have a question expire whose message cannot be queued: it comes from the disk, and is parked there."""
        how, new = answer_rows(ask, "expired", None, "", 0)
        answer = Answer[Taken]()
        self._store.close_ask(how, new, ALL_REPLAYED, answer)
        try:
            taken = await answer.wait()
        except AskClosed:
            return  # answered meanwhile
        self._door.on_full(ask.lane, taken.id)


def answer_rows(
    ask: Ask, outcome: Literal["answered", "expired"], value: Any, by: str, repeat: int
) -> tuple[AskedFor, NewRow]:
    """What is kept of the end of a question: how it is closed, and the message that says so.

    Args:
        repeat: as `NewRow.repeat`.

    Raises:
        InvalidLane: the value is not what JSON has.
    """
    question = question_of(ask)
    said = PersonsAnswer(
        ask=ask.id,
        question=question.question,
        options=question.options,
        outcome=outcome,
        value=value,
        by=by,
        keep=decoded(ask.keep),
    )
    new = NewRow(
        lane=ask.lane,
        session=ask.session,
        when_busy="queue",
        body=as_json("value", said),
        route=ask.route,
        dedupe=f"answer:{ask.id}",
        repeat=repeat,
        first=True,
        ask=ask.id,
    )
    return AskedFor(ask.id, outcome, msgspec.json.encode(value), by), new


def answered_by_hand(ask_id: str, ask: Ask | None, value: Any, by: str, repeat: int) -> tuple[AskedFor, NewRow]:
    """As `answer_rows`, for an answer that an operator gives from another process.

    Raises:
        AskClosed: the question is not open.
        ValueError: the value is not one of its options, which the error says as JSON.
        InvalidLane: as `answer_rows`.
    """
    if ask is None or ask.state != "open":
        raise ask_closed(ask_id, ask)
    options = question_of(ask).options
    if options is not None and value not in options:
        raise ValueError(", ".join(msgspec.json.encode(one).decode() for one in options))
    return answer_rows(ask, "answered", value, by, repeat)


def _options(given: Any) -> list[Any]:
    if isinstance(given, (str, bytes)) or not isinstance(given, Sequence) or not given:
        raise InvalidLane(f"options: {shown(given)} is not allowed; allowed: a list of at least one value, or None")
    return list(given)
