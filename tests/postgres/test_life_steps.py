"""The seam of `test_steps` for what goes other ways: the connection of a node's life, and what nodes ask of each other.

Each statement there is cut off before it is sent, and has its answer lost.
"""

from __future__ import annotations

from typing import Any, ClassVar

import anyio
import pytest

from lanes import LaneSpec, RunState
from runtime import PostgresStore, StoreDown, Supervisor
from runtime.postgres import life, node, ownership
from runtime.postgres import link as links
from runtime.postgres.schema import filled

from .database import SOUND, accepts
from .looking import rows, until
from .test_steps import Faulty, cut, soon

__all__ = ["soon"]

pytestmark = [pytest.mark.anyio, pytest.mark.failure("G19")]
of_the_thread = pytest.mark.backends("asyncio")
"""A node lives in the thread of its link, whatever the loop of the program is."""

KINDS = {
    "join": "insert into",
    "clock": "select extract",
    "patience": "set lock_timeout = ",
    "beat": "node set beat_at",
    "reap": "reaped(",
    "leave": "gone(",
}
BEFORE, AFTER = "cut before it", "its answer is lost"
Fault = tuple[str, str]


class OnItsLife(links.Link):
    """Breaks the connection on which a node lives."""

    to_come: ClassVar[set[Fault]] = set()

    async def connect(self, role: str = "") -> Any:
        connection: Any = await super().connect(role)
        execute = connection.execute

        async def faulty(statement: Any, *arguments: Any, **more: Any) -> Any:
            text = statement.decode() if isinstance(statement, bytes) else str(statement)
            kind = next((kind for kind, part in KINDS.items() if part in text), "")
            self._break(connection, kind, BEFORE)
            result = await execute(statement, *arguments, **more)
            self._break(connection, kind, AFTER)
            return result

        if role == " lives":
            connection.execute = faulty
        return connection

    def _break(self, connection: Any, kind: str, how: str) -> None:
        if (kind, how) in self.to_come:
            self.to_come.remove((kind, how))
            raise cut(connection, how)


@pytest.fixture
def faults(monkeypatch):
    monkeypatch.setattr(node, "Link", OnItsLife)
    monkeypatch.setattr(ownership, "_COMPARE_S", 0.05)
    monkeypatch.setattr(life, "_BEATS", 60)  # with a ttl that no busy machine exhausts
    OnItsLife.to_come.clear()
    return OnItsLife.to_come


@pytest.fixture
def store(pg, schema):
    return PostgresStore(pg.dsn, schema=schema, ttl=30.0, create=True)


@pytest.fixture
def sql(pg, schema):
    def do(statement: str, *values: Any) -> list[tuple[Any, ...]]:
        return rows(pg, filled(statement, schema).as_string(), *values)

    return do


async def answer(ctx: Any, given: Any) -> Any:
    await ctx.session.append({"answered": [one.body for one in given]})
    return given[0].body


async def tell(ctx: Any, given: Any) -> None:
    await ctx.session.append({"unknown": [one.body for one in given]})


LANES = [LaneSpec("main", handler=answer, on_unknown=tell)]
DEAD = 5


def leave_behind(sql: Any) -> None:
    """A node died that had begun two messages, of which one may be repeated, and not a third one."""
    sql("insert into {s}.node (id, name, host, pid, ttl, grace) values (%s, 'dead', 'h', 1, 1, 0)", DEAD)
    for session, repeat in (("again", 3), ("unknown", 0), ("waits", 0)):
        function, *values = accepts(session, DEAD, repeat=repeat)
        ((message, *_),) = sql(f"select id from {{s}}.{function}({', '.join(['%s'] * len(values))})", *values)
        if session != "waits":
            sql("select {s}.started(%s, %s, %s, array[%s]::bigint[], true)", DEAD, f"s:{session}", 7, message)


