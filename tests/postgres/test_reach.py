"""From any node: what another one conducts is steered, interrupted, cancelled, reset, found and waited for."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from lanes import InvalidLane, LaneSpec, RunState
from runtime import Accepted, PostgresStore, RunSeen, StoreDown, Supervisor
from tests.postgres.looking import rows

pytestmark = pytest.mark.backends("asyncio", "trio")


@pytest.fixture
def store(pg, schema):
    return PostgresStore(pg.tcp_dsn, schema=schema, ttl=5.0, create=True)


class Bodies:
    """What the handlers of all nodes have been given, and when one may go on."""

    def __init__(self):
        self.began, self.go_on = anyio.Event(), anyio.Event()
        self.got = []

    def of(self, name, **settings):
        async def handler(ctx, messages):
            self.got.append((name, [message.body for message in messages]))
            await ctx.session.append({"by": name, "got": [message.body for message in messages]})
            self.began.set()
            if messages[0].body == "hang":
                await anyio.sleep_forever()
            if messages[0].body == "listen":
                heard = await ctx.inbox.receive()
                self.got.append((name, heard.body))
                return heard.body
            if messages[0].body == "wait":
                await self.go_on.wait()
            return name

        return LaneSpec("main", handler=handler, **settings)


@asynccontextmanager
async def two_nodes(store, bodies, **settings):
    one = Supervisor(store, lanes=[bodies.of("one", **settings)], node="one")
    two = Supervisor(store, lanes=[bodies.of("two", **settings)], node="two")
    with anyio.fail_after(30):
        async with one, two:
            yield one, two


@pytest.mark.failure("G23")
async def test_a_cancel_reaches_what_runs_and_what_waits_on_another_node(store, pg, schema):
    bodies = Bodies()
    async with two_nodes(store, bodies) as (one, two):
        running = await one.accept("main", "hang", session="s")
        await bodies.began.wait()
        waiting = await two.accept("main", "later", session="s")
        other = await one.accept("main", "wait", session="t")
        assert two.cancel(session="s") == 0
        assert await two.everywhere.cancel(session="s", reason="stop said so") == 2
        for accepted in (running, waiting):
            outcome = await accepted.wait(60)
            assert (outcome.state, outcome.reason) == (RunState.CANCELLED, "stop said so")
        assert other.outcome is None
        assert await two.everywhere.cancel(message=other.id, queued=False) == 1
        assert (await other.wait(60)).state is RunState.CANCELLED
        assert await two.everywhere.cancel(message=other.id) == 0
        with pytest.raises(InvalidLane):
            await two.everywhere.cancel(message=0)
    assert rows(pg, f"select count(*) from {schema}.command") == [(0,)]


async def test_a_cancel_reaches_what_waits_on_disk_only_and_what_waits_to_be_handed_a_session(store):
    bodies = Bodies()
    async with two_nodes(store, bodies) as (one, two):
        running = await one.accept("main", "hang", session="s")
        await bodies.began.wait()
        wants = two.submit("cron", anyio_sleep, session="s")
        on_disk = await one.accept("main", "later", session="s")
        while on_disk.run is not None:  # until its wish is known: what comes for the session now is for it
            on_disk = await one.accept("main", "later", session="s")
        assert await one.everywhere.cancel(session="s") >= 3
        outcomes = [await running.wait(60), await wants.wait(), await on_disk.wait(60)]
        assert [outcome.state for outcome in outcomes] == [RunState.CANCELLED] * 3
        assert await one.everywhere.cancel(session="s") == 0


@pytest.mark.failure("G23")
async def test_messages_from_another_node_steer_and_interrupt(store):
    bodies = Bodies()
    async with two_nodes(store, bodies, when_busy="steer") as (one, two):
        listens = await one.accept("main", "listen", session="s")
        await bodies.began.wait()
        heard = await two.accept("main", "left!", session="s")
        assert (await listens.wait(60)).value == "left!"
        assert (await heard.wait(60)).value == "left!"
        bodies.began = anyio.Event()
        hangs = await one.accept("main", "hang", session="s")
        await bodies.began.wait()
        instead = await two.accept("main", "instead", session="s", when_busy="interrupt")
        assert (await instead.wait(60)).value == "one"
        assert (await hangs.wait(60)).state is RunState.SUPERSEDED


async def test_runs_are_found_on_any_node_and_have_one_id(store):
    bodies = Bodies()
    async with two_nodes(store, bodies) as (one, two):
        accepted = await one.accept("main", "wait", session="s")
        await bodies.began.wait()
        mine = two.submit("cron", anyio_sleep, session="t")
        (seen,) = await two.everywhere.runs(session="s")
        assert isinstance(seen, RunSeen)
        run = accepted.run
        assert run is not None
        assert (seen.id, seen.node, seen.state, seen.messages) == (run.id, "one", RunState.RUNNING, [accepted.id])
        assert {one.node for one in await one.everywhere.runs()} == {"one", "two"}
        assert run.id // 10**10 != mine.id // 10**10 > 0
        bodies.go_on.set()
        await accepted.wait(60)
        found = await two.everywhere.find(run.id)
        assert found is not None and found.state is RunState.DONE
        assert await two.everywhere.find(7) is None
        await two.everywhere.cancel()


async def anyio_sleep(ctx):
    await anyio.sleep_forever()


async def test_events_of_another_node_come_while_somebody_reads_them(store, pg, schema):
    began, heard = anyio.Event(), anyio.Event()

    async def emits(ctx, messages):
        began.set()
        n = 0
        while not heard.is_set():
            ctx.emit({"n": n})
            await anyio.sleep(0.01)
            n += 1
        for event in (object(), "x" * (2 << 20), "last"):
            ctx.emit(event)

    lanes = [LaneSpec("main", handler=emits)]
    with anyio.fail_after(30):
        async with Supervisor(store, lanes=lanes, node="one") as one, Supervisor(store, lanes=lanes, node="two") as two:
            accepted = await one.accept("main", 1, session="s")
            await began.wait()
            left_early = two.everywhere.events(accepted.id)
            assert [event["n"] async for event in _first(left_early, 3)][1:] != []
            await left_early.aclose()
            events, got = two.everywhere.events(accepted.id), list[Any]()
            while "over" not in got:  # a reader that is cancelled in between misses nothing
                with anyio.move_on_after(0.01):
                    got.append(await anext(events, "over"))
                if len(got) == 9:
                    heard.set()
            got.pop()
            numbers = [event["n"] for event in got[:-1]]
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
            assert (got[-1], events.dropped) == ("last", 2)
            mine = [event async for event in one.everywhere.events(accepted.id)]
            assert mine == []
            for message, buffer in ((0, 1), (1, 0)):
                with pytest.raises(InvalidLane):
                    two.everywhere.events(message, buffer)
    assert rows(pg, f"select count(*) from {schema}.command") == [(0,)]


async def _first(events, number):
    for _ in range(number):
        yield await events.__anext__()


async def test_what_was_emitted_before_the_message_ended_is_read_afterwards(store):
    began, heard = anyio.Event(), anyio.Event()

    async def emits(ctx, messages):
        began.set()
        while not heard.is_set():
            ctx.emit("more")
            await anyio.sleep(0.01)
        ctx.emit("last")

    lanes = [LaneSpec("main", handler=emits)]
    with anyio.fail_after(30):
        async with Supervisor(store, lanes=lanes, node="one") as one, Supervisor(store, lanes=lanes, node="two") as two:
            accepted = await one.accept("main", 1, session="s")
            await began.wait()
            events = two.everywhere.events(accepted.id)
            assert await anext(events) == "more"
            heard.set()
            await accepted.wait(60)
            assert [event async for event in events][-1] == "last"


async def test_events_go_on_where_the_message_goes(store):
    """Its node stops, and the one that listens repeats it."""

    def lane_of(name):
        async def emits(ctx, messages):
            ctx.emit(name)
            await anyio.sleep(0.02)
            while name == "one" or not ended.is_set():
                ctx.emit(name)
                await anyio.sleep(0.02)

        return LaneSpec("main", handler=emits, repeat=True)

    ended = anyio.Event()
    one = Supervisor(store, lanes=[lane_of("one")], node="one")
    with anyio.fail_after(30):
        async with Supervisor(store, lanes=[lane_of("two")], node="two") as two, anyio.create_task_group() as group:
            await one.start()
            accepted = await one.accept("main", 1, session="s")
            heard = list[str]()
            async for event in two.everywhere.events(accepted.id):
                heard.append(event)
                if heard == ["one"]:
                    group.start_soon(_stop, one)
                if event == "two":
                    ended.set()
            assert set(heard) == {"one", "two"}


async def _stop(supervisor):
    await supervisor.stop(drain_timeout=0)


@pytest.mark.failure("G23")
async def test_a_reset_ends_and_bars_what_runs_on_another_node(store, pg, schema):
    bodies, refused = Bodies(), []

    async def notes(ctx):
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                try:
                    await ctx.session.append({"note": "late"})
                except Exception as error:
                    refused.append(error)

    async with two_nodes(store, bodies) as (one, two):
        running = await one.accept("main", "hang", session="s")
        await bodies.began.wait()
        waiting = await one.accept("main", "later", session="s")
        note = one.submit("cron", notes, session="s", turn=False)
        async with anyio.create_task_group() as group:
            put_away = []

            async def reset():
                put_away.append(await two.reset("s"))

            group.start_soon(reset)
            with anyio.fail_after(60):
                await running.wait()
                assert (await waiting.wait()).state is RunState.CANCELLED
            after = await one.accept("main", "new", session="s")
            assert (await after.wait(60)).state is RunState.DONE
        assert str(put_away[0]).startswith(f"{store.name}/s.reset.")
        await note.wait()
        assert len(refused) == 1
    lines = rows(pg, f"select incarnation, line from {schema}.entry order by incarnation, seq")
    assert [(number, json.loads(line)["got"]) for number, line in lines] == [(0, ["hang"]), (1, ["new"])]


async def test_a_node_that_is_gone_is_asked_no_more_and_its_heir_is(pg, schema, proxy):
    """What it had falls to the asker, which ends it too."""
    bodies = Bodies()
    mine = PostgresStore(pg.tcp_dsn, schema=schema, ttl=1.0, create=True)
    cut = PostgresStore(pg.dsn_at(proxy.port), schema=schema, ttl=1.0)
    lanes = [bodies.of("mine", repeat=True)]
    async with Supervisor(mine, lanes=lanes, node="mine") as sup, Supervisor(cut, lanes=lanes, node="cut") as other:
        hangs = await other.accept("main", "hang", session="s")
        await bodies.began.wait()
        waiting = await sup.accept("main", "later", session="s")
        proxy.hold()
        with anyio.fail_after(30):
            assert await sup.everywhere.cancel(session="s") >= 1
            assert (await waiting.wait()).state is RunState.CANCELLED
            found = await sup.find_message(hangs.id)
            assert found is not None
            assert (await found.wait()).state is RunState.CANCELLED
        proxy.pass_on()


async def test_a_reset_waits_for_all_nodes_and_ends_nothing_newer(store, pg, schema):
    bodies, meanwhile = Bodies(), list[Accepted]()
    async with two_nodes(store, bodies) as (one, two):
        running = await one.accept("main", "hang", session="s")
        await bodies.began.wait()
        ends = one.everywhere._commands.handlers["reset"]

        async def late(which, upto):
            meanwhile.append(await one.accept("main", "new", session="s"))
            await anyio.sleep(0.2)
            assert rows(pg, f"select max(incarnation) from {schema}.session") == [(0,)]
            await ends(which, upto)

        one.everywhere._commands.handlers["reset"] = late
        assert await two.reset("s") is not None
        assert (await running.wait(60)).state is RunState.CANCELLED
        assert (await meanwhile[0].wait(60)).state is RunState.DONE
    lines = rows(pg, f"select incarnation, line from {schema}.entry order by incarnation, seq")
    assert [(number, json.loads(line)["got"]) for number, line in lines] == [(0, ["hang"]), (1, ["new"])]


async def test_resets_from_two_nodes_at_once_both_end(store):
    bodies = Bodies()
    async with two_nodes(store, bodies) as (one, two):
        running = await one.accept("main", "hang", session="s")
        await bodies.began.wait()
        moved = []

        async def reset(supervisor):
            moved.append(await supervisor.reset("s"))

        async with anyio.create_task_group() as group:
            group.start_soon(reset, one)
            group.start_soon(reset, two)
        assert sorted(map(bool, moved)) == [False, True]
        assert (await running.wait()).state is RunState.CANCELLED


async def test_a_late_answer_of_a_node_that_is_gone_changes_nothing(store, pg, schema):
    async with Supervisor(store, node="one"):
        rows(
            pg, f"insert into {schema}.node (id, name, host, pid, ttl, grace) values (1, 'x', '', 1, 99, 0) returning 1"
        )
        ((command,), _) = rows(pg, f"select id from {schema}.asked(1, 5, 'nothing', '[]', null, null, null) order by 1")
        rows(pg, f"select {schema}.commands_gone(array(select id from {schema}.node where id <> 1))")
        rows(pg, f"select {schema}.said(%s, '7', false)", command)
        assert rows(pg, f"select answer, failed from {schema}.command where id = %s", command) == [("null", True)]


@pytest.mark.failure("G23")
async def test_a_node_that_cannot_do_it_or_does_not_answer_is_named(store):
    bodies = Bodies()
    async with two_nodes(store, bodies) as (one, two):

        async def fails(which, upto):
            raise ValueError("broken")

        one.everywhere._commands.handlers["runs"] = fails
        with pytest.raises(StoreDown, match=r"node one could not do it.*broken"):
            await two.everywhere.runs()

        async def hangs(which, upto):
            await anyio.sleep_forever()

        one.everywhere._commands.handlers["runs"] = hangs
        two.everywhere._commands.within_s = 0.2
        with pytest.raises(StoreDown, match=r"\(one\)"):
            await two.everywhere.runs()


async def test_without_a_store_everywhere_is_this_process(tmp_path):
    bodies = Bodies()
    async with Supervisor(tmp_path, lanes=[bodies.of("me")], inbox=True) as sup:
        accepted = await sup.accept("main", "hang", session="s")
        queued = await sup.accept("main", "later", session="s")
        await bodies.began.wait()
        assert [run.id for run in await sup.everywhere.runs(session="s")] == [1, 2]
        assert await sup.everywhere.cancel(message=queued.id) == 1
        assert await sup.everywhere.cancel(session="s") == 1
        assert (await accepted.wait(60)).state is RunState.CANCELLED
        assert await sup.everywhere.find(99) is None
