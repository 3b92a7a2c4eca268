"""A store in the hands of an operator: examined, looked at and changed by another process than those that serve it.

All of it is what SQL can say: nothing here joins as a node, so no session is kept from any. What is changed goes
through the functions of the database, as what nodes change does, and those wake the nodes.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal, NamedTuple

import msgspec
import psycopg
from psycopg import sql

from lanes import Question

from ..inbox.asks import answered_by_hand
from ..inbox.errors import InboxInvalid
from ..inbox.rows import InboxRow, MessageState, question_of
from . import ask_steps
from .connection import ClosedWhenCancelled, cancellation_kept, check_url, one_line
from .errors import StoreDown
from .pooler import is_pooled, is_shared
from .rows import COLUMNS, place_of, row_of
from .schema import channel_of, check, check_form, filled, form_of, make
from .settings import PostgresStore
from .step import Rows, Step

CLOCK_WITHIN_S = 1.0
"""How far the clocks of server and machine may differ: ages and schedules are off by as much."""
_CONNECT_WITHIN_S = 5.0
_ANSWER_WITHIN_S = 60.0
_NOTE_WITHIN_S = 1.0
_A_PERSON_WAITS = 0
"""How urgent an answer is: what the lane says is known to nodes alone."""
_BY_HAND = (MessageState.PARKED, MessageState.UNKNOWN, MessageState.WAITING)

Connection = psycopg.AsyncConnection[Any]

logging.getLogger("psycopg").addHandler(logging.NullHandler())
"""Without logging, what it warns of would be printed into a command's screen: that a cancelled statement was cut."""


class Finding(msgspec.Struct, frozen=True):
    """One thing that was examined."""

    level: Literal["ok", "note", "wrong"]
    name: str
    text: str


class NodeRow(msgspec.Struct, frozen=True):
    """A process that shares the sessions of a store. Ages are in seconds, by the clock of the server."""

    id: int
    name: str
    host: str
    pid: int
    ttl: float
    joined_s: float
    silent_s: float
    sessions: int
    open: int
    """Accepted and started messages of the sessions that it conducts."""
    state: Literal["alive", "late", "dead"]
    """`late`: silent for so long that it has given itself up. `dead`: others take over what it had."""
    figures: str | None
    """What it has reported of itself last, as JSON; `None` when it has not, or is of an older version."""


class SessionRow(msgspec.Struct, frozen=True):
    """A session as the database has it."""

    session: str
    open: int
    """Accepted and started messages."""
    owner: str | None
    """The name of the node that conducts it."""
    node: int | None
    oldest_s: float | None
    """How long ago the oldest open message was accepted."""
    records: int
    """What has been appended to its transcript, since the last reset or replacement."""
    earlier: int
    """Transcripts that resets have kept."""
    fence: int
    wanted: bool
    """Whether another node waits for it."""


class Totals(NamedTuple):
    """Of the whole fleet."""

    sessions: int
    owned: int
    unowned: int
    """Sessions, and messages of none, that have open messages and wait for a node."""


@asynccontextmanager
async def opened(store: PostgresStore) -> AsyncIterator[Connection]:
    """As `connected`, for one command: all that is asked has to be answered within a minute.

    Raises:
        StoreDown: the database does not answer, or refuses.
        InboxInvalid: the URL is none.
    """
    try:
        async with connected(store) as connection, asyncio.timeout(_ANSWER_WITHIN_S):
            with cancellation_kept():
                yield connection
    except TimeoutError as error:
        raise StoreDown(f"{store.name} has not answered within {_ANSWER_WITHIN_S:.0f} s", path=store.name) from error
    except (psycopg.Error, OSError) as error:
        raise StoreDown(f"{store.name} refuses ({said(error)})", path=store.name) from error


