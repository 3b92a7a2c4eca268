"""Statements about accepted messages, and about schedules."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from ..inbox.rows import MAY_BECOME, InboxRow, MessageState, NewRow
from .rows import COLUMNS, Ahead, census_of, clean, place_of, row_of
from .step import Rows, Step

_ACCEPT = (
    "select * from {s}.accept(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s::bigint, %s::bigint, %s)"
)
_KEPT = tuple(name for name in NewRow.__struct_fields__ if name != "started")
_ACCEPTED = ("place", "rank", *_KEPT, "token", "node", "claims")
HAND_ON = (
    "with gone as (select g.place from {s}.left_alone(%s, array(select p.place from unnest(%s::text[]) p(place) "
    "where not exists (select from {s}.session t join {s}.message m on m.place = t.place and m.state = 'started' "
    "where t.place = p.place and t.owner = %s)), true) g(place)) "
    "select gone.place, m.id from gone left join {s}.message m on m.place = gone.place and m.state = 'accepted' "
    "union select m.place, m.id from gone join {s}.message m on m.place = gone.place and m.id = any(%s::bigint[])"
)
"""Places are for other nodes, but for those where a message of this node has begun: they, and what of them waits, or is
in memory here: when it is sent again after a lost answer, another node may have begun or ended that."""
_MINE = "(select t.owner from {s}.session t where t.place = m.place) = %s::bigint"


def accept(new: NewRow, *, rank: int, place: str, token: int, node: int, claims: bool) -> Step:
    """Keep a message, unless its key is known."""
    values = (place, rank, *(getattr(new, name) for name in _KEPT), token, node, claims)
    return Step(_ACCEPT, values, lambda rows: rows[0], place, names=_ACCEPTED, asked_for=True)


def begin(node: int, ids: Sequence[int], nonce: int) -> Step:
    """Messages are given to a body that conducts no session, or has begun."""
    text = "select {s}.started(%s, null, %s::bigint, %s::bigint[], false)"
    return Step(text, (node, nonce, list(ids)), _nothing, ids=ids)


def wait_again(node: int, ids: Sequence[int]) -> Step:
    """Messages wait for another attempt."""
    return Step("select {s}.waits_again(%s, %s::bigint[])", (node, list(ids)), _nothing, ids=ids, alone=True)


def end(node: int, ids: Sequence[int], state: MessageState, reason: str, result: bytes | None, token: int) -> Step:
    """Messages have ended: how many of them."""
    values = (node, list(ids), state, clean(reason), result, list(MAY_BECOME[state]), token)
    text = "select {s}.ended(%s, %s::bigint[], %s, %s, %s, %s::text[], %s::bigint)"
    # What is parked may be submitted again, and begin, right behind this.
    return Step(text, values, _first, ids=ids, alone=state is MessageState.PARKED)


def refuse(node: int, message: int, reason: str) -> Step:
    """A message found no room: whether it is dropped."""
    values = (node, message, clean(reason), list(MAY_BECOME[MessageState.DROPPED]))
    return Step("select {s}.refused(%s, %s::bigint, %s, %s::text[])", values, _first, ids=[message])


def told(ids: Sequence[int]) -> Step:
    """The lane of messages whose end is unknown was told of them."""
    return Step("update {s}.message set told = true where id = any(%s::bigint[])", (list(ids),), _nothing, ids=ids)


def settle() -> Step:
    """Nothing."""
    return Step("select 1", (), _nothing)


def requeue(message: int, token: int) -> Step:
    """Have a message wait again: whether it does."""
    return Step("select {s}.again(%s::bigint, %s::bigint)", (message, token), _first, ids=[message])


def cancel_waiting(
    node: int, lane: str | None, session: str | None, reason: str, token: int, message: int | None, upto: int | None
) -> Step:
    """Messages that wait end as cancelled, but for those of sessions that other nodes conduct: which."""
    values = (node, lane, session, clean(reason), token, message, upto)
    text = "select {s}.cancelled(%s, %s, %s, %s, %s::bigint, %s::bigint, %s::bigint)"
    place = "" if session is None else place_of(session, 0)
    return Step(text, values, lambda rows: [row[0] for row in rows], place, alone=True)


def recover(node: int, ids: Sequence[int], token: int) -> Step:
    """Put right what was started and cut off: how many wait again, and how many are unknown."""
    text = "select * from {s}.recovered(%s, null, %s::bigint[], %s::bigint)"
    return Step(text, (node, list(ids), token), lambda rows: rows[0], ids=ids)


def purge(before: float, place: str, at_most: int) -> Step:
    """Forget what ended before an instant, and places of which nothing is left, of a page that begins behind one.

    How many were forgotten, and the last place of the page.
    """
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
    return Step(text, (before, at_most, before, at_most, place, at_most), lambda rows: rows[0])


# Schedules


def serve(schedule: str, instant: float) -> Step:
    """A schedule is served up to an instant."""
    text = (
        "insert into {s}.schedule as s (name, served) values (%s, %s) "
        "on conflict (name) do update set served = greatest(s.served, excluded.served)"
    )
    return Step(text, (schedule, instant), _nothing)


def served(schedule: str) -> Step:
    """Up to which instant a schedule is served; `None` for one that is not known."""
    text = "select served from {s}.schedule where name = %s"
    return Step(text, (schedule,), lambda rows: rows[0][0] if rows else None)


# Questions


class UnderWay(NamedTuple):
    """Where runs are under way, which messages may interrupt or steer."""

    places: Sequence[str]
    lanes: Sequence[str]
    """Those whose messages do so unless they say otherwise."""


def waiting(
    node: int,
    lane: str | None,
    after: int,
    at_most: int,
    in_memory: Collection[int],
    under_way: UnderWay,
    ahead: Ahead,
) -> Step:
    """A page of the messages that wait in the sessions that a node conducts.

    What has come since another node waits for a session is for that node; but it is about the run that is under way, if
    it interrupts or steers.
    """
    text = (
        f"select {COLUMNS} from {{s}}.session t cross join lateral ("
        "select * from {s}.message m where m.place = t.place and m.state = 'accepted' and m.id > %s "
        "and not m.id = any(%s::bigint[]) and (%s::text is null or m.lane = %s) "
        "and (not t.wanted or m.id <= (select max(w.after) from {s}.want w where w.place = t.place) "
        "or t.place = any(%s::text[]) and coalesce(m.when_busy, case when m.lane = any(%s::text[]) then 'steer' end) "
        "in ('interrupt', 'steer')) "
        "order by m.place, m.id limit %s) m where t.owner = %s and t.pending > 0 order by m.id limit %s"
    )
    busy = list(under_way.places), list(under_way.lanes)
    values = (after, list(in_memory), lane, lane, *busy, at_most, node, at_most)
    return Step(text, values, lambda rows: [row_of(row, ahead()) for row in rows])


def said(lane: str, session: str | None, key: str, digest: bytes) -> Step:
    """The message that is kept under a key, and whether its body has that digest."""
    text = "select id, digest = %s from {s}.message where lane = %s and coalesce(session, '') = %s and dedupe = %s"
    names = ("digest", "lane", "session", "dedupe")
    return Step(text, (digest, lane, session or "", key), lambda rows: rows[0] if rows else None, names=names)


def accepted_among(node: int, ids: Sequence[int], ahead: Ahead) -> Step:
    """Those of some messages that wait, in sessions that a node conducts."""
    where = f"m.id = any(%s::bigint[]) and m.state = 'accepted' and {_MINE} order by m.id"
    return _messages(where, (list(ids), node), ahead)


def untold(node: int, after: int, at_most: int, ahead: Ahead) -> Step:
    """A page of those whose end is unknown, that their lane was not told of, in sessions of a node."""
    where = f"m.state = 'unknown' and not m.told and m.id > %s and {_MINE} order by m.id limit %s"
    return _messages(where, (after, node, at_most), ahead)


def find(message: int, ahead: Ahead) -> Step:
    """That of an id: one, or none."""
    return _messages("m.id = %s", (message,), ahead)


def ended_among(ids: Sequence[int]) -> Step:
    """Those of some messages that no node has to do anything about any more, or that are forgotten: their ids."""
    text = (
        "select i.id from unnest(%s::bigint[]) i(id) where not exists (select from {s}.message m "
        "where m.id = i.id and m.state in ('accepted', 'started'))"
    )
    return Step(text, (list(ids),), lambda rows: [row[0] for row in rows])


def in_state(state: MessageState, at_most: int, ahead: Ahead) -> Step:
    """The oldest messages in a state."""
    return _messages("m.state = %s order by m.id limit %s", (state, at_most), ahead)


def last_id() -> Step:
    """The id of the newest message there is; 0 for none."""
    return Step("select coalesce(max(id), 0) from {s}.message", (), _first)


def census(ahead: Ahead) -> Step:
    """What still asks for something, of all nodes."""
    text = (
        "select state, count(*), extract(epoch from min(accepted_at))::float8 from {s}.message "
        "where state in ('accepted', 'started') group by state union all "
        "select state, count(*), null from {s}.message where state in ('waiting', 'parked', 'unknown') "
        "group by state union all select 'question', count(*), null from {s}.ask where state = 'open'"
    )
    return Step(text, (), lambda rows: census_of(rows, ahead()))


def _messages(where: str, values: Sequence[object], ahead: Ahead) -> Step:
    def decode(rows: Rows) -> list[InboxRow]:
        return [row_of(row, ahead()) for row in rows]

    return Step(f"select {COLUMNS} from {{s}}.message m where {where}", values, decode)


def _nothing(_rows: Rows) -> None:
    return None


def _first(rows: Rows) -> object:
    return rows[0][0]
