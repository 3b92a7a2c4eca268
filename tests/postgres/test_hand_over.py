"""What a long torture has found (`tests.postgres.torture`), each by itself: hand-overs, write leases, one order."""

from __future__ import annotations

import threading
import time
from typing import Any

import anyio
import anyio.to_thread
import psycopg
import pytest
from psycopg import sql

from lanes import LaneSpec, RunState
from runtime import PostgresStore, Supervisor
from runtime.inbox.answer import Answer
from runtime.postgres import connection as connections
from runtime.postgres import link
from runtime.postgres import schema as schemas
from runtime.postgres.link import Link
from runtime.postgres.schema import filled
from runtime.postgres.step import Step
from tests.inboxes import service_of

pytestmark = pytest.mark.backends("asyncio", "trio")


@pytest.fixture
def connect(pg, schema):
    """Makes connections whose statements have the schema in the place of `{s}`."""
    opened: list[psycopg.Connection] = []

    def connect():
        connection = psycopg.connect(pg.dsn, autocommit=True)
        opened.append(connection)

        def execute(text, *values):
            found = connection.execute(sql.SQL(text).format(s=sql.Identifier(schema)), values)
            return found.fetchall() if found.description else []

        return execute

    async def make():
        async with await psycopg.AsyncConnection.connect(pg.dsn, autocommit=True) as connection:
            await schemas.make(connection, schema)

    anyio.run(make)
    yield connect
    for connection in opened:
        connection.close()


def join(execute, *nodes):
    for node in nodes:
        execute("insert into {s}.node (id, name, host, pid, ttl, grace) values (%s, 'n', 'h', 1, 60, 0)", node)


def accept(execute, session, lane="main", *, token, node=1):
    text = (
        "select * from {s}.accept(%s, 1, %s, %s, null, null, null, 'null', 'null', null, '', 0, false, null, null, "
        "%s::bigint, %s::bigint, true)"
    )
    return execute(text, f"s:{session}", lane, session, token, node)[0]


def waits_for_a_lock(execute):
    with_deadline = time.monotonic() + 10
    while not execute("select 1 from pg_stat_activity where wait_event_type = 'Lock'"):
        assert time.monotonic() < with_deadline
        time.sleep(0.01)


@pytest.mark.failure("G20")
def test_nothing_is_handed_to_a_node_that_is_leaving(connect):
    leaves, owner = connect(), connect()
    join(owner, 1, 2)
    assert owner("select {s}.wanted(1, 's:a'), {s}.wanted(2, 's:a')") == [(True, False)]
    leaves("begin")
    leaves("select 1 from {s}.node where id = 2 for update")  # as `gone` and `reaped` do first
    assert owner("select {s}.left_alone(1, array['s:a'], false)") == [("s:a",)]
    assert owner("select owner from {s}.session") == [(None,)]
    leaves("commit")


@pytest.mark.failure("G20")
def test_a_node_that_leaves_gives_back_what_it_is_handed_meanwhile(connect):
    leaves, owner = connect(), connect()
    join(owner, 1, 2)
    owner("select {s}.wanted(1, 's:a'), {s}.wanted(2, 's:a')")
    owner("begin")
    owner("select {s}.left_alone(1, array['s:a'], false)")
    leaving = threading.Thread(target=leaves, args=("select {s}.gone(2)",))
    leaving.start()
    waits_for_a_lock(connect())
    owner("commit")
    leaving.join(60)
    assert owner("select owner from {s}.session") == [(None,)]
    assert owner("select id from {s}.node") == [(1,)]


def test_a_write_lease_ends_with_the_node_of_its_holder(connect):
    execute = connect()
    join(execute, 1, 2)
    assert execute("select {s}.write_lease('s:a', 1, 11, 300)") == [(True,)]
    note = "select code from {s}.note('s:a', 2, %s, null, array['{{}}'])"
    assert execute(note, 1) == [("busy",)]
    assert execute("select {s}.write_lease('s:a', 2, 22, 300)") == [(False,)]
    execute("select {s}.gone(1)")
    assert execute(note, 2) == [("ok",)]
    assert execute("select {s}.write_lease('s:a', 2, 22, 300)") == [(True,)]