@asynccontextmanager
async def connected(store: PostgresStore) -> AsyncIterator[Connection]:
    """A connection for an operator, in autocommit mode.

    Raises:
        StoreDown: the database cannot be reached.
        InboxInvalid: the URL is none.
    """
    check_url(store)
    try:
        async with asyncio.timeout(_CONNECT_WITHIN_S):
            connection = await ClosedWhenCancelled.connect(
                store.url, autocommit=True, application_name="lanes db", connect_timeout=int(_CONNECT_WITHIN_S) + 1
            )
    except (psycopg.Error, OSError) as error:
        raise StoreDown(f"{store.name} cannot be reached ({said(error)})", path=store.name) from error
    try:
        yield connection
    finally:
        await connection.close()


def said(error: BaseException) -> str:
    """What an error of the driver says, on one line."""
    if isinstance(error, TimeoutError):
        return f"no answer within {_CONNECT_WITHIN_S:.0f} s"
    return one_line(error)


async def made(connection: Connection, store: PostgresStore) -> str:
    """Make the schema unless it is there, or bring it up to date; returns what was done."""
    done = await make(connection, store.schema)
    await check(connection, store.name, store.schema)
    return done


async def see_form(connection: Connection, store: PostgresStore) -> None:
    """See that the schema is one that this version reads.

    Raises:
        InboxInvalid: it is none of ours, or has another form.
    """
    check_form(await form_of(connection, store.schema), store.name, store.schema)


# What `lanes db check` says


async def examined(connection: Connection, store: PostgresStore) -> list[Finding]:
    """All that a node needs of a database, one after the other."""
    found = [await _server(connection), await _usable(connection, store)]
    if await form_of(connection, store.schema) is not None:
        found.append(await _rights(connection, store.schema))
    found += [await _clock(connection), await _connections(connection, store)]
    ((standby,),) = await _rows(connection, sql.SQL("select pg_is_in_recovery()"))
    return found if standby else [*found, *await _pooler(connection, store)]


async def _usable(connection: Connection, store: PostgresStore) -> Finding:
    """What a node asks before it joins."""
    try:
        await check(connection, store.name, store.schema)
    except (StoreDown, InboxInvalid) as error:
        return Finding("wrong", "usable", " ".join(str(error).split()))
    return Finding("ok", "usable", "a primary that may be written, and keeps what it acknowledges")


async def _server(connection: Connection) -> Finding:
    info = connection.info
    version = f"PostgreSQL {info.server_version // 10_000}.{info.server_version % 10_000}"
    local = info.host.startswith(("/", "@")) or info.host in ("localhost", "127.0.0.1", "::1")
    if connection.pgconn.ssl_in_use:
        return Finding("ok", "server", f"{version}, over TLS")
    return Finding(
        "ok" if local else "note", "server", f"{version}{'' if local else ', and the connection is not encrypted'}"
    )


async def _rights(connection: Connection, schema: str) -> Finding:
    text = (
        "select c.relname || ' (' || r || ')' from pg_class c, unnest(array['select', 'insert', 'update', 'delete']) r "
        "where c.relnamespace = to_regnamespace(quote_ident(%s)) and c.relkind = 'r' "
        "and (c.relname <> 'form' or r = 'select') and not has_table_privilege(c.oid, r) "
        "union all select p.proname || ' (execute)' from pg_proc p "
        "where p.pronamespace = to_regnamespace(quote_ident(%s)) and not has_function_privilege(p.oid, 'execute')"
    )
    missing = [row[0] for row in await _rows(connection, sql.SQL(text), (schema, schema))]
    if missing:
        return Finding(
            "wrong", "rights", f"this role lacks {', '.join(missing[:5])}{' and more' if missing[5:] else ''}"
        )
    return Finding("ok", "rights", f"this role may use all of schema {schema!r}")


async def _clock(connection: Connection) -> Finding:
    before = time.time()
    ((server,),) = await _rows(connection, sql.SQL("select extract(epoch from clock_timestamp())::float8"))
    after = time.time()
    ahead = server - (before + after) / 2
    text = f"the server's is {abs(ahead):.3f} s {'ahead of' if ahead >= 0 else 'behind'} this machine's"
    return Finding("ok" if abs(ahead) <= CLOCK_WITHIN_S + (after - before) / 2 else "wrong", "clock", text)


