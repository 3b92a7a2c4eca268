"""Defects that the judge has to see. Each is planted in every process, before the schema is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import psycopg

from runtime.postgres import schema
from runtime.postgres.life import Life
from runtime.postgres.link import Link
from runtime.postgres.step import Step


class Defect(NamedTuple):
    """One defect, and the findings of which it must bring about at least one."""

    plant: Callable[[], None]
    seen_as: frozenset[str]


def _replace(*pairs: tuple[str, str]) -> Callable[[], None]:
    """Have the functions of the database say something else."""

    def plant() -> None:
        functions: str = vars(schema)["FUNCTIONS"]
        for old, new in pairs:
            assert old in functions, f"the functions have changed: {old!r}"
            functions = functions.replace(old, new)
        vars(schema)["FUNCTIONS"] = functions

    return plant


_FENCE = """  select * into t from {s}.session x where x.place = p_place for update;
  if not found or t.owner is distinct from p_node or t.fence <> p_fence or t.nonce is distinct from p_nonce then
    return query select 'lost'::text, t.fence, t.incarnation; return;
  end if;
  if t.calls = p_call then"""
_NO_FENCE = """  select * into t from {s}.session x where x.place = p_place for update;
  if t.fence = p_fence and t.calls = p_call then"""
_INHERIT = """    u as (update {s}.session t set owner = p_node, nonce = null, fence = t.fence + 1 from pick
      where t.place = pick.place returning t.place)
    select array_agg(u.place) into places from u;
  perform {s}.recovered(p_node, places, null);
"""


def _random_order() -> None:
    """Pages of what waits come in no order."""
    do = Link.ask

    def ask(self: Link, step: Step, report: Any) -> None:
        text = step.statement.replace("order by m.id limit", "order by md5(m.id::text) limit")
        do(self, step._replace(statement=text), report)

    write = Link.do

    def shuffled(self: Link, step: Step, report: Any) -> None:
        text = step.statement.replace("order by m.id limit", "order by md5(m.id::text) limit")
        write(self, step._replace(statement=text), report)

    Link.ask, Link.do = ask, shuffled  # type: ignore[method-assign]


def _asynchronous_commit() -> None:
    """What is acknowledged is not on the disk yet."""
    connect, join = Link.connect, Life._join
    off = "set synchronous_commit = off"

    async def careless(self: Link, role: str = "") -> psycopg.AsyncConnection:
        connection = await connect(self, role)
        if role != " lives":
            await connection.execute(off)
        return connection

    async def joined(self: Life, connection: psycopg.AsyncConnection) -> None:
        await join(self, connection)
        await connection.execute(off)  # after the check; a beat that goes to the disk takes everything along

    Link.connect, Life._join = careless, joined  # type: ignore[method-assign]


def _no_local_deadline() -> None:
    """A node does not give itself up before others may take over."""
    Life.alive = lambda _self: True  # type: ignore[assignment, method-assign]
    Life.left_s = lambda _self: 60.0  # type: ignore[assignment, method-assign]


def _no_fence() -> None:
    """What a dead run had on its way is written. What else keeps it from that is away, too."""
    _replace(
        (_FENCE, _NO_FENCE),
        ("if t.calls <> p_call - 1 then", "if false then"),
        ("perform pg_terminate_backend(a.pid) from", "perform a.pid from"),
    )()
    _no_local_deadline()


DEFECTS = {
    "append_without_fence": Defect(
        _no_fence,
        frozenset({"interleaved", "fence", "lines", "final", "unknown"}),
    ),
    "always_repeat": Defect(_replace(("m.attempt < m.repeat as may", "true as may")), frozenset({"unsafe repeat"})),
    "early_reap": Defect(
        _replace(("secs => n.ttl + n.grace", "secs => n.ttl * 0.45")), frozenset({"two bodies", "needless loss"})
    ),
    "random_order": Defect(_random_order, frozenset({"order"})),
    "asynchronous_commit": Defect(
        _asynchronous_commit, frozenset({"missing", "lines", "note", "said done", "two messages"})
    ),
    "no_local_deadline": Defect(_no_local_deadline, frozenset({"two bodies"})),
    "withdraws_questions_only": Defect(
        _replace(("where m.asked = any(closed) and m.state = 'waiting'", "where false")), frozenset({"stuck"})
    ),
    "ends_what_has_ended": Defect(_replace(("m.state = any(p_before)", "true")), frozenset({"final", "said done"})),
    "reaper_does_not_inherit": Defect(
        _replace(
            (
                _INHERIT,
                "    u as (update {s}.session t set owner = null from pick where t.place = pick.place)\n"
                "    select null into places;\n",
            )
        ),
        frozenset({"half done", "stuck"}),
    ),
}
