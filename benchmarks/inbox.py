"""The durable inbox: what accepting costs, what senders that come together share, and how much comes back how fast."""

from __future__ import annotations

import math
import sqlite3
import tempfile
import time
import tracemalloc
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from statistics import median

import anyio

from lanes import LaneSpec, Message, Outcome, RunContext
from runtime import Inbox, Limits, Supervisor
from runtime.inbox.answer import Answer
from runtime.inbox.replay import PAGE
from runtime.inbox.rows import InboxRow
from runtime.inbox.schema import connect
from runtime.inbox.settings import Durability
from runtime.inbox.sqlite import SqliteInbox

from .measure import Figure
from .without_inbox import without_an_inbox

SINGLES, SHARED = 100, 30
"""Messages of one sender; of each of many."""
OPEN, ROWS, LITTLE = 100_000, 1_000_000, 1_000
ROUNDS = 3
LIMIT_S = 300.0
_TEXT = "x" * 300


async def _answer(ctx: RunContext, messages: Sequence[Message]) -> None:
    return None


async def _hold(ctx: RunContext, messages: Sequence[Message]) -> None:
    await anyio.sleep_forever()


LANES = [
    LaneSpec("main", handler=_answer, capacity=32, queue_limit=None),
    LaneSpec("held", handler=_hold, queue_limit=None, grace=0),
]


def _supervisor(directory: str, durability: Durability) -> Supervisor:
    return Supervisor(directory, lanes=LANES, inbox=Inbox(durability=durability), limits=Limits(lag_s=60))


def figures() -> list[Figure]:
    """All figures of this module."""
    return [
        *(figure for backend in ("asyncio", "trio") for figure in anyio.run(_shared, backend, backend=backend)),
        *(anyio.run(_first_step, backend, backend=backend) for backend in ("asyncio", "trio")),
        anyio.run(_replay),
        *anyio.run(_come_back),
        *without_an_inbox(),
        anyio.run(_many_rows),
        anyio.run(_questions),
    ]


async def _shared(backend: str) -> list[Figure]:
    """Accepted messages a second of many senders, by those of one, each commit with a sync of the disk."""
    single, ratios, batches = [], dict[int, list[float]](), dict[int, list[float]]()
    for _ in range(ROUNDS):
        alone, _ = await _rate(1, SINGLES)
        single.append(alone)
        for senders in (16, 128):
            rate, batch = await _rate(senders, SHARED)
            ratios.setdefault(senders, []).append(rate / alone)
            batches.setdefault(senders, []).append(batch)
    return [
        Figure(
            f"accept with a sync, {senders} senders / one ({backend})",
            median(ratios[senders]),
            "×",
            bound,
            at_least=True,
            detail=f"one: {median(single):,.0f} messages a second; {median(batches[senders]):.0f} share a commit",
        )
        for senders, bound in ((16, 5), (128, 15))
    ]


async def _rate(senders: int, each: int) -> tuple[float, float]:
    """Messages that are accepted, and wait, for answering them would take the time of the loop: a second, a commit."""
    with tempfile.TemporaryDirectory(dir=".") as directory, anyio.fail_after(LIMIT_S):
        async with _supervisor(directory, "sync") as sup:

            async def send() -> None:
                for _ in range(each):
                    await sup.accept("held", _TEXT)

            await send()
            assert sup._inbox is not None
            store = sup._inbox.store
            began, before = time.perf_counter(), store.traffic.commits
            async with anyio.create_task_group() as group:
                for _ in range(senders):
                    group.start_soon(send)
            took, commits = time.perf_counter() - began, store.traffic.commits - before
            await sup.stop(drain_timeout=0.0)  # what waits stays in the inbox
            return senders * each / took, senders * each / commits