async def _connections(connection: Connection, store: PostgresStore) -> Finding:
    text = (
        "select current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int, "
        "count(*) from pg_stat_activity where backend_type = 'client backend'"
    )
    ((most, used),) = await _rows(connection, sql.SQL(text))
    nodes = max(0, most - used) // store.connections
    level: Literal["ok", "wrong"] = "ok" if nodes else "wrong"
    return Finding(
        level, "connections", f"{used} of {most} are used: room for {nodes} more nodes of {store.connections}"
    )


async def _pooler(connection: Connection, store: PostgresStore) -> list[Finding]:
    """Whether something stands between, and whether nodes can wake each other."""
    heard = await _hears(connection, store)
    notes = [] if heard else [Finding("note", "notify", "notifications do not arrive; nodes need notify=False")]
    if not await is_pooled(connection):
        return [Finding("ok", "pooler", "none"), *notes]
    if not await is_shared(connection, store):
        return [Finding("note", "pooler", "there is one, which gives each client a connection of its own"), *notes]
    why = "there is one that shares connections by transaction; allowed: by session, or none"
    return [Finding("wrong", "pooler", why)]


async def _hears(connection: Connection, store: PostgresStore) -> bool:
    channel, word = sql.Identifier(channel_of(store.schema)), f"check {time.monotonic_ns()}"
    await connection.execute(sql.SQL("listen {}").format(channel))
    async with await psycopg.AsyncConnection.connect(store.url, autocommit=True, connect_timeout=5) as other:
        await other.execute("select pg_notify(%s, %s)", (channel_of(store.schema), word))
    async for note in connection.notifies(timeout=_NOTE_WITHIN_S):
        if note.payload == word:
            return True
    return False


# What is there


async def fleet(connection: Connection, schema: str) -> tuple[list[NodeRow], Totals]:
    """The processes that share the sessions, by name, and what there is of sessions, all counted at one instant."""
    text = (
        "with t as (select owner, count(*) filter (where place >= 's') keyed, count(*) number, "
        "sum(pending) open, count(*) filter (where pending > 0) waiting from {s}.session group by owner) "
        "select abs(n.id), n.name, n.host, n.pid, n.ttl, extract(epoch from clock_timestamp() - n.joined_at)::float8, "
        "extract(epoch from clock_timestamp() - n.beat_at)::float8, coalesce(t.number, 0), coalesce(t.open, 0)::int, "
        "case when n.beat_at + make_interval(secs => n.ttl + n.grace) < clock_timestamp() then 'dead' "
        "when n.beat_at + make_interval(secs => 0.9 * n.ttl) < clock_timestamp() then 'late' else 'alive' end, "
        "n.figures, "
        "(select coalesce(sum(keyed), 0)::bigint from t), "
        "(select coalesce(sum(number), 0)::bigint from t where owner is not null), "
        "(select coalesce(sum(waiting), 0)::bigint from t where owner is null) "
        "from (select) nobody left join {s}.node n on true left join t on t.owner = abs(n.id) "
        "order by n.name, n.joined_at"
    )
    rows = await _rows(connection, filled(text, schema))
    return [NodeRow(*row[:-3]) for row in rows if row[0] is not None], Totals(*rows[0][-3:])


async def sessions(
    connection: Connection, schema: str, *, key: str | None, node: str | None, only_open: bool, at_most: int
) -> list[SessionRow]:
    """Sessions: those with open messages first, the one that has waited longest before the others."""
    text = (
        "with t as (select s.*, n.name from {s}.session s left join {s}.node n on n.id = s.owner "
        "where left(s.place, 2) = 's:' and (%s::text is null or s.place = 's:' || %s) "
        "and (%s::text is null or n.name = %s) and (not %s or s.pending > 0) "
        "order by s.pending = 0, case when s.pending > 0 then s.since end, s.place limit %s) "
        "select substr(t.place, 3), t.pending, t.name, t.owner, "
        "(select extract(epoch from clock_timestamp() - min(m.accepted_at))::float8 from {s}.message m "
        "where m.place = t.place and m.state in ('accepted', 'started')), t.next_seq, "
        "(select count(distinct e.incarnation) from {s}.entry e where e.place = t.place "
        "and e.incarnation < t.incarnation), t.fence, t.wanted "
        "from t order by t.pending = 0, case when t.pending > 0 then t.since end, t.place"
    )
    values = (key, key, node, node, only_open, at_most)
    return [SessionRow(*row) for row in await _rows(connection, filled(text, schema), values)]


