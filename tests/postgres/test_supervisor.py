"""A supervisor on a store: messages, transcripts, leases, resets, and the death of another process."""

from __future__ import annotations

import json
import sys
import textwrap
import time

import anyio
import pytest
from prometheus_client import CollectorRegistry

from lanes import LaneSpec, RetrySpec, RunState
from locks import LeaseLost, TranscriptError
from runtime import NodeLost, PostgresStore, StoreDown, Supervisor
from runtime.cli import status
from runtime.metrics import SupervisorCollector
from runtime.status import protocol
from runtime.status.handlers import Handlers
from tests import ROOT
from tests.postgres.looking import rows, until

pytestmark = pytest.mark.anyio


async def answer(ctx, messages):
    for message in messages:
        await ctx.session.append({"got": message.body})
    await ctx.finish({"answered": [message.body for message in messages]}, "kept")


@pytest.fixture
def store(pg, schema):
    return PostgresStore(pg.tcp_dsn, schema=schema, ttl=1.0, create=True)


async def test_a_message_is_answered_and_kept_as_done_with_its_answer(store, pg, schema):
    async with Supervisor(store, lanes=[LaneSpec("main", handler=answer)]) as sup:
        accepted = await sup.accept("main", {"n": 1}, session="alice")
        outcome = await accepted.wait(60)
        assert (outcome.state, accepted.new) == (RunState.DONE, True)
        again = await sup.accept("main", {"n": 1}, session="alice", dedupe="a")
        assert (await sup.accept("main", {"n": 1}, session="alice", dedupe="a")).id == again.id
        await again.wait(60)
    lines = [json.loads(line) for (line,) in rows(pg, f"select line from {schema}.entry order by seq")]
    assert lines == [{"got": {"n": 1}}, {"answered": [{"n": 1}]}] * 2
    assert rows(pg, f"select state, result from {schema}.message order by id") == [("done", b'"kept"')] * 2
    assert rows(pg, f"select owner, pending from {schema}.session") == [(None, 0)]
    assert rows(pg, f"select count(*) from {schema}.node") == [(0,)]


async def test_a_lease_keeps_notes_out_and_replaces_what_was_read(store):
    async def conducts(ctx, go_on, begun):
        async with ctx.session.lease() as lease:
            await lease.append_many([{"n": 1}, {"n": 2}])
            begun.set()
            await go_on.wait()
            read = await lease.read()
            await lease.replace([{"sum": 3}], through=read.position)
        with pytest.raises(LeaseLost):
            await lease.append({"late": True})
        return read

    async def notes(ctx):
        await ctx.session.append({"note": True})

    async with Supervisor(store) as sup:
        begun, go_on = anyio.Event(), anyio.Event()
        run = sup.submit("main", conducts, go_on, begun, session="s")
        await begun.wait()
        note = sup.submit("main", notes, session="s", turn=False)
        await anyio.sleep(0.1)
        assert note.outcome is None
        go_on.set()
        assert await run.result() == [{"n": 1}, {"n": 2}]
        await note.result()

        async def reads(ctx):
            return await ctx.session.read(), await ctx.session.read(last=1)

        whole, last = await sup.run("main", reads, session="s")
        assert (whole, last) == ([{"sum": 3}, {"note": True}], [{"note": True}])


async def test_after_a_reset_the_session_is_empty_and_an_old_position_is_refused(store, pg, schema):
    async def writes(ctx):
        return await ctx.session.append({"old": True})

    async def reads(ctx):
        return await ctx.session.read()

    async with Supervisor(store) as sup:
        position = await sup.run("main", writes, session="s")
        assert str(await sup.reset("s")).startswith(f"{store.name}/s.reset.")
        assert await sup.run("main", reads, session="s") == []
        assert await sup.reset("s") is None
        sessions = sup._scheduler.board.sessions.store
        with pytest.raises(TranscriptError, match="replaced or reset"):
            async for _ in sessions.stream(f"{store.name}/s", after=position):
                pass
    assert rows(pg, f"select count(*) from {schema}.entry where incarnation = 0") == [(1,)]


CHILD = textwrap.dedent(
    """
    import sys, anyio
    from lanes import LaneSpec
    from runtime import PostgresStore, Supervisor

    async def hangs(ctx, messages):
        await ctx.session.append({"began": messages[0].body})
        print("began", flush=True)
        await anyio.sleep_forever()

    async def main(dsn, schema):
        store = PostgresStore(dsn, schema=schema, ttl=1.0)
        lanes = [LaneSpec("main", handler=hangs), LaneSpec("safe", handler=hangs, repeat=True)]
        async with Supervisor(store, lanes=lanes, node="child") as sup:
            await sup.accept("main", "first", session="a")
            await sup.accept("main", "second", session="a")
            await sup.accept("safe", "third", session="b")
            await anyio.sleep_forever()

    anyio.run(main, *sys.argv[2:], backend=sys.argv[1])
    """
)


