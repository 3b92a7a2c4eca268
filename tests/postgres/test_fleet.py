"""A fleet on a store: what each node leaves for operators with its beats, and questions through the database."""

from __future__ import annotations

import asyncio
import logging
import threading
import time

import anyio
import anyio.to_thread
import psycopg
import pytest

from lanes import LaneSpec
from runtime import PostgresStore, Supervisor
from runtime.cli import main
from runtime.fleet import on_store
from runtime.fleet.on_store import OnStore
from runtime.fleet.seen import FleetError
from runtime.status import protocol
from runtime.web.fleet import FleetDashboard
from runtime.web.guard import Guard
from tests import blocking
from tests.postgres.looking import rows
from tests.web.reader import browser, secret_of, tags_of, text_of

pytestmark = pytest.mark.backends("asyncio")
TTL = 6.0


async def hangs(ctx):
    await anyio.sleep_forever()


async def answer(ctx, messages):
    await anyio.sleep_forever()


@pytest.fixture
async def fleet(dsn, schema):
    made = OnStore(PostgresStore(dsn, schema=schema))
    yield made
    await made.aclose()


async def seen_when(fleet, what):
    """The fleet, once `what` is so."""
    with anyio.fail_after(60):
        while not what(seen := await fleet.look()):
            await anyio.sleep(0.05)
    return seen


async def test_nodes_are_seen_with_their_figures_and_asked_whatever_host_they_are_on(pg, dsn, schema, fleet):
    store = PostgresStore(dsn, schema=schema, create=True, ttl=TTL)
    lanes = [LaneSpec("session:*", handler=answer)]
    async with (
        Supervisor(store, node="a", lanes=lanes, drain_timeout=0.0) as one,
        Supervisor(store, node="b", lanes=lanes, drain_timeout=0.0),
    ):
        run = one.submit("main", hangs)
        await one.accept("session:7", "hello")
        seen = await seen_when(
            fleet,
            lambda now: all(p.figures is not None for p in now.processes) and now.processes[0].figures.running > 1,
        )
        a, b = seen.processes
        assert (a.name, a.state, a.open, b.name, b.state) == ("a", "alive", 1, "b", "alive")
        assert a.figures.state == "running" and a.figures.healthy and (seen.sessions, seen.unowned) == (1, 0)
        (session,) = await fleet.sessions()
        assert (session.session, session.process, session.open) == ("7", "a", 1)
        assert await fleet.sessions(process="b") == []

        picture = (await fleet.ask(a.key, protocol.Status(each=5), "me")).status
        assert picture is not None and {row.id for row in picture.runs} >= {run.id}
        assert (await fleet.ask(a.key, protocol.Messages(state="started"), "me")).messages is not None
        stopped = (await fleet.ask(a.key, protocol.Stop(run=run.id, reason="enough"), "me")).stopped
        assert stopped is not None and stopped.asked
        assert (await run.wait()).reason == "enough"
        refusal = (await fleet.ask(b.key, protocol.Stop(run=run.id), "me")).error
        assert refusal is not None and refusal.kind == "unknown_run"
        assert rows(pg, f"select count(*) from {schema}.command") == [(0,)]
        with pytest.raises(FleetError, match="node 17 has gone"):
            await fleet.ask("17", protocol.Ping(), "me")


@pytest.mark.failure("G25")
async def test_a_frozen_node_is_seen_frozen_and_does_not_answer(dsn, schema, fleet, monkeypatch):
    monkeypatch.setattr(on_store, "ANSWERS_WITHIN_S", 0.3)
    store = PostgresStore(dsn, schema=schema, create=True, ttl=TTL)
    ready, on = threading.Event(), threading.Event()

    async def blocks(ctx):
        with blocking.permitted("a body that does not let go of the loop"):
            while not on.is_set():
                time.sleep(0.01)  # noqa: ASYNC251 -- that is the point

    async def main():
        async with Supervisor(store, node="a") as sup:
            with anyio.fail_after(60):
                while getattr(sup.statistics().node, "beats", 0) < 2:
                    await anyio.sleep(0.02)
            ready.set()
            await sup.submit("main", blocks).wait()

    thread = threading.Thread(target=anyio.run, args=(main,))
    thread.start()
    try:
        await anyio.to_thread.run_sync(ready.wait, 60)
        (a,) = (await seen_when(fleet, lambda now: [one for one in now.processes if one.state == "frozen"])).processes
        assert a.figures is not None and a.figures.frozen_s > 0 and a.figures.frozen_at
        assert a.figures.frozen_run.startswith("run ")
        with pytest.raises(FleetError, match=f"node {a.key} does not answer within"):
            await fleet.ask(a.key, protocol.Status(), "me")
    finally:
        on.set()
        await anyio.to_thread.run_sync(thread.join)


