"""Sessions that are given back while the network fails, and what a node does when its server is away."""

from __future__ import annotations

import time
from typing import Any

import anyio
import psycopg
import pytest

from runtime import PostgresStore, Supervisor
from runtime.postgres.life import Life
from runtime.postgres.link import Link

pytestmark = [pytest.mark.anyio, pytest.mark.backends("asyncio", "trio")]


@pytest.fixture
def store(pg, schema):
    return PostgresStore(pg.tcp_dsn, schema=schema, ttl=1.0, create=True)


def rows(pg, statement, *values):
    with psycopg.connect(pg.dsn, autocommit=True) as connection:
        found = connection.execute(statement, values)
        return found.fetchall() if found.description else []


async def until(condition, seconds=20.0):
    with anyio.fail_after(seconds):
        while not condition():
            await anyio.sleep(0.02)


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
        return await beat(self, connection)

    monkeypatch.setattr(Life, "_beat", beats)
    async with Supervisor(store) as sup:
        inbox: Any = sup._inbox
        life = inbox.store._life.life
        life.clock_ahead_s = 99.0  # as after the clock of this machine was set
        await until(lambda: life.beats)
        assert life.alive()
        assert abs(life.clock_ahead_s) < 10
    assert failed[-1] - failed[0] < 0.9