@pytest.mark.failure("G17")
async def test_what_a_killed_process_had_is_taken_over(store, pg, schema, anyio_backend_name):
    told: list[str] = []

    async def tell(ctx, messages):
        told.extend(message.body for message in messages)
        await ctx.session.append({"unknown": [message.body for message in messages]})

    specs = [LaneSpec("main", handler=answer, on_unknown=tell), LaneSpec("safe", handler=answer, repeat=True)]
    async with Supervisor(store, lanes=specs) as sup:
        arguments = [sys.executable, "-c", CHILD, anyio_backend_name, pg.tcp_dsn, schema]
        child = await anyio.open_process(arguments, cwd=ROOT, stderr=None)
        try:
            assert child.stdout is not None
            said = b""
            with anyio.fail_after(60):
                while said.count(b"began\n") < 2:
                    said += await child.stdout.receive()
        finally:
            child.kill()
            await child.aclose()
        killed = time.monotonic()
        await until(lambda: dict(rows(pg, f"select state, count(*) from {schema}.message group by 1")) == ENDED)
        assert time.monotonic() - killed < 20
        assert told == ["first"]
        assert [row.state.value for row in await sup.unknown()] == ["unknown"]
    lines = rows(pg, f"select place, line from {schema}.entry order by place, seq")
    assert [(place, *json.loads(line).items()) for place, line in lines] == [
        ("s:a", ("began", "first")),
        ("s:a", ("unknown", ["first"])),
        ("s:a", ("got", "second")),
        ("s:a", ("answered", ["second"])),
        ("s:b", ("began", "third")),
        ("s:b", ("got", "third")),
        ("s:b", ("answered", ["third"])),
    ]


ENDED = {"unknown": 1, "done": 2}


async def test_a_message_accepted_on_one_node_is_answered_on_the_one_that_has_its_session(store):
    by = []

    def handler_of(name):
        async def handler(ctx, messages):
            by.append((name, messages[0].body))
            await anyio.sleep(0.2 if messages[0].body == "first" else 0)
            return name

        return handler

    one = Supervisor(store, lanes=[LaneSpec("main", handler=handler_of("one"))], node="one")
    two = Supervisor(store, lanes=[LaneSpec("main", handler=handler_of("two"))], node="two")
    async with one, two:
        first = await one.accept("main", "first", session="s")
        second = await two.accept("main", "second", session="s")
        assert second.run is None
        assert (await second.wait(60)).value == "one"
        assert (await first.wait(60)).value == "one"
        assert by == [("one", "first"), ("one", "second")]


async def test_work_that_is_no_message_waits_until_the_session_is_handed_over(store):
    async def body(ctx, name):
        await ctx.session.append({"by": name})
        return [record["by"] for record in await ctx.session.read()]

    async with Supervisor(store, node="one") as one, Supervisor(store, node="two") as two:
        assert await one.run("main", body, "one", session="s") == ["one"]
        assert await two.run("main", body, "two", session="s") == ["one", "two"]
        assert await one.run("main", body, "one", session="s") == ["one", "two", "one"]


@pytest.mark.failure("G18")
async def test_a_node_that_was_cut_off_ends_its_runs_and_comes_back(store, pg, schema, proxy):
    begun = anyio.Event()

    async def hangs(ctx, messages):
        begun.set()
        await anyio.sleep_forever()

    cut = PostgresStore(pg.dsn_at(proxy.port), schema=schema, ttl=1.0)
    whole = Supervisor(store, lanes=[LaneSpec("main", handler=answer)], node="whole")
    async with whole, Supervisor(cut, lanes=[LaneSpec("main", handler=hangs)], node="cut") as sup:
        accepted = await sup.accept("main", 1, session="s")
        await begun.wait()
        run = accepted.run
        assert run is not None
        proxy.hold()
        with anyio.fail_after(60):
            outcome = await run.wait()
        assert outcome.state is RunState.CANCELLED
        assert "node" in outcome.reason
        with pytest.raises(StoreDown):
            await sup.accept("main", 2, session="s")
        await until(lambda: rows(pg, f"select state from {schema}.message") == [("unknown",)])
        proxy.pass_on()
        await until(lambda: len(rows(pg, f"select id from {schema}.node")) == 2)
        done = await whole.accept("main", 3, session="other")
        assert (await done.wait(60)).state is RunState.DONE


async def test_a_run_that_the_database_fails_is_put_right_without_a_restart(store, pg, schema):
    """Its message is repeated where the lane says so, and unknown otherwise."""
    tries: list[object] = []

    async def handler(ctx, messages):
        tries.append(messages[0].body)
        if tries.count(messages[0].body) == 1:
            raise StoreDown("the database is full, say", path="")
        await ctx.finish({"answered": messages[0].body})

    specs = [LaneSpec("main", handler=handler), LaneSpec("safe", handler=handler, repeat=True)]
    async with Supervisor(store, lanes=specs) as sup:
        await sup.accept("main", "once", session="a")
        repeated = await sup.accept("safe", "twice", session="b")
        assert (await repeated.wait(60)).state is RunState.DONE
        await until(lambda: ("unknown",) in rows(pg, f"select state from {schema}.message"))
    assert sorted(map(str, tries)) == ["once", "twice", "twice"]
    assert rows(pg, f"select pending from {schema}.session") == [(0,), (0,)]


