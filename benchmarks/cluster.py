"""Several nodes on PostgreSQL: what writing and accepting cost there, what nodes add, and how fast others take over.

It starts a server of its own, that commits to the disk. Ratios are taken in turn within one run, against a row that is
inserted over the same connection: what the disk of the day costs is in both.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any

import anyio
import anyio.to_thread
import psycopg

from lanes import LaneSpec, Message, RunContext
from runtime import Limits, PostgresStore, Supervisor
from runtime.inbox.answer import Answer
from runtime.postgres.link import Link
from runtime.postgres.messages import PostgresMessages
from runtime.postgres.step import Step
from runtime.trial.postgres_server import PostgresServer

from .cluster_rows import cpu_of_server
from .cluster_rows import figures as of_rows
from .measure import Figure, quiet

ROUNDS = 3
APPENDS, BATCH, BATCHES = 60, 100, 2
SINGLES, SHARED = 60, 20
"""Messages of one sender; of each of many."""
FIRST_STEPS, CANCELS = 40, 15
CALLS = 100
TTL_S = 1.0
LIMIT_S = 120.0
NODES, SLOTS, SLEEP_S, MESSAGES = 3, 8, 0.4, 144
_TEXT = "x" * 300
_BARE = "insert into {s}.bare (place, incarnation, seq, line) values ('', 0, nextval('bare'), %s)"


def figures() -> list[Figure]:
    """All figures of this module."""
    found = list[Figure]()
    with PostgresServer() as pg:
        for backend in ("asyncio", "trio"):
            for one in (_writes, _accepts, _first_step, _cancel, _calls):
                found += anyio.run(one, pg, backend, backend=backend)
        found += [anyio.run(_idle, pg), _takeover(pg), _three_nodes(pg), *of_rows(pg)]
    return found


async def _answer(ctx: RunContext, messages: Sequence[Message]) -> None:
    return None


async def _hold(ctx: RunContext, messages: Sequence[Message]) -> None:
    await anyio.sleep_forever()


def _supervisor(pg: PostgresServer, schema: str, *lanes: LaneSpec, ttl: float = 10.0) -> Supervisor:
    store = PostgresStore(pg.tcp_dsn, schema=schema, create=True, ttl=ttl)
    return Supervisor(store, lanes=lanes, limits=Limits(lag_s=60))


def _schema() -> str:
    return f"bench_{secrets.token_hex(4)}"


def _link(sup: Supervisor) -> Link:
    assert sup._inbox is not None
    store = sup._inbox.store
    assert isinstance(store, PostgresMessages)
    return store._link


class _Bare:
    """Rows that are inserted over the link's own connection, each committed by itself: what nothing can go below."""

    def __init__(self, pg: PostgresServer, sup: Supervisor, schema: str) -> None:
        self._link = _link(sup)
        with psycopg.connect(pg.dsn, autocommit=True) as connection:
            connection.execute(f"create table {schema}.bare (like {schema}.entry including all)")
            connection.execute("create sequence if not exists bare cache 1000")

    async def insert(self) -> float:
        """Insert one; returns seconds."""
        return await self.do(_BARE, (_TEXT,))

    async def do(self, text: str, values: Sequence[Any] = ()) -> float:
        """Have a statement committed; returns seconds."""
        answer, began = Answer[None](), time.perf_counter()
        self._link.do(Step(text, values, lambda _: None), answer)
        await answer.wait()
        return time.perf_counter() - began


async def _writes(pg: PostgresServer, backend: str) -> list[Figure]:
    """An append, by a bare insert; and many records at once, by single ones."""
    schema = _schema()

    async def body(ctx: RunContext) -> list[Figure]:
        assert ctx.session is not None
        ratios, gains, inserts = list[float](), list[float](), list[float]()
        for _ in range(ROUNDS):
            bare, single = list[float](), list[float]()
            for _ in range(APPENDS):
                bare.append(await rows.insert())
                began = time.perf_counter()
                await ctx.session.append({"text": _TEXT})
                single.append(time.perf_counter() - began)
            async with ctx.session.lease() as lease:
                began = time.perf_counter()
                for _ in range(BATCHES):
                    await lease.append_many([{"text": _TEXT}] * BATCH)
                each = (time.perf_counter() - began) / BATCH / BATCHES
            inserts.append(median(bare))
            ratios.append(median(single) / median(bare))
            gains.append(median(single) / each)
        detail = f"a bare insert: {median(inserts) * 1e3:.2f} ms"
        return [
            Figure(f"append, p50 / a bare insert ({backend})", median(ratios), "×", 1.7, detail=detail),
            Figure(f"{BATCH} records at once / one by one, a record ({backend})", median(gains), "×", 5, at_least=True),
        ]

    async with _supervisor(pg, schema) as sup:
        rows = _Bare(pg, sup, schema)
        found: list[Figure] = await sup.run("main", body, session="s")
        return found