async def _first_step(backend: str) -> Figure:
    """How much later a body begins that was accepted, in commits."""
    began = 0.0

    async def note(ctx: RunContext, messages: Sequence[Message]) -> None:
        nonlocal began
        began = time.perf_counter()

    with tempfile.TemporaryDirectory(dir=".") as directory, anyio.fail_after(LIMIT_S):
        lanes = [LaneSpec("main", handler=note)]
        async with Supervisor(directory, lanes=lanes, inbox=Inbox(durability="sync")) as sup:
            assert sup._inbox is not None
            posted, accepted, commits = list[float](), list[float](), list[float]()
            for _ in range(50):
                at = time.perf_counter()
                await sup.post("main", _TEXT).wait()
                posted.append(began - at)
                at = time.perf_counter()
                await (await sup.accept("main", _TEXT)).wait()
                accepted.append(began - at)
                at = time.perf_counter()
                await sup._inbox.journal.settled()
                commits.append(time.perf_counter() - at)
                await _commit(directory, commits)
    added = (median(accepted) - median(posted)) / median(commits)
    return Figure(
        f"accept → first step, added to post → first step ({backend})",
        added,
        "commits",
        1.5,
        detail=f"a commit with a sync: {median(commits) * 1e3:.2f} ms",
    )


async def _commit(directory: str, found: list[float]) -> None:
    """One commit of a row like ours, with a sync, by another connection to another file."""
    with closing(connect(str(Path(directory) / "beside.db"), "sync")) as connection:
        began = time.perf_counter()
        connection.execute("INSERT INTO schedule VALUES (?, 0) ON CONFLICT DO NOTHING", (str(len(found)),))
        found[-1] = time.perf_counter() - began


async def _replay() -> Figure:
    """How long a process takes to open what the last one has left, put it right, and read all of it in pages.

    All of it was started, and may be repeated: the most there can be to put right.
    """
    with tempfile.TemporaryDirectory() as directory, anyio.fail_after(LIMIT_S):
        await _left_behind(directory, OPEN, "started")
        store = SqliteInbox(str(Path(directory) / ".lanes" / "inbox.db"))
        began = time.perf_counter()
        await store.open()
        opened = time.perf_counter()
        await store.recover()
        recovered = time.perf_counter()
        read, last = 0, 0
        while rows := await _page(store, last):
            read, last = read + len(rows), rows[-1].id
        took = time.perf_counter() - began
        await store.close()
    assert read == OPEN
    detail = f"opened in {opened - began:.3f}, put right in {recovered - opened:.3f} s, the rest are pages"
    return Figure(f"{OPEN:,} open messages: opened, put right, and read", took, "s", 3, detail=detail)


async def _page(store: SqliteInbox, after: int) -> list[InboxRow]:
    answer = Answer[list[InboxRow]]()
    store.waiting(None, after, PAGE, answer)
    return await answer.wait()


