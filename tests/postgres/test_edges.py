"""What few programs meet: answers that are lost just then, messages that are forgotten early, nodes that are gone."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import anyio
import psycopg
import pytest

from lanes import GroupSpec, InvalidLane, LaneSpec, RetrySpec, RunState
from locks import LeaseLost
from runtime import Inbox, PostgresStore, StoreDown, Supervisor
from runtime.postgres import ownership as owning
from runtime.postgres.errors import NodeLost
from runtime.postgres.life import Life
from runtime.postgres.link import Link
from runtime.postgres.messages import PostgresMessages
from tests.postgres.looking import rows, until

pytestmark = [pytest.mark.anyio, pytest.mark.backends("asyncio")]
BOTH = pytest.mark.backends("asyncio", "trio")
"""For what waits, is cancelled or is lost; the rest is the same code on either loop."""


@pytest.fixture
def store(pg, schema):
    return PostgresStore(pg.tcp_dsn, schema=schema, create=True)


async def hangs(ctx, messages):
    await anyio.sleep_forever()


@BOTH
async def test_a_run_whose_append_was_answered_to_nobody_is_not_told_that_nothing_was_written(
    store, pg, schema, monkeypatch
):
    """Between the two tries, another node gets the session."""
    commit, lost = Link._commit, list[object]()

    async def commits(self, connection, batch):
        results = await commit(self, connection, batch)
        if not lost and any(".append(" in step.statement for step, _ in batch):
            lost.append(results)
            await connection.execute(f"update {schema}.session set owner = 5, fence = fence + 1, nonce = null".encode())
            raise psycopg.OperationalError("the answer was lost")
        return results

    monkeypatch.setattr(Link, "_commit", commits)

    async def body(ctx):
        with pytest.raises(LeaseLost, match="it was done once before, or not at all"):
            await ctx.session.append({"n": 1})
        with pytest.raises(LeaseLost, match="nothing was written"):
            await ctx.session.append({"n": 2})

    async with Supervisor(store) as sup:
        await sup.run("main", body, session="s")
        assert rows(pg, f"select line from {schema}.entry") == [('{"n":1}',)]
        rows(pg, f"update {schema}.session set owner = null")


async def test_a_message_that_is_forgotten_while_something_waits_for_it_has_an_end(store, pg, schema):
    async with Supervisor(store, lanes=[LaneSpec("main", handler=hangs)]) as sup:
        rows(
            pg,
            f"insert into {schema}.node (id, name, host, pid, ttl, grace) values (5, 'other', 'h', 1, 1000, 1); "
            f"insert into {schema}.session (place, owner) values ('s:s', 5)",
        )
        kept = await sup.accept("main", 1, session="s")
        rows(pg, f"delete from {schema}.message")
        with pytest.raises(InvalidLane, match="is not kept"):
            await kept.wait(60)


async def test_what_has_ended_is_kept_for_as_long_as_others_need_to_see_it(store, pg, schema):
    async with Supervisor(store, inbox=Inbox(keep=timedelta(microseconds=1))) as sup:
        inbox: Any = sup._inbox
        assert inbox.keep_s >= 60 + store.ttl + store.grace_s


async def test_a_question_expires_in_time_though_the_node_that_asked_it_is_gone(store, pg, schema, monkeypatch):
    looked, look = list[float | None](), PostgresMessages.next_expiry

    async def looks(self):
        looked.append(await look(self))
        return looked[-1]

    async def handler(ctx, messages):
        return messages[0].answer.outcome

    monkeypatch.setattr(PostgresMessages, "next_expiry", looks)
    async with Supervisor(store, lanes=[LaneSpec("main", handler=handler)]):
        await until(lambda: looked == [None])
        rows(
            pg,
            f"insert into {schema}.ask (id, lane, route, question, keep, asked_at, expires_at, state) values "
            "('q', 'main', 'null', '\"?\"', 'null', now(), now() + interval '0.5 s', 'open')",
        )
        await until(lambda: rows(pg, f"select result from {schema}.message") == [(b'"expired"',)], 20)


async def test_a_run_that_the_store_has_cut_in_its_last_attempt_is_not_parked_as_well(store, pg, schema):
    async def cut(ctx, messages):
        raise StoreDown("cut", path="x")

    async with Supervisor(store, lanes=[LaneSpec("main", handler=cut, retry=RetrySpec(2, wait=0.01))]) as sup:
        await sup.accept("main", 1)
        await until(lambda: rows(pg, f"select state from {schema}.message") == [("unknown",)])
        await until(lambda: not sup.parked())
        failing = await sup.submit("main", failed).wait()
        assert failing.state is RunState.FAILED
        assert len(sup.parked()) == 1


async def failed(ctx):
    raise ValueError


async def test_a_run_is_known_as_parked_only_when_the_database_knows_it(store, monkeypatch):
    """Else a look at what is parked there, which comes in between, has this process forget it."""
    async with Supervisor(store, lanes=[LaneSpec("main", handler=fails, retry=RetrySpec(2, wait=0.01))]) as sup:
        inbox: Any = sup._inbox
        held = list[Any]()
        end = inbox.store.end
        monkeypatch.setattr(inbox.store, "end", lambda *arguments: held.append(arguments))
        accepted = await sup.accept("main", 1)
        await until(sup.parked)
        await inbox._unpark()
        assert len(sup.parked()) == 1
        end(*held[0])
        await accepted.wait(60)
        await inbox._unpark()
        assert len(sup.parked()) == 1


async def fails(ctx, messages):
    raise ValueError


@pytest.mark.failure("G32")
async def test_a_node_takes_over_the_rest_of_a_dead_one_without_waiting_for_its_next_beat(
    store, pg, schema, monkeypatch
):
    beat, soon = Life._beat, list[bool]()

    async def beats(self, connection):
        await beat(self, connection)
        soon.append(self._next_s < 1)

    monkeypatch.setattr(Life, "_beat", beats)
    async with Supervisor(replace(store, ttl=1.0)):
        rows(
            pg,
            f"insert into {schema}.session (place, owner) select 's:' || n, 5 from generate_series(1, 700) n; "
            f"insert into {schema}.node (id, name, host, pid, ttl, grace, beat_at) "
            "values (5, 'x', 'h', 1, 1, 0, now() - interval '1 hour')",
        )
        await until(lambda: rows(pg, f"select count(*) from {schema}.node") == [(1,)])
    assert any(soon)


async def test_background_work_is_claimed_though_there_is_more_urgent_work_without_end(store, pg, schema):
    began = list[str]()

    async def handler(ctx, messages):
        began.append(messages[0].body)

    lanes = [
        LaneSpec("urgent", handler=handler, priority="foreground", group="one", capacity=1),
        LaneSpec("slow", handler=handler, priority="background", group="one", capacity=1),
    ]
    async with Supervisor(store):
        pass  # it has made the schema
    rows(
        pg,
        f"insert into {schema}.session (place, pending, rank, since) "
        "select 's:' || n, 1, case when n < 41 then 0 else 2 end, n from generate_series(1, 41) n; "
        f"insert into {schema}.message (place, lane, session, body, route, digest, repeat, first, token, taken_by, "
        "accepted_at) select 's:' || n, lane, n::text, to_json(lane)::text::bytea, 'null', '', 0, false, n, 0, "
        "now() - interval '1 minute' from generate_series(1, 41) n, "
        "lateral (select case when n < 41 then 'urgent' else 'slow' end lane) l",
    )
    async with Supervisor(store, lanes=lanes, groups=[GroupSpec("one", slots=1)]):
        await until(lambda: len(began) == 41)
    assert began.index("slow") < 20


@BOTH
@pytest.mark.parametrize("policy, by_lane, here", [("interrupt", False, False), ("steer", True, True)])
async def test_a_message_is_about_the_run_under_way_though_another_node_waits_for_its_session(
    store, pg, schema, policy, by_lane, here
):
    """That the other node goes next must not keep a person from stopping or steering what goes on now."""
    begun, order = anyio.Event(), list[Any]()

    async def handler(ctx, messages):
        begun.set()
        if messages[0].body != "long":
            order.append(messages[0].body)
            return
        async for more in ctx.inbox:  # for ever, until one steers
            order.append(more.body)
            return

    async def body(ctx):
        order.append("other node")

    lanes = [LaneSpec("main", handler=handler, when_busy=policy if by_lane else "queue")]
    async with (
        Supervisor(store, lanes=lanes) as one,
        Supervisor(store, lanes=lanes) as two,
        anyio.create_task_group() as group,
    ):
        await one.accept("main", "long", session="s", when_busy="queue")
        await begun.wait()
        group.start_soon(partial(two.run, "main", body, session="s"))
        await until(lambda: rows(pg, f"select wanted from {schema}.session where place = 's:s'") == [(True,)])
        options: dict[str, Any] = {} if by_lane else {"when_busy": policy}
        await (await (one if here else two).accept("main", "now", session="s", **options)).wait(60)
    assert order == ["now", "other node"]


class Untold:
    """A supervisor whose lane is told of unknown messages, and what is in the sessions that come to it."""

    def __init__(self, store, pg, schema):
        self.pg, self.schema = pg, schema
        self.said = list[Any]()
        self.fails = False
        self.sup = Supervisor(store, lanes=[LaneSpec("main", handler=self.answer, on_unknown=self.tell)])

    async def answer(self, ctx, messages):
        if messages[0].body == "holds its lane":
            await anyio.sleep_forever()
        self.said.append(messages[0].body)

    async def tell(self, ctx, messages):
        self.said.append(f"unknown: {messages[0].body}")
        if self.fails:
            raise ValueError

    def leave(self, owner, *states):
        """A session with messages in these states, as a node that is gone leaves it."""
        text = (
            f"insert into {self.schema}.message (place, lane, session, body, route, digest, repeat, first, token, "
            "taken_by, state) values ('s:a', 'main', 'a', %s, 'null', '', 0, false, %s, 0, %s)"
        )
        for n, state in enumerate(states):
            rows(self.pg, text, str(n).encode(), n, state)
        insert = f"insert into {self.schema}.session (place, owner, pending, since) values ('s:a', %s, %s, 1)"
        rows(self.pg, insert, owner, states.count("accepted"))


@pytest.fixture
def untold(store, pg, schema):
    return Untold(store, pg, schema)


@BOTH
async def test_a_page_on_its_way_when_a_dead_node_is_inherited_does_not_go_before_what_is_unknown(untold, monkeypatch):
    async with untold.sup as sup:
        inbox: Any = sup._inbox
        ((node,),) = rows(untold.pg, f"select id from {untold.schema}.node")
        pages, waiting = list[Any](), inbox.store.waiting

        def hold(lane, after, at_most, report):
            def came(found, error):
                if found and not pages:
                    pages.append((report, found))
                else:
                    report(found, error)

            waiting(lane, after, at_most, came)

        monkeypatch.setattr(inbox.store, "waiting", hold)
        sup._scheduler.board.ownership._owned["s:a"] = 0.0
        untold.leave(node, "unknown", "accepted")
        inbox.replay.look_again()
        await until(lambda: pages)
        inbox.replay.look_for_untold(["a"])  # as the report of `reaped` does
        report, found = pages[0]
        report(found, None)
        await until(lambda: len(untold.said) == 2)
    assert untold.said == ["unknown: 0", 1]


@pytest.mark.parametrize("comes_by", ["claim", "accept", "submit"])
async def test_what_is_unknown_in_a_session_is_told_before_anything_else_however_it_comes(
    untold, monkeypatch, comes_by
):
    async def body(ctx):
        return None

    async with untold.sup as sup:
        inbox: Any = sup._inbox
        ownership: Any = sup._scheduler.board.ownership
        ownership._compare_at = math.inf  # what that finds comes later
        go_on, look = anyio.Event(), inbox.store.untold

        async def looks(*arguments):
            await go_on.wait()
            return await look(*arguments)

        monkeypatch.setattr(inbox.store, "untold", looks)
        untold.leave(None, "unknown", *(["accepted"] if comes_by == "claim" else []))
        if comes_by == "accept":
            await sup.accept("main", 1, session="a")
        elif comes_by == "submit":
            await sup.submit("main", body, session="a").wait()
        await until(lambda: ownership.owns(f"{inbox.store.path}/a"))
        await anyio.sleep(0.1)
        assert untold.said == []
        go_on.set()
        await until(lambda: len(untold.said) == 2 - (comes_by == "submit"))
    assert untold.said == ["unknown: 0", 1][: len(untold.said)]


@BOTH
async def test_what_a_run_did_not_come_to_tell_is_told_by_another_one(untold):
    """It was cancelled in its queue, or its node was lost before it began."""
    async with untold.sup as sup:
        inbox: Any = sup._inbox
        ((node,),) = rows(untold.pg, f"select id from {untold.schema}.node")
        holds = (await sup.accept("main", "holds its lane")).run
        untold.leave(node, "unknown")
        sup._scheduler.board.ownership.take("s:a")
        await until(lambda: len(sup.runs()) == 2)
        (tells,) = [run for run in sup.runs() if run is not holds]
        assert tells.cancel("by hand")
        assert untold.said == []
        holds.cancel("by hand")
        inbox.replay.look_for_untold()
        await until(
            lambda: rows(untold.pg, f"select told from {untold.schema}.message where state = 'unknown'") == [(True,)]
        )
        inbox.replay.look_for_untold()
        await (await sup.accept("main", "last", session="a")).wait(60)
    assert untold.said == ["unknown: 0", "last"]


async def test_of_two_nodes_that_submit_a_parked_message_again_one_does(store, pg, schema, monkeypatch):
    monkeypatch.setattr("runtime.inbox.service._LOOK_S", 60.0)  # neither sees what the other one does
    done, broken = list[str](), [True]

    def lanes_of(name):
        async def handler(ctx, messages):
            if broken:
                raise ValueError
            done.append(name)

        return [LaneSpec("main", handler=handler, retry=RetrySpec(2, wait=0.01))]

    async with Supervisor(store, lanes=lanes_of("one")) as one:
        await (await one.accept("main", 1)).wait(20)
        async with Supervisor(store, lanes=lanes_of("two")) as two:
            await until(two.parked)
            broken.clear()
            (first,), (second,) = one.parked(), two.parked()
            assert (await one.resubmit(first.run.id).wait()).state is RunState.DONE
            outcome = await two.resubmit(second.run.id).wait()
            assert isinstance(outcome.error, NodeLost)
            assert "its message is answered, or was ended, by another node" in str(outcome.error)
            inbox: Any = two._inbox
            await inbox._unpark()  # as each look does
            assert [*one.parked(), *two.parked()] == []
    assert (done, rows(pg, f"select state from {schema}.message")) == (["one"], [("done",)])


async def test_what_is_kept_is_answered_though_new_sessions_come_without_pause(untold, monkeypatch):
    """Each is looked at for what is unknown before it is given anything; the others do not wait for that."""
    came = list[str]()
    async with untold.sup as sup:
        inbox: Any = sup._inbox
        ownership: Any = sup._scheduler.board.ownership
        look = inbox.store.untold

        async def looks(*arguments):
            found = await look(*arguments)
            if not untold.said and len(came) < 300:
                came.append(f"s:new{len(came)}")
                ownership.take(came[-1])  # as the report of the next `accept` does
            return found

        monkeypatch.setattr(inbox.store, "untold", looks)
        monkeypatch.setattr(inbox.replay, "look_again", lambda: None)  # a look itself brings what it has held back
        await (await sup.accept("main", 1, session="a")).wait(60)
        assert 1 <= len(came) < 300


async def test_a_lane_that_fails_to_be_told_is_told_again_only_when_the_session_comes_anew(untold, monkeypatch):
    monkeypatch.setattr(owning, "LINGER_S", 1_000.0)
    async with untold.sup as sup:
        inbox: Any = sup._inbox
        ownership: Any = sup._scheduler.board.ownership
        ownership._compare_at = math.inf  # else it finds what is unknown in a session that it has given back
        ((node,),) = rows(untold.pg, f"select id from {untold.schema}.node")

        looks, look = list[None](), inbox.store.untold

        async def looked(*arguments):
            found = await look(*arguments)
            looks.append(None)
            return found

        monkeypatch.setattr(inbox.store, "untold", looked)
        untold.fails = True
        untold.leave(node, "unknown")
        ownership.take("s:a")
        await until(lambda: untold.said and not sup.runs(), 60)
        for n in range(1, 4):
            looks.clear()
            ownership.take(f"s:new{n}")
            await until(lambda: looks and not sup.runs(), 60)
        assert untold.said == ["unknown: 0"]
        ownership._owned.pop("s:a", None)
        ownership.take("s:a")
        await until(lambda: len(untold.said) == 2, 60)


async def test_a_node_that_is_lost_asks_at_once_for_the_sessions_that_it_waited_for(store, pg, schema):
    async with Supervisor(store) as sup, anyio.create_task_group() as group:
        ownership: Any = sup._scheduler.board.ownership
        rows(
            pg,
            f"insert into {schema}.node (id, name, host, pid, ttl, grace) values (5, 'other', 'h', 1, 1000, 1); "
            f"insert into {schema}.session (place, owner) values ('s:s', 5)",
        )
        group.start_soon(ownership.want, f"{ownership._root}/s")
        await until(lambda: rows(pg, f"select wanted from {schema}.session where place = 's:s'") == [(True,)], 60)
        came = ownership._wanted["s:s"]
        ownership.lost(NodeLost("lost", path=ownership._root))
        assert came.is_set()
        group.cancel_scope.cancel()


@pytest.mark.parametrize("ends", [False, True])
async def test_what_a_node_hands_on_is_gone_here_though_the_answer_was_lost_and_another_one_has_begun_it(
    store, pg, schema, monkeypatch, ends
):
    commit, lost, begun = Link._commit, list[object](), anyio.Event()

    async def commits(self, connection, batch):
        results = await commit(self, connection, batch)
        if not lost and any("from gone left join" in step.statement for step, _ in batch):
            lost.append(results)
            state = "done" if ends else "started"
            await connection.execute(
                f"update {schema}.session set owner = 5, fence = fence + 1 where place <> 's:long'; "
                f"update {schema}.message set state = '{state}', node = 5 where place <> 's:long'".encode()
            )
            raise psycopg.OperationalError("the answer was lost")
        return results

    async def handler(ctx, messages):
        if messages[0].body == "long":
            begun.set()
            await anyio.sleep_forever()

    monkeypatch.setattr(Link, "_commit", commits)
    monkeypatch.setattr(owning, "LINGER_S", 1_000.0)
    lanes = [LaneSpec("main", handler=handler, group="one", grace=0.1)]
    async with Supervisor(store, lanes=lanes, groups=[GroupSpec("one", slots=1)]) as sup:
        inbox: Any = sup._inbox
        ownership: Any = sup._scheduler.board.ownership
        rows(pg, f"insert into {schema}.node (id, name, host, pid, ttl, grace) values (5, 'other', 'h', 1, 1000, 1)")
        await (await sup.accept("main", "first", session="a")).wait(60)
        long = await sup.accept("main", "long", session="long")
        await begun.wait()
        waits = await sup.accept("main", "waits", session="a")
        assert waits.run is not None
        async with anyio.create_task_group() as group:
            group.start_soon(sup.stop)
            await until(lambda: lost and list(ownership._owned) == ["s:long"], 60)
            ended: Any = waits.run
            assert (list(inbox.door.in_memory), ended) == ([long.id], None)
            assert long.run is not None
            long.run.cancel("by hand")