async def _accepts(pg: PostgresServer, backend: str) -> list[Figure]:
    """Accepted messages a second of many senders, by those of one. They wait: to answer them would take the CPU."""
    ratios, alone, shared = dict[int, list[float]](), list[float](), dict[int, float]()
    held = LaneSpec("held", handler=_hold, queue_limit=None, grace=0)
    for _ in range(ROUNDS):
        async with _supervisor(pg, _schema(), held) as sup:

            async def send(number: int, sup: Supervisor = sup) -> None:
                for _ in range(number):
                    await sup.accept("held", _TEXT)

            await send(10)
            for senders, each in ((1, SINGLES), (16, SHARED), (128, SHARED)):
                began, before = time.perf_counter(), _link(sup).commits
                async with anyio.create_task_group() as group:
                    for _ in range(senders):
                        group.start_soon(send, each)
                rate = senders * each / (time.perf_counter() - began)
                if senders == 1:
                    alone.append(rate)
                ratios.setdefault(senders, []).append(rate / alone[-1])
                shared[senders] = senders * each / (_link(sup).commits - before)
            await sup.stop(drain_timeout=0.0)
    return [
        Figure(
            f"accept, {senders} senders / one ({backend})",
            median(ratios[senders]),
            "×",
            detail=f"one: {median(alone):,.0f} messages a second; {shared[senders]:.0f} share a commit",
        )
        for senders in (16, 128)
    ]


async def _first_step(pg: PostgresServer, backend: str) -> list[Figure]:
    """How long after it is accepted a body begins, in commits."""
    schema, began = _schema(), 0.0

    async def note(ctx: RunContext, messages: Sequence[Message]) -> None:
        nonlocal began
        began = time.perf_counter()

    async with _supervisor(pg, schema, LaneSpec("main", handler=note)) as sup:
        rows, accepted, commits = _Bare(pg, sup, schema), list[float](), list[float]()
        for n in range(FIRST_STEPS):
            at = time.perf_counter()
            await (await sup.accept("main", _TEXT, session=f"s{n % 4}")).wait()
            accepted.append(began - at)
            commits.append(await rows.insert())
    ratio, detail = median(accepted) / median(commits), f"a commit: {median(commits) * 1e3:.2f} ms"
    return [Figure(f"accept → a body begins ({backend})", ratio, "commits", 8, detail=detail)]


async def _cancel(pg: PostgresServer, backend: str) -> list[Figure]:
    """How long after `everywhere.cancel` on one node a body on another one is cancelled."""
    schema, started, ended = _schema(), list[object](), list[float]()

    async def note(ctx: RunContext, messages: Sequence[Message]) -> None:
        started.append(ctx.session)
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(time.perf_counter())

    took = list[float]()
    one, two = (_supervisor(pg, schema, LaneSpec("main", handler=note)) for _ in range(2))
    with anyio.fail_after(LIMIT_S):
        async with one, two:
            for n in range(CANCELS):
                accepted = await one.accept("main", n, session=f"s{n}")
                while not started:
                    await anyio.sleep(0.005)
                started.clear()
                began = time.perf_counter()
                await two.everywhere.cancel(session=f"s{n}")
                await accepted.wait()
                took.append(ended[-1] - began)
    return [Figure(f"a cancel from another node, p50 ({backend})", median(took) * 1e3, "ms", 50)]


async def _calls(pg: PostgresServer, backend: str) -> list[Figure]:
    """CPU of this process for a call of 16 tasks at a time, by that of the library in a thread for each task."""
    schema = _schema()
    async with _supervisor(pg, schema) as sup:
        rows = _Bare(pg, sup, schema)
        with ExitStack() as stack:
            connections = [stack.enter_context(psycopg.connect(pg.tcp_dsn, autocommit=True)) for _ in range(16)]

            async def ours(_n: int) -> None:
                await rows.do("select 1")

            async def theirs(n: int) -> None:
                await anyio.to_thread.run_sync(connections[n].execute, "select 1")

            ratios, us = list[float](), list[float]()
            for _ in range(ROUNDS):
                mine = await _cpu_of_calls(ours)
                ratios.append(mine / await _cpu_of_calls(theirs))
                us.append(mine * 1e6)
    detail = f"{median(us):.0f} µs of CPU a call"
    return [Figure(f"a call / psycopg in 16 threads, CPU ({backend})", median(ratios), "×", 1, detail=detail)]


async def _cpu_of_calls(call: Callable[[int], Awaitable[None]]) -> float:
    async def many(n: int) -> None:
        for _ in range(CALLS):
            await call(n)

    cpu = time.process_time()
    async with anyio.create_task_group() as group:
        for n in range(16):
            group.start_soon(many, n)
    return (time.process_time() - cpu) / CALLS / 16


