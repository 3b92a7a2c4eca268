"""Each kind of step is cut off before it is committed, and has its answer lost afterwards; or its node ends there.

The steps are those that a supervisor hands to its `Link`. What is in the database afterwards is what there would be
without that.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import anyio
import anyio.to_thread
import psycopg
import pytest

from lanes import LaneSpec, RetrySpec
from lanes.spec_table import SpecTable
from runtime import PostgresStore, Supervisor
from runtime.inbox import watch
from runtime.inbox.answer import Answer
from runtime.inbox.rows import NewRow, Taken
from runtime.postgres import ask_steps, message_steps, messages, node, ownership, transcripts
from runtime.postgres import link as links
from runtime.postgres.schema import filled
from runtime.postgres.step import Step
from tests.inboxes import service_of

from .database import SOUND, accepts

pytestmark = [pytest.mark.anyio, pytest.mark.backends("asyncio", "trio")]

SOURCES = [Path(str(one.__file__)).read_text() for one in (message_steps, ask_steps, ownership, transcripts)]
KINDS = {kind for source in SOURCES for kind in re.findall(r"select (?:\* from )?\{s\}\.(\w+)\(", source)}


def kinds_of(step: Step) -> list[str]:
    return re.findall(r"\{s\}\.(\w+)\(", step.statement) or [step.statement.split("{s}.")[-1].split()[0]]


def cut(connection: Any, why: str) -> psycopg.OperationalError:
    connection.pgconn.finish()
    return psycopg.OperationalError(why)


class Faulty(links.Link):
    """Fails each transaction twice: before it is sent, and when its answer comes."""

    seen: ClassVar[Counter[str]] = Counter()
    given: ClassVar[list[Any]] = []
    """What was tried, so that no id is used twice."""
    tries: ClassVar[dict[int, int]] = {}

    async def _commit(self, connection: Any, batch: Any) -> Any:
        steps = [step for step, _ in batch]
        tries = self.tries.get(id(steps[0]), 0)
        self.tries[id(steps[0])] = tries + 1
        self.given.append(steps)
        if tries == 0:
            raise cut(connection, "cut before it")
        results = await super()._commit(connection, batch)
        if tries == 1:
            self.seen.update(kind for step in steps for kind in kinds_of(step))
            raise cut(connection, "its answer is lost")
        return results


SAID: dict[str, Any] = {}


async def handler(ctx: Any, given: Any) -> Any:
    body = given[0].body
    if given[0].answer is not None:
        await ctx.session.append({"answered": body})
        return "thanks"
    match body:
        case "ask":
            raise await ctx.ask("Delete it?", expires=1e6)
        case "fail once" if not SAID.get("failed"):
            SAID["failed"] = True
            raise ValueError("once")
        case "park" if not SAID.get("mended"):
            raise ValueError("for ever")
        case "finish":
            for n in range(3):
                await ctx.session.append({"n": n})
            await ctx.finish({"final": body}, [body])
        case "steer":
            SAID["begun"].set()
            async for one in ctx.inbox:
                return one.body
    return body


async def tell(ctx: Any, given: Any) -> None:
    await ctx.session.append({"unknown": [one.body for one in given]})


LANES = [
    LaneSpec("main", handler=handler, on_unknown=tell, retry=RetrySpec(2, wait=0.01), capacity=4),
    LaneSpec("steered", handler=handler, when_busy="steer"),
]


async def holds_a_lease(ctx: Any) -> Any:
    async with ctx.session.lease() as lease:
        await lease.append_many([{"a": 1}, {"a": 2}])
        read = await lease.read()
        await lease.replace([{"sum": 3}], through=read.position)
        await lease.append({"a": 4})
    return await ctx.session.read()


async def notes(ctx: Any) -> None:
    await ctx.session.append({"note": 1})


async def live(sup: Supervisor, pg: Any, schema: str) -> None:
    """Have a supervisor do each kind of step, one after the other, each until it is done."""
    SAID.clear()
    SAID["begun"] = anyio.Event()
    store = service_of(sup).store

    async def done(body: str, session: str | None = None, **more: Any) -> Any:
        accepted = await sup.accept("main", body, session=session, **more)
        return accepted, await accepted.wait(60)

    await done("finish", "s")
    await done("plain")
    await done("plain", dedupe="k")
    await done("plain", dedupe="k")
    await done("fail once", "s")
    parked, _ = await done("park")
    SAID["mended"] = True
    await (await sup.requeue(parked.id)).wait(60)
    _, asked = await done("ask", "s")
    await (await sup.answer(asked.value.id, "yes", by="ann")).wait(60)
    assert await sup.run("main", holds_a_lease, session="t") == [{"sum": 3}, {"a": 4}]
    await sup.run("main", notes, session="t", turn=False)
    assert await sup.reset("t") is not None
    assert await sup.run("main", notes, session="t") is None
    steered = await sup.accept("steered", "steer", session="u")
    await SAID["begun"].wait()
    await (await sup.accept("steered", "more", session="u")).wait(60)
    await steered.wait(60)
    kept = (await sup.accept("main", "plain", session="s")).id
    await sup.find_message(kept)
    sup.cancel(lane="none", session="none")
    other = await anyio.to_thread.run_sync(put, pg, schema, "claimed")
    await found(sup, other)
    await until_none(pg, schema, "select 1 from {s}.session where owner is not null")
    unknown = "update {s}.message set state = 'unknown', told = false, ended_at = now() where id = %s returning id"
    await anyio.to_thread.run_sync(rows, pg, schema, unknown, other)
    await until_none(pg, schema, "select 1 from {s}.message where state = 'unknown' and not told")
    store.told([other])
    await store.recover([other])
    ticked = Answer[Taken]()
    store.accept_served("tick", 5.0, TICK, 0, ticked)
    service_of(sup).replay.look_again()
    await found(sup, (await ticked.wait()).id)
    store.refuse(other, "full", lambda _none, _error: None)
    await until_none(pg, schema, "select 1 from {s}.session where owner is not null")
    assert await store.purge(0.0, 10) == 0


async def found(sup: Supervisor, message: int) -> None:
    accepted = await sup.find_message(message)
    assert accepted is not None
    await accepted.wait(60)


TICK = NewRow(lane="main", session="tick", body=b'"plain"', route=b"null", dedupe="tick", digest=b"1")


def rows(pg: Any, schema: str, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(pg.dsn, autocommit=True) as connection:
        return connection.execute(filled(statement, schema), values or None).fetchall()


async def until_none(pg: Any, schema: str, statement: str) -> None:
    with anyio.fail_after(60):
        while await anyio.to_thread.run_sync(rows, pg, schema, statement):
            await anyio.sleep(0.02)


def put(pg: Any, schema: str, session: str) -> int:
    """Accept a message for whoever claims it, as a node without room does."""
    function, *values = accepts(session, 0, claims=False, token=17)
    values[7] = b'"plain"'
    places = ", ".join(["%s"] * len(values))
    return int(rows(pg, schema, f"select id from {{s}}.{function}({places})", *values)[0][0])


CONTENT = """
select 'message', lane, session, case when ask is null then convert_from(body, 'utf8') end, state, attempt,
  regexp_replace(reason, '[0-9a-z-]*[0-9]+[0-9a-z-]*', '#'), result::text, told, asked is null from {s}.message
