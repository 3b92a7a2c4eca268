"""Statements about questions to persons."""

from __future__ import annotations

from collections.abc import Sequence

from ..inbox.rows import MAY_BECOME, Ask, AskedFor, MessageState, NewRow
from .rows import ASK_COLUMNS, Ahead, ask_of, clean, place_of
from .step import Rows, Step

_ANSWERED = "select * from {s}.answered(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s::bigint, %s::bigint, %s)"


_ANSWERS = (
    *("ask", "state", "value", "by", "place", "rank", "lane", "session"),
    *("body", "route", "dedupe", "repeat", "token", "node", "claims"),
)


def ask(new: Ask, ahead: Ahead) -> Step:
    """Keep a question, unless one of its key is open: the one that is open then."""
    ahead_s = ahead()
    values = (
        new.id,
        new.key,
        new.lane,
        new.session,
        new.route,
        new.question,
        new.options,
        new.keep,
        new.asked_at + ahead_s,
        None if new.expires_at is None else new.expires_at + ahead_s,
    )
    text = f"select {ASK_COLUMNS} from {{s}}.asks(%s, %s, %s, %s, %s, %s, %s, %s, to_timestamp(%s), to_timestamp(%s))"
    return Step(text, values, lambda rows: ask_of(rows[0], ahead()), names=Ask.__struct_fields__)


def close(how: AskedFor, new: NewRow, *, rank: int, place: str, token: int, node: int, claims: bool) -> Step:
    """Close a question, and keep the message that says so: as `accept`; `None` if it is closed already."""
    values = (
        how.ask,
        how.state,
        how.value,
        how.by,
        place,
        rank,
        new.lane,
        new.session,
        new.body,
        new.route,
        new.dedupe,
        new.repeat,
        token,
        node,
        claims,
    )
    return Step(_ANSWERED, values, lambda rows: rows[0] if rows else None, place, names=_ANSWERS)


def withdraw(session: str, reason: str) -> Step:
    """The open questions of a session are withdrawn."""
    values = (session, clean(reason))
    return Step("select {s}.withdrawn(%s, %s)", values, lambda _: None, place_of(session, 0), alone=True)


def wait_for(node: int, ids: Sequence[int], question: str, token: int) -> Step:
    """Messages wait for the answer to a question, or are done: how many of them."""
    waiting, done = list(MAY_BECOME[MessageState.WAITING]), list(MAY_BECOME[MessageState.DONE])
    values = (node, list(ids), question, f"asked a person: {question}", waiting, done, token)
    text = "select {s}.waits_for(%s, %s::bigint[], %s, %s, %s::text[], %s::text[], %s::bigint)"
    return Step(text, values, lambda rows: rows[0][0], ids=ids)


def find(question: str, ahead: Ahead) -> Step:
    """Those of an id: one, or none."""
    return _asks("where id = %s", (question,), ahead)


def those_open(lane: str | None, session: str | None, at_most: int, ahead: Ahead) -> Step:
    """Those that are open, the oldest first."""
    where = (
        "where state = 'open' and (%s::text is null or lane = %s) and (%s::text is null or session = %s) "
        "order by asked_at limit %s"
    )
    names = ("lane", "lane", "session", "session", "at_most")
    return _asks(where, (lane, lane, session, session, at_most), ahead)._replace(names=names)


def due(at_most: int, ahead: Ahead) -> Step:
    """Those that have expired, by the clock of the server."""
    where = "where state = 'open' and expires_at <= clock_timestamp() order by expires_at limit %s"
    return _asks(where, (at_most,), ahead)


def next_expiry(ahead: Ahead) -> Step:
    """When the next open one expires, by the clock of this machine."""

    def by_this_clock(rows: Rows) -> float | None:
        return None if rows[0][0] is None else rows[0][0] - ahead()

    text = "select extract(epoch from min(expires_at))::float8 from {s}.ask where state = 'open'"
    return Step(text, (), by_this_clock)


def _asks(where: str, values: Sequence[object], ahead: Ahead) -> Step:
    def decode(rows: Rows) -> list[Ask]:
        return [ask_of(row, ahead()) for row in rows]

    return Step(f"select {ASK_COLUMNS} from {{s}}.ask {where}", values, decode)
