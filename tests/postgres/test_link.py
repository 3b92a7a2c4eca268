"""The link by itself: what is in one transaction with what, in which order, and what each step is told."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import psycopg
import pytest

from runtime import PostgresStore
from runtime.inbox.rows import MessageState, NewRow
from runtime.postgres.link import Link
from runtime.postgres.messages import PostgresMessages
from runtime.postgres.schema import make
from runtime.postgres.step import Step


class Opening:
    clock_ahead_s = 0.0


def only(connection, text, values=()):
    ((found,),) = connection.execute(text, values).fetchall()
    return found


@pytest.fixture
def store(pg, schema):
    async def prepare():
        connection = await psycopg.AsyncConnection.connect(pg.dsn, autocommit=True)
        await make(connection, schema)
        await connection.close()

    asyncio.run(prepare())
    return PostgresStore(pg.tcp_dsn, schema=schema)


class Loose:
    """A link whose thread is left out: steps are committed, and reported, where a test says so."""

    def __init__(self, store, node=1):
        self.link = Link(store)
        self.link.node = node
        nothing: Any = Opening()
        self.messages = PostgresMessages(self.link, nothing, nothing)
        self.said = []

    def told(self, result, error):
        self.said.append(error or result)

    async def commit(self):
        """One transaction with all that was handed over."""
        batch, connection = list(self.link._writes), await self.link.connect()
        self.link._writes.clear()
        try:
            results = await self.link._commit(connection, batch)
        finally:
            await connection.close()
        self.link._report(batch, results, None)


@pytest.mark.failure("G19")
def test_a_step_that_returns_no_rows_is_done_once_in_its_transaction(store):
    loose = Loose(store)
    loose.messages.serve("nightly", 1.0)
    loose.messages.told([1])
    loose.messages.settle(loose.told)
    asyncio.run(loose.commit())
    assert (loose.said, loose.link.waiting) == ([None], 0)


def test_rows_that_a_step_does_not_understand_are_its_own_error(store):
    loose = Loose(store)
    loose.link.do(Step("select 1 where false", (), lambda rows: rows[0]), loose.told)
    loose.link.do(Step("select 2", (), lambda rows: rows[0][0]), loose.told)
    asyncio.run(loose.commit())
    assert isinstance(loose.said[0], IndexError)
    assert loose.said[1] == 2


def test_of_two_nodes_that_ask_with_the_same_key_at_once_both_have_the_same_question(store, pg, schema):
    """The one that comes second waits for the other's commit, and sees what it has kept."""
    values = "'main', null, '1', '\"who?\"', null, 'null', now(), null"
    found = []

    def second():
        with psycopg.connect(pg.dsn, autocommit=True) as connection:
            found.extend(connection.execute(f"select id from {schema}.asks('two', 'k', {values})").fetchall())

    with psycopg.connect(pg.dsn) as first, psycopg.connect(pg.dsn, autocommit=True) as look:
        first.execute(f"select id from {schema}.asks('one', 'k', {values})")
        other = threading.Thread(target=second)
        other.start()
        waits = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query like %s"
        ends = time.monotonic() + 10
        while not only(look, waits, [f"%{schema}.asks%"]):
            assert time.monotonic() < ends
            time.sleep(0.005)
        first.commit()
        other.join(60)
    assert found == [("one",)]


def test_transactions_of_two_nodes_that_end_and_accept_crosswise_never_wait_for_each_other_in_a_ring(store, pg, schema):
    with psycopg.connect(pg.dsn, autocommit=True) as connection:
        connection.execute(f"insert into {schema}.session (place, owner, pending) values ('s:a', 1, 1), ('s:z', 2, 1)")
        text = (
            f"insert into {schema}.message (place, lane, session, body, route, digest, repeat, first, state, token, "
            "taken_by) values (%s, 'main', %s, '1', '1', '', 0, false, 'started', %s, 1) returning id"
        )
        mine, theirs = (only(connection, text, row) for row in (("s:a", "a", 1), ("s:z", "z", 2)))

    def step(place, key):
        """As `accept`, whose message is another node's: it locks that session."""
        return Step(f"select {{s}}.locked('{place}'), pg_sleep(0.002)", (), lambda rows: key, place)

    one, two = Loose(store, 1), Loose(store, 2)

    async def crosswise():
        for _ in range(20):
            one.messages.end([mine], MessageState.DONE, "", None, None)
            one.link.do(step("s:z", "z"), one.told)
            two.messages.end([theirs], MessageState.DONE, "", None, None)
            two.link.do(step("s:a", "a"), two.told)
            await asyncio.gather(one.commit(), two.commit())

    asyncio.run(crosswise())  # one of a ring is undone by the server, with an error
    assert (one.said, two.said) == (["z"] * 20, ["a"] * 20)