async def _idle(pg: PostgresServer) -> Figure:
    """What a node without work costs the server."""
    async with _supervisor(pg, _schema(), LaneSpec("main", handler=_answer)) as sup:
        await (await sup.accept("main", _TEXT)).wait()
        await anyio.sleep(1.5)  # it gives back what it had
        before = cpu_of_server(pg)
        await anyio.sleep(3)
        share = (cpu_of_server(pg) - before) / 3
    return Figure("a node without work: of a core of the server", share * 100, "%")


# Nodes in processes of their own


def node(dsn: str, schema: str, ttl: str, sleep_s: str) -> None:
    """Serve until standard input ends. The lane `main` sleeps, and says so."""

    async def sleep(ctx: RunContext, messages: Sequence[Message]) -> None:
        print(json.dumps(messages[0].body), flush=True)
        await anyio.sleep(float(sleep_s))

    async def serve() -> None:
        store = PostgresStore(dsn, schema=schema, ttl=float(ttl))
        async with Supervisor(store, lanes=[LaneSpec("main", handler=sleep, capacity=SLOTS)]):
            print("serves", flush=True)
            await anyio.to_thread.run_sync(sys.stdin.read)

    anyio.run(serve)


@contextmanager
def _node(pg: PostgresServer, schema: str, ttl: float, sleep_s: float) -> Iterator[subprocess.Popen[str]]:
    arguments = [sys.executable, "-m", "benchmarks.cluster", pg.tcp_dsn, schema, str(ttl), str(sleep_s)]
    child = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "serves\n"
        yield child
    finally:
        child.kill()
        child.communicate()


def _takeover(pg: PostgresServer) -> Figure:
    """From the kill of a node until another one begins the next message of its session."""
    grace, took = TTL_S / 4, list[float]()
    for _ in range(ROUNDS):
        schema = _schema()
        anyio.run(_made, pg, schema)
        with _node(pg, schema, TTL_S, 60) as first:
            _accept(pg, schema, ["first", "second"], "one")
            assert first.stdout is not None
            assert first.stdout.readline() == '"first"\n'
            with _node(pg, schema, TTL_S, 60) as heir:
                assert heir.stdout is not None
                first.kill()
                began = time.perf_counter()
                assert heir.stdout.readline() == '"second"\n'
                took.append(time.perf_counter() - began)
    bound = TTL_S + grace + TTL_S / 4 + 0.5
    return Figure(f"takeover after kill -9, TTL {TTL_S:g} s", max(took), "s", bound, detail=f"the slowest of {ROUNDS}")


def _three_nodes(pg: PostgresServer) -> Figure:
    """Messages a second of three nodes, by those of one, where handlers sleep."""
    ratios, rates = list[float](), list[float]()
    for _ in range(2):
        one, many = (_rate(pg, nodes) for nodes in (1, NODES))
        ratios.append(many / one)
        rates.append(one)
    detail = f"one: {median(rates):.0f} messages a second of at most {SLOTS / SLEEP_S:.0f}"
    return Figure(f"{NODES} nodes / one, handlers that sleep", median(ratios), "×", 2.2, at_least=True, detail=detail)


def _rate(pg: PostgresServer, nodes: int) -> float:
    schema = _schema()
    anyio.run(_made, pg, schema)
    with ExitStack() as stack:
        for child in [stack.enter_context(_node(pg, schema, 10, SLEEP_S)) for _ in range(nodes)]:
            assert child.stdout is not None
            threading.Thread(target=child.stdout.read, daemon=True).start()
        with psycopg.connect(pg.dsn, autocommit=True) as connection:
            for n in range(MESSAGES):
                _accept_one(connection, schema, "main", n, f"s{n}")
            deadline = time.monotonic() + LIMIT_S
            while True:
                row: Any = connection.execute(
                    "select count(*) filter (where state <> 'done'), "
                    f"extract(epoch from max(ended_at) - min(started_at))::float8 from {schema}.message"
                ).fetchone()
                if not row[0]:
                    return MESSAGES / float(row[1])
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{row[0]} messages are not answered")
                time.sleep(0.1)


async def _made(pg: PostgresServer, schema: str) -> None:
    async with _supervisor(pg, schema):
        pass


def _accept(pg: PostgresServer, schema: str, bodies: Sequence[str], session: str) -> None:
    with psycopg.connect(pg.dsn, autocommit=True) as connection:
        for body in bodies:
            _accept_one(connection, schema, "main", body, session)


def _accept_one(connection: psycopg.Connection, schema: str, lane: str, body: object, session: str) -> None:
    """As a node that conducts nothing."""
    connection.execute(
        f"select {schema}.accept(%s, 1, %s, %s, null, null, null, %s, 'null', null, '', 0, false, null, null, "
        "%s::bigint, 0::bigint, false)",
        (f"s:{session}", lane, session, json.dumps(body).encode(), secrets.randbits(62)),
    )


if __name__ == "__main__":
    quiet()
    node(*sys.argv[1:])
