"""Accepted messages in the database, behind the face that the inbox knows (`InboxStore`)."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

import anyio
import msgspec

from lanes.checks import priority as class_of
from lanes.spec_table import SpecTable

from ..inbox.answer import Answer
from ..inbox.errors import ask_closed
from ..inbox.rows import MAY_BECOME, Ask, AskedFor, Census, InboxRow, MessageState, NewRow, Taken, Traffic
from ..inbox.store import Report
from .errors import NodeLost
from .link import Link, Rows, Step

_LOOK_ANYWAY_S, _LOOK_FOR_NODE_S = 2.0, 0.1
_MOST_BEFORE = 50
"""As `accept` in the database says."""
_NAMES = tuple(InboxRow.__struct_fields__)
_TIMES = ("accepted_at", "started_at", "ended_at")
COLUMNS = ", ".join(f"extract(epoch from m.{name})::float8" if name in _TIMES else f"m.{name}" for name in _NAMES)
_ASK_COLUMNS = (
    "id, key, lane, session, route, question, options, keep, extract(epoch from asked_at)::float8, "
    "extract(epoch from expires_at)::float8, state, value, by"
)
_ACCEPT = (
    "select * from {s}.accept(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s::bigint, %s::bigint, %s)"
)
_ANSWERED = "select * from {s}.answered(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s::bigint, %s::bigint, %s)"
_MINE = "(select t.owner from {s}.session t where t.place = m.place) = %s::bigint"


def place_of(session: str | None, token: int) -> str:
    """Where a message waits: in its session, or in a place of its own."""
    return f"m:{token}" if session is None else f"s:{session}"


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

    def _do(
        self,
        text: str,
        values: Sequence[Any],
        report: Report | None,
        decode: Any = None,
        place: str = "",
        ids: Sequence[int] = (),
        alone: bool = False,
        asked_for: bool = False,
    ) -> None:
        step = Step(text, values, decode or (lambda _: None), place, ids=ids, alone=alone, asked_for=asked_for)
        self._link.do(step, report or (lambda _result, _error: None))

    async def _ask(self, text: str, values: Sequence[Any], decode: Callable[[Rows], Any]) -> Any:
        answer = Answer[Any]()
        self._link.ask(Step(text, values, decode), answer)
        return await answer.wait()

    def _rank(self, new: NewRow) -> int:
        return int(self._specs.find(new.lane).urgency if new.priority is None else class_of(new.priority))

    # Changes

    def accept(self, new: NewRow, replayed: int, report: Report) -> None:
        """Keep a message."""
        token = secrets.randbits(62)
        place, claims = place_of(new.session, token), self.room() > self._claiming
        self._claiming += claims
        values = (
            place,
            self._rank(new),
            new.lane,
            new.session,
            new.priority,
            new.timeout,
            new.when_busy,
            new.body,
            new.route,
            new.dedupe,
            new.digest,
            new.repeat,
            new.first,
            new.again,
            new.ask,
            token,
            self._link.node,
            claims,
        )

        def kept(row: Any, error: BaseException | None) -> None:
            try:
                self._taken(place, new.first, report, row, error)
            finally:
                self._claiming -= claims

        self._do(_ACCEPT, values, kept, lambda rows: rows[0], place, asked_for=True)

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
        values = (self._link.node, secrets.randbits(62), list(ids))
        self._do("select {s}.started(%s, null, %s::bigint, %s::bigint[], false)", values, report, ids=ids)

    def wait_again(self, ids: Sequence[int]) -> None:
        """Messages wait for another attempt."""
        text = "select {s}.waits_again(%s, %s::bigint[])"
        self._do(text, (self._link.node, list(ids)), None, ids=ids, alone=True)

    def take_back(self, ids: Sequence[int]) -> None:
        """Nothing is accepted as started here."""

    def end(
        self, ids: Sequence[int], state: MessageState, reason: str, result: bytes | None, report: Report | None
    ) -> None:
        """Messages have ended."""
        values = (self._link.node, list(ids), state, clean(reason), result, list(MAY_BECOME[state]))
        text = "select {s}.ended(%s, %s::bigint[], %s, %s, %s, %s::text[])"
        self._do(text, values, report, lambda rows: rows[0][0], ids=ids)

    def refuse(self, message: int, reason: str, report: Report) -> None:
        """A message that was accepted found no room."""
        values = (self._link.node, message, clean(reason), list(MAY_BECOME[MessageState.DROPPED]))

        def done(is_dropped: bool | None, error: BaseException | None) -> None:
            if is_dropped is False:
                error = NodeLost(f"message {message} is accepted: another node has its session now", path=self.path)
            report(None, error)

        text = "select {s}.refused(%s, %s::bigint, %s, %s::text[])"
        self._do(text, values, done, lambda rows: rows[0][0], ids=[message])

    def told(self, ids: Sequence[int]) -> None:
        """The lane of messages whose end is unknown was told of them."""
        self._do("update {s}.message set told = true where id = any(%s::bigint[])", (list(ids),), None, ids=ids)

    def settle(self, report: Report) -> None:
        """Change nothing."""
        self._do("select 1", (), report)

    def requeue(self, message: int, report: Report) -> None:
        """Have a message wait again."""

        def done(result: Any, error: BaseException | None) -> None:
            self.hints += 1
            report(result, error)

        values = (message, secrets.randbits(62))
        self._do("select {s}.again(%s::bigint, %s::bigint)", values, done, lambda rows: rows[0][0], ids=[message])

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
        values = (self._link.node, lane, session, clean(reason), secrets.randbits(62), message, upto)
        text = "select {s}.cancelled(%s, %s, %s, %s, %s::bigint, %s::bigint, %s::bigint)"
        place = "" if session is None else place_of(session, 0)
        self._do(text, values, report, lambda rows: [row[0] for row in rows], place, alone=True)

    # Questions to persons

    def withdraw(self, session: str, reason: str) -> None:
        """The open questions of a session are withdrawn."""
        self._do("select {s}.withdrawn(%s, %s)", (session, clean(reason)), None, place=place_of(session, 0), alone=True)

    def ask(self, ask: Ask, report: Report) -> None:
        """Keep a question."""
        text = (
            f"select {_ASK_COLUMNS} from {{s}}.asks(%s, %s, %s, %s, %s, %s, %s, %s, to_timestamp(%s), to_timestamp(%s))"
        )
        ahead = self._life.clock_ahead_s
        values = (
            ask.id,
            ask.key,
            ask.lane,
            ask.session,
            ask.route,
            ask.question,
            ask.options,
            ask.keep,
            ask.asked_at + ahead,
            None if ask.expires_at is None else ask.expires_at + ahead,
        )
        self._do(text, values, report, lambda rows: self._asks(rows)[0])

    def close_ask(self, how: AskedFor, new: NewRow, replayed: int, report: Report) -> None:
        """Close a question, and keep the message that says so."""
        token = secrets.randbits(62)
        place = place_of(new.session, token)
        values = (
            how.ask,
            how.state,
            how.value,
            how.by,
            place,
            self._rank(new),
            new.lane,
            new.session,
            new.body,
            new.route,
            new.dedupe,
            new.repeat,
            token,
            self._link.node,
            self.room() > self._claiming,
        )

        def closed(row: Any, error: BaseException | None) -> None:
            if error is not None or row is not None:
                self._taken(place, True, report, row, error)
            else:
                self._say_closed(how.ask, report)

        self._do(_ANSWERED, values, closed, lambda rows: rows[0] if rows else None, place)

    def _say_closed(self, ask: str, report: Report) -> None:
        def found(asks: list[Ask] | None, error: BaseException | None) -> None:
            report(None, error or ask_closed(ask, asks[0] if asks else None))

        self._link.ask(Step(f"select {_ASK_COLUMNS} from {{s}}.ask where id = %s", (ask,), self._asks), found)

    def wait_for(self, ids: Sequence[int], ask: str, report: Report | None) -> None:
        """Messages wait for the answer to a question."""
        waiting, done = list(MAY_BECOME[MessageState.WAITING]), list(MAY_BECOME[MessageState.DONE])
        values = (self._link.node, list(ids), ask, f"asked a person: {ask}", waiting, done)
        self._do("select {s}.waits_for(%s, %s::bigint[], %s, %s, %s::text[], %s::text[])", values, report, ids=ids)

    async def find_ask(self, ask: str) -> Ask | None:
        """A question that is kept."""
        found: list[Ask] = await self._ask(f"select {_ASK_COLUMNS} from {{s}}.ask where id = %s", (ask,), self._asks)
        return found[0] if found else None

    async def open_asks(self, lane: str | None, session: str | None, at_most: int) -> list[Ask]:
        """The questions that are open."""
        where = (
            "where state = 'open' and (%s::text is null or lane = %s) and (%s::text is null or session = %s) "
            "order by asked_at limit %s"
        )
        values = (lane, lane, session, session, at_most)
        found: list[Ask] = await self._ask(f"select {_ASK_COLUMNS} from {{s}}.ask {where}", values, self._asks)
        return found

    async def due_asks(self, now: float, at_most: int) -> list[Ask]:
        """The open questions that have expired, by the clock of the server."""
        where = "where state = 'open' and expires_at <= clock_timestamp() order by expires_at limit %s"
        found: list[Ask] = await self._ask(f"select {_ASK_COLUMNS} from {{s}}.ask {where}", (at_most,), self._asks)
        return found

    async def next_expiry(self) -> float | None:
        """When the next open question expires, by the clock of this machine."""
        text = "select extract(epoch from min(expires_at))::float8 from {s}.ask where state = 'open'"
        at: float | None = await self._ask(text, (), lambda rows: rows[0][0])
        return None if at is None else at - self._life.clock_ahead_s

    def _asks(self, rows: Rows) -> list[Ask]:
        ahead = self._life.clock_ahead_s
        names = Ask.__struct_fields__
        found = [Ask(**dict(zip(names, row, strict=True))) for row in rows]
        return [
            msgspec.structs.replace(
                one,
                asked_at=one.asked_at - ahead,
                expires_at=None if one.expires_at is None else one.expires_at - ahead,
            )
            for one in found
        ]

    # Schedules

    def accept_served(self, schedule: str, instant: float, new: NewRow, replayed: int, report: Report) -> None:
        """Keep a message of a schedule: its key is that of the instant, so of all nodes one sends it."""

        def kept(taken: Taken | None, error: BaseException | None) -> None:
            if (
                error is None
            ):  # not before: what is served, nobody sends after a crash; the key keeps it from coming twice
                self.serve(schedule, instant)
            report(taken, error)

        self.accept(new, replayed, kept)

    def serve(self, schedule: str, instant: float) -> None:
        """A schedule is served up to an instant."""
        self._do(
            "insert into {s}.schedule as s (name, served) values (%s, %s) "
            "on conflict (name) do update set served = greatest(s.served, excluded.served)",
            (schedule, instant),
            None,
        )

    async def served(self, schedule: str) -> float | None:
        """Up to which instant a schedule is served."""
        text = "select served from {s}.schedule where name = %s"
        found: float | None = await self._ask(text, (schedule,), lambda rows: rows[0][0] if rows else None)
        return found

    # Questions to the store

    async def changes(self) -> int:
        """How often there may have been something new."""
        return self.hints + int(time.monotonic() / _LOOK_ANYWAY_S)  # a hint may get lost

    def waiting(self, lane: str | None, after: int, at_most: int, report: Report) -> None:
        """Report a page of the messages that wait in the sessions that this node conducts."""
        text = (
            f"select {COLUMNS} from {{s}}.session t cross join lateral ("
            "select * from {s}.message m where m.place = t.place and m.state = 'accepted' and m.id > %s "
            "and not m.id = any(%s::bigint[]) and (%s::text is null or m.lane = %s) "
            "and (not t.wanted or m.id <= (select max(w.after) from {s}.want w where w.place = t.place)) "
            "order by m.place, m.id limit %s) m where t.owner = %s and t.pending > 0 order by m.id limit %s"
        )
        values = (after, list(self.in_memory), lane, lane, at_most, self._link.node, at_most)

        def came(rows: list[InboxRow] | None, error: BaseException | None) -> None:
            # A session that was inherited, and this node does not know of it yet: its lane is first to be told of what
            # is unknown. The page comes again.
            known = rows and [row for row in rows if row.session is None or self.knows(row.session)]
            report(known, error)

        self._do(text, values, came, self._rows)

    async def recover(self, ids: Sequence[int] | None = None) -> tuple[int, int]:
        """Put right what was cut off; a node that has just joined has started nothing."""
        if ids is None:
            return 0, 0
        answer = Answer[tuple[int, int]]()
        text = "select * from {s}.recovered(%s, null, %s::bigint[])"
        self._do(text, (self._link.node, list(ids)), answer, lambda rows: rows[0], ids=ids)
        return await answer.wait()

    async def said(self, lane: str, session: str | None, key: str, digest: bytes) -> tuple[int, bool] | None:
        """The message that is kept under a key, and whether its body has that digest."""
        text = "select id, digest = %s from {s}.message where lane = %s and coalesce(session, '') = %s and dedupe = %s"
        values = (digest, lane, session or "", key)
        found: tuple[int, bool] | None = await self._ask(text, values, lambda rows: rows[0] if rows else None)
        return found

    async def accepted_among(self, ids: Sequence[int]) -> list[InboxRow]:
        """Those of some messages that wait, in sessions that this node conducts."""
        text = (
            f"select {COLUMNS} from {{s}}.message m where m.id = any(%s::bigint[]) and m.state = 'accepted' "
            f"and {_MINE} order by m.id"
        )
        found: list[InboxRow] = await self._ask(text, (list(ids), self._link.node), self._rows)
        return found

    async def untold(self, after: int, at_most: int) -> list[InboxRow]:
        """A page of messages whose end is unknown, that their lane was not told of, in sessions of this node."""
        text = (
            f"select {COLUMNS} from {{s}}.message m where m.state = 'unknown' and not m.told and m.id > %s and {_MINE} "
            "order by m.id limit %s"
        )
        found: list[InboxRow] = await self._ask(text, (after, self._link.node, at_most), self._rows)
        return found

    async def find(self, message: int) -> InboxRow | None:
        """A message that is kept."""
        found: list[InboxRow] = await self._ask(
            f"select {COLUMNS} from {{s}}.message m where m.id = %s", (message,), self._rows
        )
        return found[0] if found else None

    async def ended_among(self, ids: Sequence[int]) -> list[InboxRow]:
        """Those of some messages that no node has to do anything about any more."""
        found: list[InboxRow] = await self._ask(
            f"select {COLUMNS} from {{s}}.message m where m.id = any(%s::bigint[]) "
            "and m.state not in ('accepted', 'started')",
            (list(ids),),
            self._rows,
        )
        return found

    async def in_state(self, state: MessageState, at_most: int) -> list[InboxRow]:
        """The oldest messages in a state."""
        found: list[InboxRow] = await self._ask(
            f"select {COLUMNS} from {{s}}.message m where m.state = %s order by m.id limit %s",
            (state, at_most),
            self._rows,
        )
        return found

    async def last_id(self) -> int:
        """The id of the newest message there is; 0 for none."""
        found: int = await self._ask("select coalesce(max(id), 0) from {s}.message", (), lambda rows: rows[0][0])
        return found

    async def comes_back(self) -> bool:
        """Wait until this process is a node again."""
        await anyio.sleep(_LOOK_FOR_NODE_S)
        while not self._link.node:
            await anyio.sleep(_LOOK_FOR_NODE_S)
        return True

    def census(self, report: Report) -> None:
        """Count what still asks for something, of all nodes, and report it."""
        text = (
            "select state, count(*), extract(epoch from min(accepted_at))::float8 from {s}.message "
            "where state in ('accepted', 'started') group by state union all "
            "select state, count(*), null from {s}.message where state in ('waiting', 'parked', 'unknown') "
            "group by state union all select 'question', count(*), null from {s}.ask where state = 'open'"
        )
        self._link.ask(Step(text, (), self._census), report)

    def _census(self, rows: Rows) -> Census:
        oldest = {state: at for state, _, at in rows}.get("accepted")
        counts = {state: number for state, number, _ in rows}
        return Census(
            questions=counts.pop("question"),
            messages={MessageState(state): number for state, number in counts.items()},
            oldest_accepted_at=None if oldest is None else oldest - self._life.clock_ahead_s,
        )

    async def purge(self, before: float, at_most: int) -> int:
        """Forget what ended before an instant, and, a page of all places at a time, those of which nothing is left."""
        text = (
            "with m as (delete from {s}.message where id in (select id from {s}.message where ended_at is not null "
            "and ended_at < to_timestamp(%s) and state not in ('parked', 'unknown', 'waiting') "
            "order by ended_at limit %s) returning 1), "
            "a as (delete from {s}.ask where id in (select id from {s}.ask where ended_at is not null "
            "and ended_at < to_timestamp(%s) order by ended_at limit %s) returning 1), "
            "p as (select place from {s}.session where place > %s order by place limit %s), "
            "s as (delete from {s}.session where place = any(array(select place from {s}.session "
            "where place = any(array(select place from p)) and owner is null and pending = 0 and next_seq = 0 "
            "and incarnation = 0 and not wanted and write_nonce is null for update skip locked))), "
            "c as (delete from {s}.command where answer is not null "
            "and asked_at < clock_timestamp() - interval '1 hour') "
            "select (select count(*) from m) + (select count(*) from a), (select max(place) from p)"
        )
        instant = before + self._life.clock_ahead_s
        answer = Answer[tuple[int, str | None]]()
        values = (instant, at_most, instant, at_most, self._purged_to, at_most)
        self._do(text, values, answer, lambda rows: rows[0])
        forgotten, last = await answer.wait()
        self._purged_to = last or ""
        return forgotten

    def _rows(self, rows: Rows) -> list[InboxRow]:
        ahead = self._life.clock_ahead_s
        return [row_of(one, ahead) for one in rows]


def row_of(found: tuple[Any, ...], ahead: float) -> InboxRow:
    """A message from its `COLUMNS`, by the clock of this machine, which the server's is ahead of."""
    fields = dict(zip(_NAMES, found, strict=True))
    fields["state"] = MessageState(fields["state"])
    for name in _TIMES:
        if fields[name] is not None:
            fields[name] -= ahead
    return InboxRow(**fields)


def clean(text: str) -> str:
    """Text without what the database refuses: a reason may quote anything."""
    return text.replace("\0", "\\0").encode("utf-8", "replace").decode()
