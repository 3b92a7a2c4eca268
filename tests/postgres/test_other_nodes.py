"""What this process tells of messages that another node has meanwhile."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from lanes import InvalidLane, LaneSpec, RunState
from runtime import PostgresStore, Supervisor
from runtime.inbox.rows import MessageState
from tests.postgres.looking import rows, until

pytestmark = [pytest.mark.anyio, pytest.mark.backends("asyncio", "trio")]


@pytest.fixture
def store(pg, schema):
    return PostgresStore(pg.tcp_dsn, schema=schema, ttl=1.0, create=True)


async def test_a_message_that_comes_back_to_its_process_ends_while_its_old_run_still_cleans_up(store, pg, schema):
    begun, again, go_on = anyio.Event(), anyio.Event(), anyio.Event()

    async def handler(ctx, messages):
        if begun.is_set():
            again.set()
            return "again"
        begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await go_on.wait()

    async with Supervisor(store, lanes=[LaneSpec("main", handler=handler, repeat=True, grace=20, capacity=2)]) as sup:
        accepted = await sup.accept("main", 1)
        await begun.wait()
        other = f"insert into {schema}.node (id, name, host, pid, ttl, grace) values (5, 'other', 'h', 1, 1000, 1)"
        silent = f"update {schema}.node set beat_at = now() - interval '1 hour' where id <> 5"
        rows(pg, f"{other}; {silent}; select {schema}.reaped(5); select {schema}.gone(5)")
        await again.wait()
        await until(lambda: rows(pg, f"select state from {schema}.message") == [("done",)], 10)
        go_on.set()
        assert (await accepted.wait(60)).value == "again"
        await until(lambda: not sup.runs())
    assert rows(pg, f"select state, result from {schema}.message") == [("done", b'"again"')]


async def test_an_end_that_the_database_does_not_take_is_told_to_nobody(store, pg, schema):
    begun = anyio.Event()

    async def hangs(ctx, messages):
        begun.set()
        await anyio.sleep_forever()

    async with Supervisor(store, lanes=[LaneSpec("main", handler=hangs)], drain_timeout=0) as sup:
        await sup.accept("main", 1, session="s")
        await begun.wait()
        waits = await sup.accept("main", 2, session="s")
        rows(
            pg,
            f"insert into {schema}.node (id, name, host, pid, ttl, grace) values (5, 'other', 'h', 1, 1000, 1); "
            f"update {schema}.session set owner = 5, fence = fence + 1, nonce = null",
        )
        assert waits.run is not None
        assert waits.run.cancel("by hand")
        await anyio.sleep(0.1)
        assert waits.outcome is None
        rows(pg, f"select {schema}.ended(5, array[{waits.id}]::bigint[], 'done', '', null, array['accepted'])")
        assert (await waits.wait(60)).state is RunState.DONE


async def test_a_message_on_a_lane_of_a_newer_program_is_left_to_a_process_of_that(store, pg, schema):
    async def answers(ctx, messages):
        return "new"

    older = Supervisor(store)
    newer = Supervisor(store, lanes=[LaneSpec("billing", handler=answers)])
    async with newer:
        await older.start()
        ((node,),) = rows(pg, f"select max(number) from {schema}.node")
        ((node,),) = rows(pg, f"select id from {schema}.node where number = {node}")
        rows(
            pg,
            f"insert into {schema}.session (place, owner, pending) values ('s:a', {node}, 1); "
            f"insert into {schema}.message (place, lane, session, body, route, digest, repeat, first, state, token, "
            "taken_by) values ('s:a', 'billing', 'a', '1', 'null', '', 0, false, 'accepted', 1, 1)",
        )
        inbox: Any = older._inbox
        purged = inbox.door.fate(999, MessageState.ACCEPTED)
        await inbox.door.look_again([999])
        assert isinstance(purged.failure, InvalidLane)
        await until(lambda: inbox.replay._not_here)
        assert rows(pg, f"select state from {schema}.message") == [("accepted",)]
        await older.stop()
        await until(lambda: rows(pg, f"select state from {schema}.message") == [("done",)])


async def test_a_start_that_fails_before_the_store_is_opened_says_why(store, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    sup = Supervisor(store, status_socket=blocked / "socket")
    with pytest.raises(Exception) as caught:  # noqa: PT011 -- whatever it is, it is not about a thread
        await sup.start()
    assert "thread" not in str(caught.value)


def test_the_name_of_a_schema_is_measured_in_bytes():
    with pytest.raises(InvalidLane, match="bytes"):
        PostgresStore("postgresql://h/d", schema="ä" * 30)


async def test_text_that_the_database_cannot_have_is_refused_by_name_and_ends_nothing(store):
    async with Supervisor(store, lanes=[LaneSpec("main", handler=returns)]) as sup:
        with pytest.raises(InvalidLane, match=r"^dedupe: 'a\\x00b' cannot be kept; allowed: UTF-8 without NUL"):
            await sup.accept("main", 1, dedupe="a\0b")
        with pytest.raises(InvalidLane, match=r"^session: .* cannot be kept"):
            await sup.asks(session="a\0b")
        assert (await (await sup.accept("main", {"body": "a\0b"})).wait(60)).state is RunState.DONE


async def returns(ctx, messages):
    return messages[0].body