def test_what_waits_before_a_message_is_named_whatever_its_lane(connect):
    execute = connect()
    join(execute, 1)
    first = accept(execute, "a", "one", token=1)
    second = accept(execute, "a", "two", token=2)
    assert (first[5], second[5]) == ([], [first[0]])
    assert accept(execute, "b", "two", token=3)[5] == []


@pytest.mark.anyio
async def test_a_session_that_nobody_wants_any_more_goes_on(connect, pg, schema):
    async def answer(ctx, messages):
        await ctx.session.append({"n": messages[0].body})

    await anyio.to_thread.run_sync(
        connect(), "insert into {s}.session (place, wanted) values ('s:a', true)"
    )  # the node that wanted it was reaped
    store = PostgresStore(pg.tcp_dsn, schema=schema, ttl=1.0)
    async with Supervisor(store, lanes=[LaneSpec("main", handler=answer)]) as sup:
        accepted = await sup.accept("main", 1, session="a")
        assert (await accepted.wait(60)).state is RunState.DONE


@pytest.mark.anyio
async def test_the_first_answer_stands():
    answer = Answer[int]()
    answer(1, None)
    answer(None, OSError("closed"))
    assert await answer.wait() == 1


@pytest.mark.anyio
async def test_a_session_is_not_handed_to_a_node_that_had_it_meanwhile(connect):
    execute = connect()
    join(execute, 1, 2)
    execute("select {s}.wanted(1, 's:a'), {s}.wanted(2, 's:a')")
    execute("update {s}.session set owner = 2")  # as the reaper of node 1 would
    execute("select {s}.left_alone(2, array['s:a'], false)")
    assert execute("select owner, wanted from {s}.session") == [(None, False)]
    assert execute("select * from {s}.want") == []


@pytest.mark.anyio
async def test_a_node_finds_out_what_it_was_handed(connect, pg, schema):
    async def answer(ctx, messages):
        await ctx.session.append({"n": messages[0].body})

    store = PostgresStore(pg.tcp_dsn, schema=schema, ttl=1.0)
    execute = connect()
    async with Supervisor(store, lanes=[LaneSpec("main", handler=answer)]):
        give = "insert into {s}.session (place, owner) select 's:a', id from {s}.node"
        await anyio.to_thread.run_sync(execute, give)
        with anyio.fail_after(60):
            while await anyio.to_thread.run_sync(execute, "select 1 from {s}.session where owner is not null"):
                await anyio.sleep(0.05)


@pytest.mark.anyio
async def test_a_lane_is_told_by_another_node_if_the_one_that_found_out_has_left(connect, pg, schema):
    told: list[int] = []

    async def answer(ctx, messages):
        await ctx.session.append({"n": messages[0].body})

    async def tell(ctx, messages):
        told.extend(message.id for message in messages)
        raise ValueError("once is enough")

    execute = connect()
    join(execute, 1)
    unknown, _ = accept(execute, "a", token=1)[0], accept(execute, "b", "silent", token=2)
    execute("update {s}.message set state = 'started'")
    execute("select {s}.gone(1)")
    assert execute("select state, told from {s}.message group by 1, 2") == [("unknown", False)]
    store = PostgresStore(pg.tcp_dsn, schema=schema, ttl=1.0)
    lanes = [LaneSpec("main", handler=answer, on_unknown=tell), LaneSpec("silent", handler=answer)]
    async with Supervisor(store, lanes=lanes) as sup:
        later = await sup.accept("main", 1, session="b")
        await later.wait(60)
        with anyio.fail_after(60):
            while not told or await anyio.to_thread.run_sync(
                execute, "select 1 from {s}.session where owner is not null"
            ):
                await anyio.sleep(0.05)
    assert told == [unknown]


def test_a_transaction_that_was_cut_keeps_no_dead_node_alive(connect, pg, schema):
    execute = connect()
    join(execute, 1, 2)
    execute("select {s}.wanted(2, 's:a')")
    with psycopg.connect(pg.dsn, application_name="lanes 2 writes") as cut:
        cut.execute(sql.SQL("select 1 from {} where id = 2 for key share").format(sql.Identifier(schema, "node")))
        execute("update {s}.node set beat_at = beat_at - interval '61 seconds' where id = 2")
        with_deadline = time.monotonic() + 10
        while not (reaped := execute("select place, pending from {s}.reaped(1) where place is not null")):
            assert time.monotonic() < with_deadline
        cut.close()
    assert reaped == [("s:a", 0)]