@of_the_thread
async def test_a_node_beats_and_inherits_though_its_beats_and_what_it_inherits_get_lost(store, faults, sql):
    async with Supervisor(store, lanes=LANES):
        pass
    leave_behind(sql)
    async with Supervisor(store, lanes=LANES) as sup:
        sql("update {s}.node set beat_at = '-infinity' where id = %s", DEAD)
        faults |= {(kind, how) for kind in ("beat", "reap", "patience") for how in (BEFORE, AFTER)}
        open_or_untold = "state in ('accepted', 'started') or state = 'unknown' and not told"
        await until(lambda: not faults and sql(f"select 1 from {{s}}.message where {open_or_untold}") == [], 60)
        assert (await (await sup.accept("main", 1, session="s")).wait()).state is RunState.DONE
        assert sql("select session, state, attempt from {s}.message order by id") == [
            *(("again", "done", 2), ("unknown", "unknown", 1), ("waits", "done", 1), ("s", "done", 1)),
        ]
        lines = sql("select place, count(*)::int from {s}.entry group by 1 order by 1")
        assert lines == [("s:again", 1), ("s:s", 1), ("s:unknown", 1), ("s:waits", 1)]
        assert sql(SOUND) == []


@of_the_thread
@pytest.mark.parametrize("how", [BEFORE, AFTER])
async def test_what_a_node_keeps_whose_leaving_gets_lost_is_inherited(store, faults, sql, how):
    async with Supervisor(store, lanes=LANES) as sup:
        assert (await (await sup.accept("main", 1, session="s")).wait()).state is RunState.DONE
        faults.add(("leave", how))
    assert (faults, len(sql("select 1 from {s}.node"))) == (set(), how == BEFORE)
    sql("update {s}.node set beat_at = '-infinity'")
    async with Supervisor(store, lanes=LANES) as sup:
        assert (await (await sup.accept("main", 2, session="s")).wait(60)).state is RunState.DONE
    assert sql("select * from {s}.node") == sql("select 1 from {s}.session where owner is not null") == sql(SOUND) == []


@of_the_thread
async def test_a_start_that_gets_lost_says_so_and_leaves_nothing_that_others_wait_for(store, faults, sql):
    for kind in ("join", "clock", "patience"):
        for how in (BEFORE, AFTER):
            faults.add((kind, how))
            with pytest.raises(StoreDown, match=how):
                await Supervisor(store, lanes=LANES).start()
    assert sql("select 1 from {s}.session") == []
    sql("update {s}.node set beat_at = '-infinity'")
    async with Supervisor(store, lanes=LANES) as sup:
        assert (await (await sup.accept("main", 1, session="s")).wait()).state is RunState.DONE
        await until(lambda: len(sql("select 1 from {s}.node")) == 1, 60)


@pytest.mark.backends("asyncio", "trio")
async def test_what_nodes_ask_of_each_other_is_done_once_though_it_is_cut_and_its_answer_lost(
    store, sql, soon, monkeypatch
):
    monkeypatch.setattr(node, "Link", Faulty)
    begun, ended = anyio.Event(), []

    async def hang(ctx: Any, given: Any) -> None:
        begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(given[0].body)

    lanes = [LaneSpec("main", handler=hang)]
    with anyio.fail_after(120):
        async with Supervisor(store, lanes=lanes, node="one") as one, Supervisor(store, lanes=lanes, node="two") as two:
            for body in ("cancelled", "reset"):
                begun = anyio.Event()
                running = await one.accept("main", body, session="s")
                await begun.wait()
                assert [run.session for run in await two.everywhere.runs()] == ["s"]
                if body == "cancelled":
                    assert await two.everywhere.cancel(session="s", reason="stop") == 1
                else:
                    await two.reset("s")
                assert (await running.wait()).state is RunState.CANCELLED
            await until(lambda: sql("select 1 from {s}.command") == [], 60)
    assert ended == ["cancelled", "reset"]
    assert sql(SOUND) == []
    assert {"asked", "said", "forgotten"} - set(Faulty.seen) == set()