@pytest.mark.failure("G19")
def test_transactions_of_two_nodes_that_make_the_same_sessions_never_wait_for_each_other_in_a_ring(store):
    one, two = Loose(store, 1), Loose(store, 2)

    def make(loose, key):
        """As `accept`, for a session that is not there yet."""
        text = f"select {{s}}.locked('s:{key}'), pg_sleep(0.002)"
        loose.link.do(Step(text, (), lambda rows: key, f"s:{key}"), loose.told)

    async def crosswise():
        for n in range(20):
            for loose, keys in ((one, (f"a{n}", f"z{n}")), (two, (f"z{n}", f"a{n}"))):
                for key in keys:
                    make(loose, key)
            await asyncio.gather(one.commit(), two.commit())

    asyncio.run(crosswise())  # one of a ring is undone by the server, with an error
    assert len(one.said) == len(two.said) == 40


@pytest.mark.parametrize(
    "call", ["started(1, 's:u1', 7, array[1]::bigint[], true)", "started(1, null, null, array[1]::bigint[], false)"]
)
def test_a_start_reads_no_sessions_but_its_own(pg, store, schema, call):
    with psycopg.connect(pg.dsn, autocommit=True) as connection:
        connection.execute(f"insert into {schema}.session (place) select 's:u' || g from generate_series(1, 3000) g")
        connection.execute(f"analyze {schema}.session")
        scans = f"select seq_scan from pg_stat_user_tables where relid = '{schema}.session'::regclass"
        connection.execute("set stats_fetch_consistency = none")
        connection.execute("select pg_stat_force_next_flush()")
        before = only(connection, scans)
        for _ in range(3):
            connection.execute(f"select {schema}.{call}")
        connection.execute("select pg_stat_force_next_flush()")
        assert only(connection, scans) == before


def test_what_was_cut_off_in_a_session_that_is_left_is_put_right_first(store, pg, schema):
    """A body that the database has failed leaves its message as started, and its node may hand the session over."""
    with psycopg.connect(pg.dsn, autocommit=True) as connection:
        connection.execute(f"insert into {schema}.session (place, owner, pending) values ('s:a', 1, 2)")
        text = (
            f"insert into {schema}.message (place, lane, session, body, route, digest, repeat, first, state, token, "
            "taken_by) values ('s:a', 'main', 'a', '1', '1', '', 0, false, %s, %s, 1)"
        )
        connection.execute(text, ("started", 1))
        connection.execute(text, ("accepted", 2))
        assert only(connection, f"select {schema}.left_alone(1, '{{s:a}}', true)") == "s:a"
        assert only(connection, f"select {schema}.left_alone(1, '{{s:a}}', true)") == "s:a"
        states = connection.execute(f"select state from {schema}.message order by id").fetchall()
        assert states == [("unknown",), ("accepted",)]
        assert only(connection, f"select pending from {schema}.session") == 1


def test_what_is_handed_over_after_the_thread_has_ended_is_reported(store):
    async def fails():
        raise ZeroDivisionError

    ended: list[object] = []
    link = Link(store)
    assert link.join(1)
    link.start(lambda call: call(), fails, ended.append)
    assert link.join(60)
    link.node, said = 1, []
    link.do(Step("select 1", (), lambda rows: rows), lambda result, error: said.append(error))
    link.ask(Step("select 1", (), lambda rows: rows), lambda result, error: said.append(error))
    assert [type(error).__name__ for error in (*ended, *said)] == ["ZeroDivisionError", "StoreDown", "StoreDown"]


def test_an_instant_is_served_when_its_message_is_kept(store, pg, schema):
    loose = Loose(store)
    specs: Any = type("Specs", (), {"find": lambda self, lane: type("Spec", (), {"urgency": 1})()})()
    loose.messages._specs, loose.messages.room = specs, lambda: 0
    row = NewRow(lane="main", session=None, body=b"1", route=b"null", dedupe="schedule:nightly:5")
    loose.messages.accept_served("nightly", 5.0, row, 0, loose.told)
    asyncio.run(loose.commit())
    with psycopg.connect(pg.dsn) as connection:
        assert only(connection, f"select count(*) from {schema}.message") == 1
        assert only(connection, f"select count(*) from {schema}.schedule") == 0
    asyncio.run(loose.commit())
    with psycopg.connect(pg.dsn) as connection:
        assert only(connection, f"select served from {schema}.schedule") == 5.0