@pytest.mark.anyio
async def test_what_a_lost_connection_has_locked_is_free_when_it_is_made_anew(connect, pg, schema, monkeypatch):
    async def answer(ctx, messages):
        await ctx.session.append({"n": messages[0].body})

    cut: list[psycopg.AsyncConnection] = []
    commit, close = Link._commit, connections.closed

    async def cut_in_the_middle(self, connection, batch):
        if not cut and batch[0][0].values == ("cut",):
            cut.append(connection)
            await connection.execute("begin")
            await connection.execute(filled("select 1 from {s}.session where place = 's:a' for update", schema))
            raise psycopg.OperationalError("cut")
        return await commit(self, connection, batch)

    async def close_others(connection, *, unless=False):
        return None if connection in cut else await close(connection, unless=unless)

    monkeypatch.setattr(Link, "_commit", cut_in_the_middle)
    monkeypatch.setattr(link, "closed", close_others)
    store = PostgresStore(pg.tcp_dsn, schema=schema, ttl=5.0)
    async with Supervisor(store, lanes=[LaneSpec("main", handler=answer)]) as sup:
        await (await sup.accept("main", 1, session="a")).wait(60)
        settled = Answer[None]()
        assert sup._inbox is not None
        store_of_it: Any = sup._inbox.store
        store_of_it._link.do(Step("select %s::text", ("cut",), lambda _: None), settled)
        with anyio.fail_after(4):  # locks are waited for for five seconds, and that over and over
            await settled.wait()
            await (await sup.accept("main", 2, session="a")).wait()
    cut[0].pgconn.finish()


@pytest.mark.anyio
async def test_a_dead_node_that_cannot_be_reaped_yet_costs_no_beat(connect, pg, schema):
    execute, run = connect(), anyio.to_thread.run_sync
    join(execute, 1)
    execute("select {s}.wanted(1, 's:a'), {s}.wanted(1, 's:b')")
    execute(
        "insert into {s}.message (place, lane, session, body, route, digest, repeat, first, token, taken_by, state) "
        "values ('s:a', 'main', 'a', '1', 'null', '', 0, false, 1, 0, 'started')"
    )
    store = PostgresStore(pg.tcp_dsn, schema=schema, ttl=1.5)
    with psycopg.connect(pg.dsn) as other:
        other.execute(filled("select 1 from {s}.session where place = 's:b' for update", schema))
        other.execute(filled("select 1 from {s}.message for update", schema))
        execute("update {s}.node set beat_at = beat_at - interval '61 seconds' where id = 1")
        async with Supervisor(store) as sup:
            assert sup._inbox is not None
            store_of_it: Any = sup._inbox.store
            with anyio.fail_after(60):
                while not await run(execute, "select 1 from {s}.node where beat_at > joined_at + interval '2 seconds'"):
                    await anyio.sleep(0.05)
            assert not store_of_it._link.reconnects
            other.rollback()
            with anyio.fail_after(60):
                while await run(execute, "select 1 from {s}.node where abs(id) = 1"):
                    await anyio.sleep(0.05)


@pytest.mark.anyio
async def test_a_node_that_does_not_know_yet_what_it_inherited_tells_first_what_is_unknown(connect, pg, schema):
    """As when the answer of `reaped` is lost."""
    said: list[str] = []

    async def answer(ctx, messages):
        said.append(messages[0].body)

    async def tell(ctx, messages):
        said.append(f"unknown: {messages[0].body}")

    store = PostgresStore(pg.tcp_dsn, schema=schema)
    execute = connect()
    async with Supervisor(store, lanes=[LaneSpec("main", handler=answer, on_unknown=tell)]) as sup:
        give = (
            "with n as (select id from {s}.node), "
            "s as (insert into {s}.session (place, owner, pending) select 's:a', id, 1 from n) "
            "insert into {s}.message "
            "(place, lane, session, body, route, digest, repeat, first, token, taken_by, state) "
            "select 's:a', 'main', 'a', body::bytea, 'null', '', 0, false, token, 0, state from (values "
            "('\"1\"', 1, 'unknown'), ('\"2\"', 2, 'accepted')) v (body, token, state)"
        )
        await anyio.to_thread.run_sync(execute, give)
        service_of(sup).replay.look_again()
        with anyio.fail_after(60):
            while len(said) < 2:
                await anyio.sleep(0.02)
    assert said == ["unknown: 1", "2"]
