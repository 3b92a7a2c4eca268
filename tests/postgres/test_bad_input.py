"""What a store cannot use, or cannot have: one typed error that names it, and all else goes on."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from typing import Any

import anyio
import psycopg
import pytest

from lanes import InvalidLane, LaneSpec, RunState
from lanes.checks import MAX_MESSAGE_BYTES
from locks import process
from runtime import AskClosed, Inbox, PostgresStore, Schedule, StoreDown, Supervisor
from runtime.inbox.errors import InboxInvalid
from runtime.trial.postgres_server import PostgresServer
from tests.postgres.looking import rows, until

pytestmark = [pytest.mark.anyio, pytest.mark.backends("asyncio"), pytest.mark.failure("G34")]
BOTH = pytest.mark.backends("asyncio", "trio")
"""For what waits, is cancelled or is lost; the rest is the same code on either loop."""


@pytest.fixture
def store(pg, schema):
    return PostgresStore(pg.tcp_dsn, schema=schema, ttl=4.0, create=True)  # a busy machine takes a second now and then


async def refused(store, kind, match, **options):
    with pytest.raises(kind, match=match) as caught:
        await Supervisor(store, **options).start()
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["postgresql://[x/y", "postgresql://h\0/d", "postgresql://h/\udc80", "sqlite:///x", 7])
def test_what_is_no_url_is_refused_at_once(url):
    with pytest.raises(InvalidLane, match=r"^store, url: .* allowed: 'postgresql://user@host/database'"):
        PostgresStore(url)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:12/secret@h/d",
        "postgresql://u:a/secret#b@h/d",
        "postgresql://u:a@b/secret@h/d",
        "postgresql://u:a/b?secret@h/d",
        "postgresql://h?password=secret@b",
    ],
)
def test_a_password_that_ends_early_is_refused_and_not_shown(url):
    with pytest.raises(InvalidLane, match=r"has an @ where none can be; allowed: .*percent-encoded") as caught:
        PostgresStore(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url, name",
    [
        ("postgresql://u:a#secret@h:5/d", "postgresql://h:5/d#lanes"),
        ("postgresql://u:a?secret@h/d?x=a@b", "postgresql://h/d#lanes"),
        ("postgres://u:a@secret@[::1]:5,k/d", "postgresql://[::1]:5,k/d#lanes"),
        ("postgresql://u:secret/d", "postgresql://u/d#lanes"),
        ("postgresql://u:5secret/d", "postgresql://u/d#lanes"),
        ("postgresql:///d?host=/run/pg&password=secret", "postgresql:///d#lanes"),
        ("postgresql://u:secret@%2Frun%2Fpg/d", "postgresql://%2Frun%2Fpg/d#lanes"),
    ],
)
def test_a_store_is_named_without_any_part_of_its_password(url, name):
    store = PostgresStore(url)
    assert store.name.replace("postgresql:/d", "postgresql:///d") == name and "secret" not in repr(store)


@pytest.mark.parametrize(
    "url, kind, named",
    [
        ("postgresql://h/x?foo=bar", InboxInvalid, 'store, url: invalid URI query parameter: "foo"; allowed'),
        ("postgresql://u:%secret@h/x", InboxInvalid, "store, url: it has a part that is no percent-encoding; allowed"),
        ("postgresql://u:%#secret@h/x", InboxInvalid, "store, url: it has a part that is no percent-encoding; allowed"),
        ("postgresql://h/x?password=a&secret", InboxInvalid, r"store, url: missing key/value separator .*; allowed"),
        (
            "postgresql://a:secret@127.0.0.1:1/x",
            StoreDown,
            r"127\.0\.0\.1:1/x#lanes cannot be reached .*; allowed: the URL",
        ),
    ],
)
async def test_a_url_that_leads_nowhere_is_named_and_its_password_is_not(url, kind, named):
    await refused(PostgresStore(url), kind, named)


async def test_a_password_and_a_database_that_are_wrong_are_named(pg, schema):
    wrong = f"postgresql://postgres:secret@127.0.0.1:{pg.port}/postgres"
    await refused(PostgresStore(wrong, schema=schema), StoreDown, "cannot be reached .*password authentication failed")
    await refused(PostgresStore(f"{pg.tcp_dsn}x", schema=schema), StoreDown, 'database "postgresx" does not exist')


async def test_what_a_role_or_a_server_may_not_do_is_named(pg, schema, store):
    async with Supervisor(store):
        pass
    rows(pg, f"create role {schema} login password 'x'; grant usage on schema {schema} to {schema}")
    theirs = PostgresStore(f"postgresql://{schema}:x@127.0.0.1:{pg.port}/postgres", schema=schema)
    try:
        await refused(theirs, StoreDown, "cannot be used .*permission denied for table form.*; allowed: a role")
        rows(pg, f"grant select, insert, update, delete on all tables in schema {schema} to {schema}")
        rows(pg, f"alter role {schema} set synchronous_commit = off")
        await refused(theirs, StoreDown, "synchronous_commit=off, and may lose what it has acknowledged; allowed: on")
        rows(pg, f"alter role {schema} reset all; alter role {schema} set default_transaction_read_only = on")
        await refused(theirs, StoreDown, "is read-only; allowed: a role and a database that may write")
        rows(pg, f"alter role {schema} reset all")
        async with Supervisor(theirs) as sup:
            assert sup.statistics().healthy
    finally:
        rows(pg, f"drop owned by {schema}; drop role {schema}")


@BOTH
async def test_a_server_that_becomes_read_only_takes_nothing_more_and_forgets_nothing(store, pg, schema):
    """As one does that is switched over: new and old connections fail."""
    go_on = anyio.Event()

    async def answer(ctx, messages):
        await go_on.wait()
        return messages[0].body

    def read_only(how):
        rows(pg, f"alter role postgres set default_transaction_read_only = {how}")
        with suppress(psycopg.Error):  # all connections are made anew, this one too
            rows(pg, "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'lanes %%'")

    async with Supervisor(store, lanes=[LaneSpec("main", handler=answer, repeat=True)]) as sup:
        kept = await sup.accept("main", 1, session="s")
        try:
            read_only("on")
            with pytest.raises(StoreDown, match="read-only"):
                await sup.accept("main", 2, session="s", dedupe="two")
            await until(lambda: not sup.statistics().healthy)
        finally:
            with psycopg.connect(pg.dsn, autocommit=True) as connection:
                connection.execute("set default_transaction_read_only = off")
                connection.execute("alter role postgres reset all")
        go_on.set()
        await until(lambda: sup.statistics().healthy, 30)
        assert (await kept.wait(30)).state is RunState.DONE
        assert (await (await sup.accept("main", 2, session="s", dedupe="two")).wait(60)).state is RunState.DONE


async def test_a_clock_that_is_wrong_by_an_hour_ends_nothing_too_early_or_too_late(store, pg, schema, monkeypatch):
    monkeypatch.setattr("time.time", lambda now=process.wall: now() + 3600)

    async def handler(ctx, messages):
        if messages[0].answer is not None:
            return messages[0].answer.outcome
        raise await ctx.ask("?", expires=messages[0].body)

    async with Supervisor(store, lanes=[LaneSpec("main", handler=handler)]) as sup:
        await sup.accept("main", 7000)
        await sup.accept("main", 0.05)
        await until(lambda: rows(pg, f"select result from {schema}.message where state = 'done'") != [])
        await until(
            lambda: (
                [row[0] for row in rows(pg, f"select result from {schema}.message where ask is not null")]
                == [b'"expired"']
            )
        )
        assert len(await sup.asks()) == 1


async def asks(ctx, messages):
    if messages[0].body == "ask":
        await ctx.ask("?", key="a\0b")
    return messages[0].body


async def test_text_that_the_database_cannot_have_is_refused_by_the_name_of_its_field(store):
    lanes = [LaneSpec("main", handler=asks), LaneSpec("job:*", handler=asks)]
    async with Supervisor(store, lanes=lanes) as sup:
        for match, call in (
            ("^lane: ", lambda: sup.accept("job:a\0b", 1)),
            ("^dedupe: ", lambda: sup.accept("main", 1, dedupe="a\0b")),
            ("^lane: ", lambda: sup.asks(lane="a\0b")),
            ("^message: ", lambda: sup.accept("main", "x" * (MAX_MESSAGE_BYTES + 1))),
        ):
            with pytest.raises(InvalidLane, match=match):
                await call()
        with pytest.raises(AskClosed):
            await sup.answer("a\0b", "yes")
        outcome = await (await sup.accept("main", "ask")).wait(60)
        assert "key: 'a\\x00b' cannot be kept" in str(outcome.error)
        assert (await (await sup.accept("main", {"a\0b": "\0"})).wait(60)).value == {"a\0b": "\0"}
        assert sup.statistics().healthy


@pytest.mark.parametrize(
    "field, options",
    [
        ("node", {"node": "a\0b"}),
        ("node", {"node": "a\udc80"}),
        ("schedule, name", {"inbox": Inbox(schedules=[Schedule("main", 1, every=timedelta(hours=1), name="a\0b")])}),
    ],
)
def test_names_that_the_database_cannot_have_are_refused_before_it_is_asked(field, options):
    lanes: list[Any] = [LaneSpec("main", handler=asks)]
    with pytest.raises(InvalidLane, match=f"^{field}: .* is not allowed; allowed: UTF-8 without NUL"):
        Supervisor(PostgresStore("postgresql://h/d"), lanes=lanes, **options)


@pytest.fixture
def standby():
    with PostgresServer(standby=True) as server:
        yield server


async def test_a_standby_is_refused(standby):
    await refused(PostgresStore(standby.tcp_dsn), StoreDown, "is a standby; allowed: the primary")
