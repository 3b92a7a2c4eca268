"""Accepted messages in the database, behind the face that the inbox knows (`InboxStore`)."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

import anyio

from lanes.checks import priority as class_of
from lanes.spec_table import SpecTable

from ..inbox.answer import Answer
from ..inbox.errors import ask_closed
from ..inbox.rows import Ask, AskedFor, InboxRow, MessageState, NewRow, Taken, Traffic
from ..inbox.store import Report
from . import ask_steps, message_steps
from .errors import NodeLost
from .link import Link
from .message_steps import UnderWay
from .rows import place_of
from .step import Step

_LOOK_ANYWAY_S, _LOOK_FOR_NODE_S = 2.0, 0.1
_MOST_BEFORE = 50
"""As `accept` in the database says."""


class Opening(Protocol):
    """What opens and closes a store."""

    @property
    def clock_ahead_s(self) -> float:
        """How far the server's clock is ahead of this machine's."""

    async def open(self) -> None:
        """Join, as a node. A checkpoint."""

    async def close(self) -> None:
        """Commit what was handed over, give everything back, and leave. A checkpoint that is not interrupted."""

    def let_go(self) -> None:
        """As `close`, without waiting."""


class PostgresMessages:
    """Keeps accepted messages in the database. On the program's loop. See `InboxStore`.

    Args:
        life: opens and closes what the messages are kept in.
        specs: the lanes, for the class of a message.
    """

    def __init__(self, link: Link, life: Opening, specs: SpecTable) -> None:
        self.path = link.name
        self._link, self._life, self._specs = link, life, specs
        self.room: Callable[[], int] = lambda: 1
        """How many more messages could begin on this node now."""
        self._claiming = 0
        """Messages on their way that take some of it."""
        self.in_memory: Collection[int] = ()
        """The messages that runs of this node answer, or have not answered yet."""
        self.owned: Callable[[str], None] = lambda _place: None
        """Called with a place that this node conducts, as a message for it was accepted."""
        self.under_way: Callable[[], UnderWay] = lambda: UnderWay((), ())
        """Where runs of this node are under way."""
        self.knows: Callable[[str], bool] = lambda _session: True
        """Whether this node knows that it conducts a session."""
        self.more: Callable[[], None] = lambda: None
        """Called when there may be messages that are to be brought into memory."""
        self._purged_to = ""
        """Places up to this one were looked at."""
        self.hints = 0
        """Times that there may be something new in the database."""

    @property
    def failure(self) -> BaseException | None:
        """Why nothing is accepted now."""
        return None if self._link.node and not self._link.full else self._link.down()

    @property
    def traffic(self) -> Traffic:
        """What was written since it was opened."""
        link = self._link
        return Traffic(commits=link.commits, changes=link.steps, uncommitted=link.waiting)

    async def open(self) -> None:
        """Join, as a node."""
        await self._life.open()

    async def close(self) -> None:
        """Commit what was handed over, give everything back, and leave."""
        await self._life.close()

    def let_go(self) -> None:
        """As `close`, without waiting."""
        self._life.let_go()

    def _do(self, step: Step, report: Report | None) -> None:
        self._link.do(step, report or (lambda _result, _error: None))

    async def _ask(self, step: Step) -> Any:
        answer = Answer[Any]()
        self._link.ask(step, answer)
        return await answer.wait()

    def _ahead(self) -> float:
        return self._life.clock_ahead_s

    def _rank(self, new: NewRow) -> int:
        return int(self._specs.find(new.lane).urgency if new.priority is None else class_of(new.priority))

    # Changes

    def accept(self, new: NewRow, replayed: int, report: Report) -> None:
        """Keep a message."""
        token = secrets.randbits(62)
        place, claims = place_of(new.session, token), self.room() > self._claiming
        self._claiming += claims
        step = message_steps.accept(
            new, rank=self._rank(new), place=place, token=token, node=self._link.node, claims=claims
        )

        def kept(row: Any, error: BaseException | None) -> None:
            try:
                self._taken(place, new.first, report, row, error)
            finally:
                self._claiming -= claims

        self._do(step, kept)

    def _taken(self, place: str, first: bool, report: Report, row: Any, error: BaseException | None) -> None:
        """The database has kept a message: is it for this node, and next in its order?"""
        if row is None:
            report(None, error)
            return
        message, new, same_body, state, owner, before = row
        mine = owner is not None and owner == self._link.node
        # Its answer was lost, say, and meanwhile its page has come: it is in memory, or was.
        is_here = message in self.in_memory or state != MessageState.ACCEPTED
        older = before or ()  # of any lane: a session has one order; the database names no more than so many
        behind = mine and not first and (len(older) >= _MOST_BEFORE or not all(map(self.in_memory.__contains__, older)))
        if new and mine:
            self.owned(place)
        if new and behind:
            self.more()  # before it is judged: it comes with its page
        elsewhere = new and (is_here or not mine)
        report(Taken(message, new, same_body, new and behind, MessageState(state), elsewhere=elsewhere), None)

    def begin(self, ids: Sequence[int], report: Report | None) -> None:
        """Messages are given to a body that conducts no session, or has begun."""
        self._do(message_steps.begin(self._link.node, ids, secrets.randbits(62)), report)

    def wait_again(self, ids: Sequence[int]) -> None:
        """Messages wait for another attempt."""
        self._do(message_steps.wait_again(self._link.node, ids), None)

    def take_back(self, ids: Sequence[int]) -> None:
        """Nothing is accepted as started here."""

    def end(
        self, ids: Sequence[int], state: MessageState, reason: str, result: bytes | None, report: Report | None
    ) -> None:
        """Messages have ended."""
        self._do(message_steps.end(self._link.node, ids, state, reason, result, secrets.randbits(62)), report)

    def refuse(self, message: int, reason: str, report: Report) -> None:
        """A message that was accepted found no room."""

        def done(is_dropped: bool | None, error: BaseException | None) -> None:
            if is_dropped is False:
                error = NodeLost(f"message {message} is accepted: another node has its session now", path=self.path)
            report(None, error)

        self._do(message_steps.refuse(self._link.node, message, reason), done)

    def told(self, ids: Sequence[int]) -> None:
        """The lane of messages whose end is unknown was told of them."""
        self._do(message_steps.told(ids), None)

    def settle(self, report: Report) -> None:
        """Change nothing."""
        self._do(message_steps.settle(), report)

    def requeue(self, message: int, report: Report) -> None:
        """Have a message wait again."""

        def done(result: Any, error: BaseException | None) -> None:
            self.hints += 1
            report(result, error)

        self._do(message_steps.requeue(message, secrets.randbits(62)), done)

    def cancel_waiting(
        self,
        lane: str | None,
        session: str | None,
        reason: str,
        report: Report,
        *,
        message: int | None = None,
        upto: int | None = None,
    ) -> None:
        """Messages that wait end as cancelled, but for those of sessions that other nodes conduct."""
        token = secrets.randbits(62)
        self._do(message_steps.cancel_waiting(self._link.node, lane, session, reason, token, message, upto), report)

    # Questions to persons

    def withdraw(self, session: str, reason: str) -> None:
        """The open questions of a session are withdrawn."""
        self._do(ask_steps.withdraw(session, reason), None)

    def ask(self, ask: Ask, report: Report) -> None:
        """Keep a question."""
        self._do(ask_steps.ask(ask, self._ahead), report)

    def close_ask(self, how: AskedFor, new: NewRow, replayed: int, report: Report) -> None:
        """Close a question, and keep the message that says so."""
        token = secrets.randbits(62)
        place = place_of(new.session, token)
        step = ask_steps.close(
            how,
            new,
            rank=self._rank(new),
            place=place,
            token=token,
            node=self._link.node,
            claims=self.room() > self._claiming,
        )

        def closed(row: Any, error: BaseException | None) -> None:
            if error is not None or row is not None:
                self._taken(place, True, report, row, error)
            else:
                self._say_closed(how.ask, report)

        self._do(step, closed)

    def _say_closed(self, ask: str, report: Report) -> None:
        def found(asks: list[Ask] | None, error: BaseException | None) -> None:
            report(None, error or ask_closed(ask, asks[0] if asks else None))

        self._link.ask(ask_steps.find(ask, self._ahead), found)

    def wait_for(self, ids: Sequence[int], ask: str, report: Report | None) -> None:
        """Messages wait for the answer to a question."""
        self._do(ask_steps.wait_for(self._link.node, ids, ask, secrets.randbits(62)), report)

    async def find_ask(self, ask: str) -> Ask | None:
        """A question that is kept."""
        found: list[Ask] = await self._ask(ask_steps.find(ask, self._ahead))
        return found[0] if found else None

    async def open_asks(self, lane: str | None, session: str | None, at_most: int) -> list[Ask]:
        """The questions that are open."""
        found: list[Ask] = await self._ask(ask_steps.those_open(lane, session, at_most, self._ahead))
        return found

    async def due_asks(self, now: float, at_most: int) -> list[Ask]:
        """The open questions that have expired, by the clock of the server."""
        found: list[Ask] = await self._ask(ask_steps.due(at_most, self._ahead))
        return found

    async def next_expiry(self) -> float | None:
        """When the next open question expires, by the clock of this machine."""
        at: float | None = await self._ask(ask_steps.next_expiry(self._ahead))
        return at

    # Schedules

    def accept_served(self, schedule: str, instant: float, new: NewRow, replayed: int, report: Report) -> None:
        """Keep a message of a schedule: its key is that of the instant, so of all nodes one sends it."""

        def kept(taken: Taken | None, error: BaseException | None) -> None:
            if (
                error is None
            ):  # not before: what is served is not sent after a crash; the key keeps it from coming twice
                self.serve(schedule, instant)
            report(taken, error)

        self.accept(new, replayed, kept)

    def serve(self, schedule: str, instant: float) -> None:
        """A schedule is served up to an instant."""
        self._do(message_steps.serve(schedule, instant), None)

    async def served(self, schedule: str) -> float | None:
        """Up to which instant a schedule is served."""
        found: float | None = await self._ask(message_steps.served(schedule))
        return found

    # Questions to the store

    async def changes(self) -> int:
        """How often there may have been something new."""
        return self.hints + int(time.monotonic() / _LOOK_ANYWAY_S)  # a hint may get lost

    def waiting(self, lane: str | None, after: int, at_most: int, report: Report) -> None:
        """Report a page of the messages that wait in the sessions that this node conducts."""

        def came(rows: list[InboxRow] | None, error: BaseException | None) -> None:
            # A session that was inherited, and this node does not know of it yet: its lane is first to be told of what
            # is unknown. The page comes again.
            known = rows and [row for row in rows if row.session is None or self.knows(row.session)]
            report(known, error)

        node, in_memory, under_way = self._link.node, self.in_memory, self.under_way()
        self._do(message_steps.waiting(node, lane, after, at_most, in_memory, under_way, self._ahead), came)

    async def recover(self, ids: Sequence[int] | None = None) -> tuple[int, int]:
        """Put right what was cut off; a node that has just joined has started nothing."""
        if ids is None:
            return 0, 0
        answer = Answer[tuple[int, int]]()
        self._do(message_steps.recover(self._link.node, ids, secrets.randbits(62)), answer)
        return await answer.wait()

    async def said(self, lane: str, session: str | None, key: str, digest: bytes) -> tuple[int, bool] | None:
        """The message that is kept under a key, and whether its body has that digest."""
        found: tuple[int, bool] | None = await self._ask(message_steps.said(lane, session, key, digest))
        return found

    async def accepted_among(self, ids: Sequence[int]) -> list[InboxRow]:
        """Those of some messages that wait, in sessions that this node conducts."""
        found: list[InboxRow] = await self._ask(message_steps.accepted_among(self._link.node, ids, self._ahead))
        return found

    async def untold(self, after: int, at_most: int) -> list[InboxRow]:
        """A page of messages whose end is unknown, that their lane was not told of, in sessions of this node."""
        found: list[InboxRow] = await self._ask(message_steps.untold(self._link.node, after, at_most, self._ahead))
        return found

    async def find(self, message: int) -> InboxRow | None:
        """A message that is kept."""
        found: list[InboxRow] = await self._ask(message_steps.find(message, self._ahead))
        return found[0] if found else None

    async def ended_among(self, ids: Sequence[int]) -> list[int]:
        """Those of some messages that no node has to do anything about any more, or that are forgotten."""
        found: list[int] = await self._ask(message_steps.ended_among(ids))
        return found

    async def in_state(self, state: MessageState, at_most: int) -> list[InboxRow]:
        """The oldest messages in a state."""
        found: list[InboxRow] = await self._ask(message_steps.in_state(state, at_most, self._ahead))
        return found

    async def last_id(self) -> int:
        """The id of the newest message there is; 0 for none."""
        found: int = await self._ask(message_steps.last_id())
        return found

    async def comes_back(self) -> bool:
        """Wait until this process is a node again."""
        await anyio.sleep(_LOOK_FOR_NODE_S)
        while not self._link.node:
            await anyio.sleep(_LOOK_FOR_NODE_S)
        return True

    def census(self, report: Report) -> None:
        """Count what still asks for something, of all nodes, and report it."""
        self._link.ask(message_steps.census(self._ahead), report)

    async def purge(self, before: float, at_most: int) -> int:
        """Forget what ended before an instant, and, a page of all places at a time, those of which nothing is left."""
        answer = Answer[tuple[int, str | None]]()
        instant = before + self._life.clock_ahead_s
        self._do(message_steps.purge(instant, self._purged_to, at_most), answer)
        forgotten, last = await answer.wait()
        self._purged_to = last or ""
        return forgotten