union all select 'entry', place, incarnation::text, seq::text, line, 0, '', '', false, false from {s}.entry
union all select 'session', place, incarnation::text, next_seq::text, owner::text, pending, '', '', wanted,
  write_nonce is null from {s}.session where place like 's:%%'
union all select 'ask', lane, session, question::text, state, 0, by, value::text, false, false from {s}.ask
order by 1, 2, 3, 4, 5
"""


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(links, "SOONEST_RETRY_S", 0.001)
    monkeypatch.setattr(links, "LATEST_RETRY_S", 0.005)
    monkeypatch.setattr(ownership, "LINGER_S", 0.05)
    monkeypatch.setattr(ownership, "_LOOK_S", 0.05)
    monkeypatch.setattr(ownership, "_COMPARE_S", 0.05)


async def test_each_step_is_done_once_though_it_is_cut_and_its_answer_lost(pg, schema, soon, monkeypatch):
    found = []
    for kind, name in ((links.Link, f"{schema}_whole"), (Faulty, schema)):
        monkeypatch.setattr(node, "Link", kind)
        store = PostgresStore(pg.dsn, schema=name, ttl=10.0, create=True)
        async with Supervisor(store, lanes=LANES) as sup:
            with anyio.fail_after(60):
                await live(sup, pg, name)
        found.append(await anyio.to_thread.run_sync(rows, pg, name, CONTENT))
        assert await anyio.to_thread.run_sync(rows, pg, name, SOUND) == []
    rows_of = anyio.to_thread.run_sync
    await rows_of(drop, pg, f"{schema}_whole")
    whole, faulty = found
    assert [one for one in faulty if one not in whole] == []
    assert faulty == whole
    assert KINDS - set(Faulty.seen) == set()


class Losing(links.Link):
    """Loses the first answer to each step that ends messages."""

    lost: ClassVar[list[Any]] = []

    async def _commit(self, connection: Any, batch: Any) -> Any:
        results = await super()._commit(connection, batch)
        if any(set(kinds_of(step)) & {"ended", "waits_for"} for step, _ in batch) and batch[0] not in self.lost:
            self.lost.append(batch[0])
            raise cut(connection, "its answer is lost")
        return results


async def test_an_end_whose_answer_was_lost_is_told_all_the_same(pg, schema, soon, monkeypatch):
    monkeypatch.setattr(node, "Link", Losing)
    monkeypatch.setattr(watch, "_LOOK_S", 1e6)  # by which else it is found out in the end
    SAID.clear()
    store = PostgresStore(pg.dsn, schema=schema, create=True, notify=False)
    async with Supervisor(store, lanes=LANES) as sup:
        with anyio.fail_after(60):
            told = [await (await sup.accept("main", body)).wait() for body in ("plain", "ask", "park")]
    assert [outcome.state for outcome in told] == ["done", "done", "failed"]
    assert len(Losing.lost) >= len(told)
    Losing.lost.clear()


def drop(pg: Any, schema: str) -> None:
    with psycopg.connect(pg.dsn, autocommit=True) as connection:
        connection.execute(filled("drop schema {s} cascade", schema))


@pytest.mark.backends("asyncio")
async def test_what_would_undo_the_steps_behind_it_when_it_is_done_again_is_committed_alone():
    class Keeping(links.Link):
        def do(self, step: Step, report: Any) -> None:
            self._writes.append((step, report))

    def nothing(_result: Any, _error: BaseException | None) -> None: ...

    link = Keeping(PostgresStore("postgresql://nowhere/db"))
    life: Any = None
    kept = messages.PostgresMessages(link, life, SpecTable([LaneSpec("main")], []))
    kept.begin([1], None)
    kept.begin([2], None)
    kept.wait_again([1])  # … and again after the next step, it would have a message wait that a body has
    kept.begin([1], None)
    kept.cancel_waiting(None, "s", "stopped", nothing)  # … and again, it would cancel what was accepted since
    kept.withdraw("s", "reset")
    batches = []
    while link._writes:
        batches.append([kinds_of(step)[0] for step, _ in link._next_batch()])
    assert batches == [["started", "started"], ["waits_again"], ["started"], ["cancelled"], ["withdrawn"]]
