"""Programs of two versions on one schema: an older one goes on, or is refused with one line that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anyio
import anyio.to_thread
import psycopg
import pytest

from lanes import LaneSpec, RunState
from runtime import PostgresStore, Supervisor
from runtime.cli import main
from runtime.inbox.errors import InboxInvalid
from runtime.postgres.functions import FUNCTIONS, TABLES
from runtime.postgres.schema import FORM, STEP, filled
from tests.postgres.looking import rows, until

pytestmark = [pytest.mark.anyio, pytest.mark.backends("asyncio"), pytest.mark.failure("G33")]

OLDER = """
drop function {s}.claimed_fairly;
create or replace function {s}.reaped(p_node bigint) returns table (place text, name text, pending int)
language plpgsql as $$ begin return; end $$;
drop function {s}.ended(bigint, bigint[], text, text, bytea, text[], bigint);
drop function {s}.waits_for(bigint, bigint[], text, text, text[], text[], bigint);
drop function {s}.recovered(bigint, text[], bigint[], bigint);
create or replace function {s}.ended(p_node bigint, p_ids bigint[], p_state text, p_reason text, p_result bytea,
  p_before text[]) returns int language sql as $$ select 0 $$;
create or replace function {s}.waits_for(p_node bigint, p_ids bigint[], p_ask text, p_reason text, p_before text[],
  p_done text[]) returns void language sql as $$ select $$;
create or replace function {s}.recovered(p_node bigint, p_places text[], p_ids bigint[])
  returns table (again bigint, unknown bigint) language sql as $$ select 0::bigint, 0::bigint $$;
alter table {s}.form drop column step;
"""
"""From step 1 back to what stood there before, as far as a test can tell."""


@pytest.fixture
def store(pg, schema):
    return PostgresStore(pg.tcp_dsn, schema=schema, ttl=1.0)


async def init(pg, schema):
    return await anyio.to_thread.run_sync(main, ["db", "init", "--store", pg.dsn, "--schema", schema])


async def answer(ctx, messages):
    return messages[0].body


class OlderProgram:
    """What one of step 0 asks of the database, over a connection whose plans are kept."""

    def __init__(self, connection: psycopg.Connection, schema: str) -> None:
        self._connection, self._schema = connection, schema
        self.ask("insert into {s}.node (id, name, host, pid, ttl, grace) values (1, 'old', 'h', 1, 100, 1)")

    def ask(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        cursor = self._connection.execute(filled(statement, self._schema), values, prepare=True)
        return cursor.fetchall() if cursor.description is not None else []

    def works(self) -> bool:
        """Whether it can start, claim, reap and beat."""
        return (
            self.ask("select max(version) from {s}.form") == [(1,)]
            and self.ask("select {s}.claimed(%s, %s)", 1, 10) == []
            and self.ask("select * from {s}.reaped(%s)", 1) == []
            and self.ask("select {s}.ended(1, %s::bigint[], 'done', '', null, %s::text[])", [0], ["started"]) == [(0,)]
            and len(self.ask("select {s}.waits_for(1, %s::bigint[], 'q', '', %s::text[], %s::text[])", [0], [], []))
            == 1
            and self.ask("select * from {s}.recovered(1, null, %s::bigint[])", [0]) == [(0, 0)]
            and self.ask("update {s}.node set beat_at = clock_timestamp() where id = 1 returning id") == [(1,)]
        )

    def inherits(self) -> bool:
        """Whether it takes over what a dead node had, and gives that back: there, functions call each other."""
        self.ask(
            "insert into {s}.node (id, name, host, pid, ttl, grace, beat_at) "
            "values (2, 'dead', 'h', 1, 1, 0, now() - interval '1 hour')"
        )
        self.ask("insert into {s}.session (place, owner, pending) values ('s:d', 2, 1)")
        self.ask(
            "insert into {s}.message "
            "(place, lane, session, body, route, digest, repeat, first, token, taken_by, state) values "
            "('s:d', 'main', 'd', '1', 'null', '', 0, false, 99, 0, 'started')"
        )
        reaped = self.ask("select place, pending from {s}.reaped(%s) where place is not null", 1) == [("s:d", 0)]
        return (
            reaped
            and self.ask("select state from {s}.message where token = 99") == [("unknown",)]
            and self.ask("select {s}.gone(%s)", 1) == [(1,)]
        )


@pytest.fixture
def older(pg, schema) -> Iterator[OlderProgram]:
    """A program of step 0, and its schema."""
    with psycopg.connect(pg.dsn, autocommit=True) as connection:
        for statement in ("create schema {s}", TABLES, FUNCTIONS, "insert into {s}.form (version) values (1)", OLDER):
            connection.execute(filled(statement, schema))
        yield OlderProgram(connection, schema)


async def test_a_schema_is_brought_up_to_date_while_an_older_program_runs(store, older, pg, schema, capfd):
    assert all(older.works() for _ in range(7))  # the server keeps its plans now
    with pytest.raises(
        InboxInvalid, match=rf"older version \(form 1, step 0; .* step {STEP}\); allowed: `lanes db init`"
    ):
        await Supervisor(store).start()
    assert (await init(pg, schema), capfd.readouterr().out.rpartition(": ")[2]) == (0, "brought up to date\n")
    assert older.works()
    async with Supervisor(store, lanes=[LaneSpec("main", handler=answer)]) as sup:
        assert (await (await sup.accept("main", 1, session="s")).wait(60)).state is RunState.DONE
        assert older.works()
    assert older.inherits()
    assert (await init(pg, schema), capfd.readouterr().out.rpartition(": ")[2]) == (0, "there already\n")


async def test_of_a_schema_of_a_newer_form_nothing_is_touched_and_a_running_node_says_so(store, pg, schema, capfd):
    assert await init(pg, schema) == 0
    async with Supervisor(store) as sup:
        rows(pg, f"update {schema}.form set version = {FORM + 1}")
        assert (await init(pg, schema), capfd.readouterr().err.count("\n")) == (2, 1)
        with pytest.raises(InboxInvalid, match=f"has form {FORM + 1}; this version knows form {FORM}"):
            await Supervisor(store).start()
        rows(pg, f"delete from {schema}.node")  # as when it was silent for too long
        await until(lambda: f"has form {FORM + 1}; this version knows form {FORM}" in str(sup.statistics().inbox))
        assert not sup.statistics().healthy
        rows(pg, f"update {schema}.form set version = {FORM}")
        await until(lambda: sup.statistics().healthy)


@pytest.mark.parametrize("table", ["form (name text)", "form (version text)", "form (version int)"])
async def test_a_schema_of_something_else_is_left_alone(store, pg, schema, table):
    rows(pg, f"create schema {schema}; create table {schema}.{table}")
    with pytest.raises(InboxInvalid, match=r"no schema .lanes_\w+. of ours; allowed: `lanes db init`"):
        await Supervisor(store).start()
    assert await init(pg, schema) == 1
    assert rows(pg, "select tablename from pg_tables where schemaname = %s", schema) == [("form",)]


async def test_a_call_of_an_older_program_can_mean_one_function_only(store, pg, schema):
    """Of two functions of one name, none has defaults for arguments: PostgreSQL would find neither."""
    assert await init(pg, schema) == 0
    text = (
        "select proname from pg_proc where pronamespace = %s::regnamespace group by proname "
        "having count(*) > 1 and sum(pronargdefaults) > 0"
    )
    assert rows(pg, text, schema) == []