async def test_the_command_shows_a_store_and_each_of_its_processes(pg, schema, capfd, monkeypatch):
    async def said(*arguments, command="status"):
        capfd.readouterr()
        code = await anyio.to_thread.run_sync(main, [command, *arguments])
        printed = capfd.readouterr()
        return code, printed.out.splitlines(), printed.err.splitlines()[-1:]

    monkeypatch.setenv("LANES_SCHEMA", schema)
    monkeypatch.setenv("LANES_STORE", pg.tcp_dsn)
    store = PostgresStore(pg.dsn, schema=schema, create=True, ttl=TTL)
    async with (
        Supervisor(store, node="gw-1", drain_timeout=0.0) as sup,
        Supervisor(store, node="gw-0", drain_timeout=0.0) as other,
    ):
        run = sup.submit("main", hangs)
        code, out, _ = await said(str(run.id), "--store", command="stack")
        assert code == 0 and out[0].startswith(f"run {run.id} on lane main (pid ")
        code, out, err = await said(str(run.id), "--store", "--node", "gw-0", command="stop")
        assert (code, out) == (1, []) and f"run: {run.id} is not known here" in err[0]
        code, out, err = await said("7", "--store", command="stop")
        assert (code, out) == (1, []) and "has it: gw-0, gw-1" in err[0]
        extra = sup.submit("main", hangs)
        code, out, _ = await said(str(extra.id), "--store", "--reason", "enough", command="stop")
        assert code == 0 and (await extra.wait()).reason == "enough"
        assert not other.runs()
        await other.stop()
        code, out, _ = await said("--store")
        assert (
            code == 0
            and out[0].startswith("1 process on postgresql://")
            and out[0].endswith("; 0 sessions: 0 conducted")
        )
        assert out[2] == "PROCESSES" and out[3].startswith("  gw-1  alive  ")
        code, out, _ = await said("--store", pg.tcp_dsn, "--node", "gw-1")
        assert code == 0 and any(line.startswith(f"  run {run.id}  main  ran ") for line in out)
        code, out, err = await said("--store", "--node", "gw-2")
        assert (code, out) == (2, []) and "--node: 'gw-2' is no process; allowed: gw-1 (" in err[0]
        with psycopg.connect(pg.dsn, autocommit=True) as connection:
            connection.execute(
                f"insert into {schema}.node (id, name, host, pid, ttl, grace) values (7, 'x', 'h', 1, 0, 0)"
            )
        code, out, _ = await said("--store")
        assert code == 1 and out[1].startswith("PROBLEM: x: it is dead, last heard of ")
        assert (await said("--store", "--socket", "/there"))[0] == 2
    monkeypatch.setenv("LANES_STORE", "")
    assert "--store: nothing was given, and $LANES_STORE is empty" in (await said("--store"))[2][0]


async def test_what_cannot_be_looked_at_is_one_line_until_it_can(dsn, schema, fleet):
    away = OnStore(PostgresStore("postgresql://nobody@127.0.0.1:1/none", schema=schema))
    with pytest.raises(FleetError, match="cannot be reached"):
        await away.look()
    await away.aclose()
    for _ in range(2):
        with pytest.raises(FleetError, match="has no schema"):
            await fleet.look()
    async with Supervisor(PostgresStore(dsn, schema=schema, create=True), node="a"):
        assert len((await fleet.look()).processes) == 1


async def test_those_who_wait_for_another_question_wait_no_longer_than_for_their_own(monkeypatch):
    monkeypatch.setattr(on_store, "ANSWERS_WITHIN_S", 0.02)
    monkeypatch.setattr(on_store, "_LOOK_WITHIN_S", 0.04)
    away = OnStore(PostgresStore("postgresql://nobody@127.0.0.1:1/none"))
    async with away._lock:  # as long as a database is silent
        with anyio.fail_after(30):
            with pytest.raises(FleetError, match=r"none#lanes has not answered within 0\.02 s"):
                await away.ask("7", protocol.Ping(), "me")
            with pytest.raises(FleetError, match=r"none#lanes has not answered within 0\.04 s"):
                await away.look()
    await away.aclose()


async def test_a_question_that_is_late_is_late_whatever_the_driver_makes_of_its_end(monkeypatch):
    async def silent(connection):
        try:
            await anyio.sleep_forever()
        except asyncio.CancelledError:
            raise psycopg.OperationalError("the connection is closed") from None

    async def connected():
        return None

    monkeypatch.setattr(on_store, "_LOOK_WITHIN_S", 0.02)
    away = OnStore(PostgresStore("postgresql://nobody@127.0.0.1:1/none"))
    monkeypatch.setattr(away, "_connected", connected)
    with pytest.raises(FleetError, match=r"none#lanes has not answered within 0\.02 s"):
        await away._on(silent)
    assert logging.getLogger("psycopg").handlers  # else what it says of that is printed into the screen of `lanes top`


async def test_a_connection_that_is_cut_is_made_anew(dsn, schema, fleet):
    async with Supervisor(PostgresStore(dsn, schema=schema, create=True), node="a"):
        assert len((await fleet.look()).processes) == 1
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'lanes db'"
            )
        with pytest.raises(FleetError):
            await fleet.look()
        assert len((await fleet.look()).processes) == 1


async def test_the_dashboard_shows_a_store_and_the_pages_of_each_process(dsn, schema):
    store = PostgresStore(dsn, schema=schema, create=True, ttl=TTL)
    app = FleetDashboard(
        OnStore(PostgresStore(dsn, schema=schema)), Guard(None, (), allow_control=True), show_content=True
    )
    async with Supervisor(store, node="a", lanes=[LaneSpec("session:*", handler=answer)], drain_timeout=0.0) as sup:
        run = sup.post("session:7", "hello <b>")
        async with browser(app) as web:
            with anyio.fail_after(60):
                while "alive, up" not in text_of(top := (await web.get("/")).text):
                    await anyio.sleep(0.05)
            (link,) = {given["href"] for _, given in tags_of(top) if (given.get("href") or "").endswith("/")} - {"./"}
            with anyio.fail_after(60):
                while "in answer: await anyio.sleep_forever()" not in text_of(page := (await web.get(f"/{link}")).text):
                    await anyio.sleep(0.05)
            data = {"secret": secret_of(page), "do": "stop", "run": run.id}
            done = await web.post(f"/{link}act", data=data, headers={"Sec-Fetch-Site": "same-origin"})
            assert done.status_code == 303 and "Node a, process" in page
            await run.wait()
            assert run.reason == "stopped by an operator"
    await app._fleet.aclose()