async def _come_back() -> list[Figure]:
    """How long it takes until all that was left behind is answered, and how much of it is in memory meanwhile."""
    took, cpu, until_work = await _answer_all(OPEN)
    posted = await _post(OPEN // 10) * 10
    peaks = [await _peak(count) for count in (LITTLE * 5, LITTLE * 20)]
    return [
        Figure(f"{OPEN:,} open messages: until work is taken", until_work, "s", 3),
        Figure(f"{OPEN:,} open messages: until all are answered", took, "s", detail=f"{cpu:.0f} s of CPU"),
        Figure(
            "answering what was left behind / posting it, in CPU",
            cpu / posted,
            "×",
            detail="two commits more a message",
        ),
        Figure(
            f"memory with {LITTLE * 20:,} open messages / with {LITTLE * 5:,}",
            peaks[1] / peaks[0],
            "×",
            1.5,
            detail=f"at most {peaks[1] / 1e6:.1f} MB",
        ),
    ]


async def _left_behind(directory: str, count: int, state: str = "accepted") -> None:
    """A directory of sessions as a process has left it, with open messages."""
    async with _supervisor(directory, "process"):
        pass
    _fill(directory, count, state)


async def _answer_all(count: int) -> tuple[float, float, float]:
    """Seconds until all open messages are answered: by the clock, and of CPU; and until work is taken."""
    with tempfile.TemporaryDirectory() as directory, anyio.fail_after(LIMIT_S):
        await _left_behind(directory, count)
        began, cpu = time.perf_counter(), time.process_time()
        async with _supervisor(directory, "process") as sup:
            assert sup._inbox is not None
            opened = time.perf_counter() - began
            while sup._inbox.replay.behind or sup._inbox.door.in_memory:
                await anyio.sleep(0.01)
            return time.perf_counter() - began, time.process_time() - cpu, opened


async def _post(count: int) -> float:
    """Seconds of CPU for as many messages that are posted, as many at a time as there are slots."""
    with tempfile.TemporaryDirectory() as directory, anyio.fail_after(LIMIT_S):
        async with Supervisor(directory, lanes=LANES, limits=Limits(lag_s=60)) as sup:
            cpu = time.process_time()
            for _ in range(count // PAGE):
                runs = [sup.post("main", _TEXT) for _ in range(PAGE)]
                for run in runs:
                    await run.wait()
            return time.process_time() - cpu


async def _peak(count: int) -> float:
    """Bytes in use at most while open messages are answered."""
    tracemalloc.start()
    try:
        await _answer_all(count)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


async def _many_rows() -> Figure:
    """Accepting with a million rows kept, by accepting with a thousand."""
    taken = dict[int, float]()
    for rows in (LITTLE, ROWS):
        with tempfile.TemporaryDirectory() as directory, anyio.fail_after(LIMIT_S):
            async with _supervisor(directory, "process"):
                pass
            _fill(directory, rows, "done")
            async with _supervisor(directory, "process") as sup:
                best = math.inf
                for _ in range(10):
                    began = time.perf_counter()
                    for _ in range(100):
                        await sup.accept("main", _TEXT)
                    best = min(best, time.perf_counter() - began)
                taken[rows] = best / 100
    detail = f"{taken[ROWS] * 1e6:.0f} against {taken[LITTLE] * 1e6:.0f} µs"
    return Figure(f"accept with {ROWS:,} rows / with {LITTLE:,}", taken[ROWS] / taken[LITTLE], "×", 1.2, detail=detail)


async def _questions() -> Figure:
    """What a question that waits takes on disk; in memory there is none."""

    async def ask(ctx: RunContext, messages: Sequence[Message]) -> None:
        raise await ctx.ask("Delete it?", options=["yes", "no"], keep={"file": 1})

    count = 2_000
    with tempfile.TemporaryDirectory() as directory, anyio.fail_after(LIMIT_S):
        lanes = [LaneSpec("main", handler=ask, capacity=32, queue_limit=None)]
        async with Supervisor(directory, lanes=lanes, inbox=True) as sup:
            outcomes = list[Outcome]()

            async def send() -> None:
                for _ in range(count // 20):
                    outcomes.append(await (await sup.accept("main", "x")).wait())

            async with anyio.create_task_group() as group:
                for _ in range(20):
                    group.start_soon(send)
            held = len(sup.runs())
        with closing(sqlite3.connect(Path(directory) / ".lanes" / "inbox.db")) as connection:
            pages, size = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
    return Figure("a question that waits: bytes on disk", pages * size / count, "B", 1_000, detail=f"{held} runs held")


def _fill(directory: str, count: int, state: str) -> None:
    """Rows as earlier processes have left them."""
    path = str(Path(directory) / ".lanes" / "inbox.db")
    ended = time.time() if state == "done" else None
    rows = (("main", f'"{_TEXT}"'.encode(), state, time.time(), ended) for _ in range(count))
    with closing(connect(path, "process")) as connection:
        connection.execute("BEGIN")
        connection.executemany(
            "INSERT INTO message (lane, body, route, digest, repeat, first, state, accepted_at, ended_at) "
            "VALUES (?, ?, CAST('null' AS BLOB), x'', 3, 0, ?, ?, ?)",
            rows,
        )
        connection.execute("COMMIT")