async def listed(
    connection: Connection,
    schema: str,
    *,
    states: Sequence[MessageState],
    lane: str | None,
    session: str | None,
    at_most: int,
) -> list[InboxRow]:
    """Messages, the newest first."""
    where = (
        "from {s}.message m where (not %s or m.state = any(%s::text[])) and (%s::text is null or m.lane = %s) "
        "and (%s::text is null or m.session = %s) order by m.id desc limit %s"
    )
    values = (bool(states), list(states), lane, lane, session, session, at_most)
    return await _messages(connection, schema, where, values)


async def counts(connection: Connection, schema: str) -> dict[str, int]:
    """How many messages are in each state."""
    text = "select state, count(*) from {s}.message group by state order by state"
    return dict(await _rows(connection, filled(text, schema)))


async def one(connection: Connection, schema: str, message: int) -> InboxRow | None:
    """A message that is kept."""
    found = await _messages(connection, schema, "from {s}.message m where m.id = %s", (message,))
    return found[0] if found else None


# What is changed


async def requeue(connection: Connection, schema: str, message: int) -> bool:
    """Have a message that was parked, dropped or left unknown wait again; returns whether it does."""
    ((done,),) = await _rows(connection, filled("select {s}.again(%s::bigint)", schema), (message,))
    return bool(done)


async def discard(connection: Connection, schema: str, message: int) -> bool:
    """Have a message that waits for an operator wait no longer; returns whether it did."""
    text = "select {s}.ended(0, array[%s::bigint], 'cancelled', 'discarded by an operator', null, %s::text[])"
    ((number,),) = await _rows(connection, filled(text, schema), (message, list(_BY_HAND)))
    return bool(number)


async def open_questions(connection: Connection, schema: str, at_most: int) -> list[Question]:
    """The questions that wait for an answer, the oldest first."""
    step = ask_steps.those_open(None, None, at_most, _no_difference)
    return [question_of(ask) for ask in step.decode(await _step(connection, schema, step))]


async def answer(connection: Connection, schema: str, ask_id: str, value: Any, by: str) -> int:
    """Answer a question; returns the id of the message that brings the answer.

    Raises:
        AskClosed: it is not open.
        ValueError: the value is not one of its options.
    """
    text = filled("select max(repeat) from {s}.message where asked = %s", schema)
    while True:
        find = ask_steps.find(ask_id, _no_difference)
        asks = find.decode(await _step(connection, schema, find))
        ((repeat,),) = await _rows(connection, text, (ask_id,))
        how, new = answered_by_hand(ask_id, asks[0] if asks else None, value, by, repeat or 0)
        token = secrets.randbits(62)
        place = place_of(new.session, token)
        close = ask_steps.close(how, new, rank=_A_PERSON_WAITS, place=place, token=token, node=0, claims=False)
        closed = close.decode(await _step(connection, schema, close))
        if closed is not None:
            return int(closed[0])
        # Somebody else has closed it meanwhile: who, the next look says.


def _no_difference() -> float:
    """Ages are said by the clock of the server."""
    return 0.0


async def _step(connection: Connection, schema: str, step: Step) -> Rows:
    return await _rows(connection, filled(step.statement, schema), step.values)


async def _messages(connection: Connection, schema: str, where: str, values: Sequence[Any]) -> list[InboxRow]:
    return [row_of(row, 0.0) for row in await _rows(connection, filled(f"select {COLUMNS} {where}", schema), values)]


async def _rows(
    connection: Connection, statement: sql.SQL | sql.Composed, values: Sequence[Any] = ()
) -> list[tuple[Any, ...]]:
    return await (await connection.execute(statement, values or None)).fetchall()
