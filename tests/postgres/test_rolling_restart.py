"""A node that stops: what waits is given back at once, and other nodes go on with it while its runs finish."""

from __future__ import annotations

import anyio
import pytest

from lanes import GroupSpec, LaneSpec, RunState
from runtime import PostgresStore, Supervisor
from runtime.postgres import ownership

pytestmark = pytest.mark.anyio


@pytest.mark.failure("G21")
async def test_what_waits_on_a_node_that_stops_is_answered_elsewhere_while_its_runs_finish(pg, schema, monkeypatch):
    monkeypatch.setattr(ownership, "LINGER_S", 60.0)
    store = PostgresStore(pg.dsn, schema=schema, ttl=5.0, create=True)
    go_on, begun, by = anyio.Event(), anyio.Event(), list[tuple[str, str]]()

    def node(name):
        async def handle(ctx, messages):
            by.append((name, messages[0].body))
            if messages[0].body == "long":
                begun.set()
                await go_on.wait()
            return name

        lane = LaneSpec("main", handler=handle, group="one")
        return Supervisor(store, lanes=[lane], groups=[GroupSpec("one", slots=1)], node=name)

    one, two = node("one"), node("two")
    with anyio.fail_after(60):
        await one.start()
        assert (await (await one.accept("main", "b1", session="b")).wait()).value == "one"
        long = await one.accept("main", "long", session="a")
        await begun.wait()
        waits = await one.accept("main", "b2", session="b")
        behind = await one.accept("main", "a2", session="a")
        assert waits.run is not None and waits.run.state is RunState.QUEUED
        await two.start()
        later = await two.accept("main", "b3", session="b")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one.stop)
            assert ((await waits.wait()).value, (await later.wait()).value) == ("two", "two")
            assert not go_on.is_set() and one.state == "draining"
            last = await two.accept("main", "a3", session="a")
            go_on.set()
            outcome = await behind.wait()
            assert outcome.value == "two" or behind.state.open  # it has ended, or its process went before it had
            assert ((await last.wait()).value, (await long.wait()).value) == ("two", "one")
        await two.stop()
    assert by == [("one", "b1"), ("one", "long"), ("two", "b2"), ("two", "b3"), ("two", "a2"), ("two", "a3")]
