"""No statement reads more rows as tables grow, also on a connection that has planned it while they were empty."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from lanes import LaneSpec
from lanes.spec_table import SpecTable
from runtime import PostgresStore
from runtime.inbox.rows import MessageState, NewRow
from runtime.postgres.connection import SETTINGS
from runtime.postgres.functions import FUNCTIONS, TABLES
from runtime.postgres.link import Link
from runtime.postgres.messages import PostgresMessages
from runtime.postgres.schema import filled
from runtime.postgres.shares import AFTER_S
from runtime.postgres.step import Step

MANY = 1_000
"""Sessions, and messages and records of the first one."""
MOST_READ = 60
PAGE = 10


class Recording(Link):
    """Keeps the steps that it is given, and does none."""

    def __init__(self, store: PostgresStore) -> None:
        super().__init__(store)
        self.node = 7
        self.given: list[Step] = []

    def do(self, step: Step, report: Any) -> None:
        self.given.append(step)

    ask = do


def changes(link: Recording, message: int) -> list[Step]:
    """What the product does to a database in which sessions `s:1` to `s:1000` have much behind them."""
    node: Any = SimpleNamespace(clock_ahead_s=0.0)
    messages = PostgresMessages(link, node, SpecTable([LaneSpec("main")], []))
    link.given.clear()
    ids = [message]
    nobody = lambda _result, _error: None  # noqa: E731
    for session in ("1", None):
        new = NewRow(
            lane="main", session=session, priority=None, timeout=None, when_busy=None, body=b"1", route=b"", repeat=0
        )
        messages.accept(new, 0, nobody)
    messages.begin(ids, None)
    messages.wait_again(ids)
    messages.end(ids, MessageState.DONE, "", None, None)
    messages.wait_for(ids, "ask", None)
    messages.refuse(message, "full", nobody)
    messages.requeue(message, nobody)
    messages.waiting(None, 0, PAGE, nobody)
    for step in (
        messages.accepted_among(ids),
        messages.ended_among(ids),
        messages.find(1),
        messages.recover(ids),
        messages.purge(0, PAGE),
    ):
        with pytest.raises(RuntimeError):  # there is no event loop to wait on for the answer
            step.send(None)
    call = ("s:1", 7, 1, 1, 1, None, ["{}"])
    link.given += [
        Step("select {s}.started(%s, %s, %s::bigint, %s::bigint[], true)", (7, "s:1", 5, ids), list),
        Step("select * from {s}.append(%s, %s, %s, %s, %s, %s::bigint, %s::text[])", call, list),
        Step("select * from {s}.note(%s, %s, %s::bigint, %s::bigint, %s::text[])", ("s:1", 7, 5, None, ["{}"]), list),
        Step("select {s}.wanted(%s, %s)", (7, "s:2"), list),
        Step("select {s}.left_alone(%s, %s::text[], false)", (7, ["s:2"]), list),
        Step("select {s}.claimed(%s, %s)", (7, PAGE), list),
        Step("select {s}.claimed_fairly(%s, %s::bigint[], %s::float8[])", (7, [PAGE // 3] * 3, AFTER_S), list),
        Step("select * from {s}.reaped(%s)", (7,), list),
    ]
    return link.given


def test_no_statement_reads_more_as_tables_grow(pg, schema):
    link = Recording(PostgresStore(pg.dsn, schema=schema))
    with psycopg.connect(pg.dsn, autocommit=True) as connection:

        def do(statement: str, values: Any = ()) -> psycopg.Cursor[Any]:
            return connection.execute(filled(statement, schema), values)

        def counted() -> int:
            """Rows of the schema that were read and are not yet in the server's statistics."""
            found = connection.execute(
                "select coalesce(sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0)), 0) "
                "from pg_stat_xact_user_tables where schemaname = %s and relname <> 'node'",
                (schema,),
            ).fetchone()
            assert found is not None
            return int(found[0])

        def read(step: Step) -> int:
            """Rows that a statement reads. It is taken back."""
            with connection.transaction(force_rollback=True):
                before = counted()
                do(step.statement, step.values)
                return counted() - before

        connection.execute(SETTINGS)
        do("create schema {s}")
        do(TABLES)
        do(FUNCTIONS)
        do(
            "insert into {s}.node (id, name, host, pid, ttl, grace) "
            "values (6, 'n', 'h', 1, 60, 1), (7, 'm', 'h', 1, 60, 1)"
        )
        do("analyze {s}.session, {s}.message, {s}.entry, {s}.ask")
        for step in changes(link, 1):
            for _ in range(7):  # from the sixth time on, the server may keep a plan
                read(step)
        do(
            "insert into {s}.session (place, pending, since, fence, nonce, owner) select 's:' || i, 1, i, 1, 1, "
            "case when i < 20 then 7 when mod(i, 3) > 0 then 6 end from generate_series(1, %s) i",
            (MANY,),
        )
        do(
            "insert into {s}.message (place, lane, session, body, route, digest, repeat, first, token, taken_by, state)"
            " select 's:' || 1 + mod(i, %s), 'main', (1 + mod(i, %s))::text, '', '', '', 0, false, i, 7, "
            "case when i < %s then 'accepted' else 'done' end from generate_series(1, 3 * %s) i",
            (MANY, MANY, MANY, MANY),
        )
        do(
            "insert into {s}.message (place, lane, session, body, route, digest, repeat, first, token, taken_by) "
            "select 's:1', 'main', '1', '', '', '', 0, false, -i, 7 from generate_series(1, %s) i",
            (MANY,),
        )
        do(
            "insert into {s}.entry (place, incarnation, seq, line) "
            "select 's:1', 0, -i, '' from generate_series(1, %s) i",
            (MANY,),
        )
        found = do("select id from {s}.message where place = 's:11' and state = 'accepted'").fetchone()
        assert found is not None
        figures = [(step.statement, step.values, read(step)) for step in changes(link, found[0])]
    assert [figure for figure in figures if figure[-1] > MOST_READ] == []