async def test_a_message_that_was_ended_elsewhere_is_given_to_no_body(store, pg, schema):
    """As one that is parked on two nodes, and resubmitted on both."""
    given: list[object] = []

    async def fails(ctx, messages):
        given.append(messages[0].body)
        raise ValueError("always")

    lanes = [LaneSpec("main", handler=fails, retry=RetrySpec(attempts=2, wait=0.01))]
    async with Supervisor(store, lanes=lanes) as sup:
        accepted = await sup.accept("main", "broken", session="s")
        await accepted.wait(60)
        await until(sup.parked)
        rows(pg, f"update {schema}.message set state = 'cancelled' returning 1")
        again = sup.resubmit(sup.parked()[0].run.id)
        with anyio.fail_after(60):
            outcome = await again.wait()
        assert isinstance(outcome.error, NodeLost)
    assert given == ["broken", "broken"]


async def test_an_append_that_was_refused_takes_no_number(store):
    """An append under a lost lease, and one that was cancelled while another run held the lease."""

    async def holds(ctx, held, let_go):
        async with ctx.session.lease() as lease:
            held.set()
            await let_go.wait()
            await lease.append({"note": True})

    async def conducts(ctx, sup):
        await ctx.session.append({"n": 1})
        held, let_go = anyio.Event(), anyio.Event()
        other = sup.submit("main", holds, held, let_go, session="s", turn=False)
        await held.wait()
        with anyio.move_on_after(0.1):
            await ctx.session.append({"cancelled": True})
        let_go.set()
        await other.result()
        await ctx.session.append({"n": 2})
        async with ctx.session.lease() as lease:
            await sup._scheduler.board.sessions.write(
                "update {s}.session set write_nonce = 1 where place = %s returning 1", ("s:s",), ctx.session.path
            )
            with pytest.raises(LeaseLost):
                await lease.append({"unlocked": True})
            await sup._scheduler.board.sessions.write(
                "update {s}.session set write_nonce = null where place = %s returning 1", ("s:s",), ctx.session.path
            )
        await ctx.session.append({"n": 3})
        return await ctx.session.read()

    async with Supervisor(store) as sup:
        with anyio.fail_after(60):
            assert await sup.run("main", conducts, sup, session="s") == [{"n": 1}, {"note": True}, {"n": 2}, {"n": 3}]


async def test_a_message_begins_where_there_is_a_slot_and_waits_only_for_its_own_session(store):
    began: list[tuple[str, object]] = []
    go_on = anyio.Event()

    def lanes_of(name):
        async def handler(ctx, messages):
            began.append((name, messages[0].body))
            await go_on.wait()

        return [LaneSpec("main", handler=handler, capacity=2)]

    async with Supervisor(store, lanes=lanes_of("one"), node="one") as one:
        await one.accept("main", "first", session="a")
        await one.accept("main", "second", session="a")
        await one.accept("main", "third", session="a")
        await one.accept("main", "beside", session="b")  # what waits behind `first` takes no slot
        await until(lambda: len(began) == 2)
        async with Supervisor(store, lanes=lanes_of("two"), node="two"):
            elsewhere = await one.accept("main", "elsewhere", session="c")
            await until(lambda: len(began) == 3)
            assert began == [("one", "first"), ("one", "beside"), ("two", "elsewhere")]
            go_on.set()
            assert (await elsewhere.wait(60)).state is RunState.DONE


async def test_statistics_metrics_and_the_status_line_say_how_a_node_is(store):
    def scraped(sup):
        registry = CollectorRegistry(auto_describe=False)
        registry.register(SupervisorCollector(sup))
        samples = [sample for family in registry.collect() for sample in family.samples]
        return {one.name: one.value for one in samples if one.name.startswith("lanes_node_")}

    sup = Supervisor(store, lanes=[LaneSpec("main", handler=answer)], node="gw-1")
    async with sup:
        await (await sup.accept("main", 1, session="s")).wait(60)
        now, values = sup.statistics().node, scraped(sup)
        assert now is not None
        assert (now.id > 0, now.sessions, now.claimed, now.given_back) == (True, 1, 0, 0)
        assert 0 < now.lease_left_s <= store.ttl
        assert values["lanes_node_sessions"] == 1
        assert 0 < values["lanes_node_lease_left_seconds"] <= store.ttl
        picture = Handlers(sup).answer(protocol.Status(), "a test").status
        assert picture is not None
        (line,) = [line for line in status.lines(picture) if line.startswith("node")]
        assert line.startswith("node gw-1: conducts 1, may be silent for ")
        await until(lambda: (now := sup.statistics().node) is not None and now.given_back == 1 and now.beats > 0)
    over = sup.statistics().node
    assert over is not None
    assert (over.id, over.lease_left_s, over.sessions) == (0, 0.0, 0)
