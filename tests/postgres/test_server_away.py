"""Sessions that are given back while the network fails, and what a node does when its server is away."""

from __future__ import annotations

import time
from typing import Any

import anyio
import psycopg
import pytest

from lanes import LaneSpec, RunState
from runtime import PostgresStore, StoreDown, Supervisor
from runtime.postgres.life import Life
from runtime.postgres.link import Link
from tests.postgres.looking import rows, until

pytestmark = [pytest.mark.anyio, pytest.mark.backends("asyncio", "trio")]


@pytest.fixture
def store(pg, schema):
    return PostgresStore(pg.tcp_dsn, schema=schema, ttl=1.0, create=True)


def lose_the_answer_to(monkeypatch, part):
    """The first transaction with such a step is committed, and the connection lost before anybody hears of it."""
    commit = Link._commit
    lost: list[object] = []

    async def commits(self, connection, batch):
        results = await commit(self, connection, batch)
        if not lost and any(part in step.statement for step, _ in batch) and any(results):
            lost.append(results)
            raise psycopg.OperationalError("the answer was lost")
        return results

    monkeypatch.setattr(Link, "_commit", commits)
    return lost


async def test_a_session_whose_return_was_answered_to_nobody_can_be_had_again(store, pg, schema, monkeypatch):
    async def body(ctx):
        return "done"

    async with Supervisor(store) as sup:
        lost = lose_the_answer_to(monkeypatch, ".left_alone(")
        assert await sup.run("main", body, session="a") == "done"
        await until(lambda: lost)
        ownership: Any = sup._scheduler.board.ownership
        await until(lambda: not ownership.count)
        assert await sup.run("main", body, session="a") == "done"


@pytest.mark.failure("G22")
async def test_a_node_that_cannot_beat_tries_again_at_once_and_not_a_beat_later(store, monkeypatch):
    """A server that is away for most of the time for which a node may be silent is no loss."""
    beat = Life._beat
    failed: list[float] = []

    async def beats(self, connection):
        if len(failed) < 4:
            failed.append(time.monotonic())
            raise OSError("nobody there")
        await beat(self, connection)

    monkeypatch.setattr(Life, "_beat", beats)
    async with Supervisor(store) as sup:
        inbox: Any = sup._inbox
        life = inbox.store._life.life
        life.clock_ahead_s = 99.0  # as after the clock of this machine was set
        await until(lambda: life.beats)
        assert life.alive()
        assert abs(life.clock_ahead_s) < 10
    assert failed[-1] - failed[0] < 0.9


async def test_a_server_that_is_full_takes_nothing_more_and_forgets_nothing(store, pg, schema):
    """Beats still work: the node lives, says what is wrong, and goes on by itself."""
    go_on = anyio.Event()

    async def answer(ctx, messages):
        await go_on.wait()
        await ctx.finish({"answered": messages[0].body})

    async with Supervisor(store, lanes=[LaneSpec("main", handler=answer)]) as sup:
        begun = await sup.accept("main", "before", session="s")
        raises = "begin raise exception 'no space left' using errcode = '53100'; end"
        rows(pg, f"create function {schema}.full() returns trigger language plpgsql as $$ {raises} $$")
        for table in ("message", "entry"):
            each = f"before insert on {schema}.{table} for each row execute function {schema}.full()"
            rows(pg, f"create trigger no_room {each}")
        go_on.set()  # its answer waits
        with anyio.fail_after(60), pytest.raises(StoreDown, match="no space left"):
            await sup.accept("main", "during", session="s", dedupe="d")
        await until(lambda: not sup.statistics().healthy)
        assert begun.outcome is None
        for table in ("message", "entry"):
            rows(pg, f"drop trigger no_room on {schema}.{table}")
        assert (await begun.wait(60)).state is RunState.DONE
        await until(lambda: sup.statistics().healthy)
        assert (await (await sup.accept("main", "during", session="s", dedupe="d")).wait(60)).state is RunState.DONE
    assert rows(pg, f"select line from {schema}.entry order by seq") == [
        ('{"answered":"before"}',),
        ('{"answered":"during"}',),
    ]


@pytest.mark.parametrize("state,held,queued", [("accepted", [], True), ("accepted", [7], False), ("done", [], False)])
async def test_a_message_whose_page_came_before_its_sender_heard_of_it_is_queued_once(store, state, held, queued):
    """Its page may be read before the transaction that accepts it is sent again, after a lost answer."""
    reported: list[Any] = []
    async with Supervisor(store) as sup:
        inbox: Any = sup._inbox
        messages = inbox.store
        messages.in_memory = dict.fromkeys(held)
        row: tuple[Any, ...] = (7, True, True, state, messages._link.node, [])
        messages._taken("s:s", False, lambda taken, _: reported.append(taken), row, None)
        messages.in_memory = inbox.door.in_memory
    assert [taken.elsewhere for taken in reported] == [not queued]
