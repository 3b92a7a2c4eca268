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
from runtime.inbox.schema import connect
from runtime.inbox.settings import Durability

from .measure import Figure

SINGLES, SHARED = 100, 10
"""Messages of one sender; of each of many."""
OPEN, ROWS, LITTLE = 100_000, 1_000_000, 1_000
ROUNDS = 3
LIMIT_S = 300.0
_TEXT = "x" * 300


async def _answer(ctx: RunContext, messages: Sequence[Message]) -> None:
    return None


LANES = [LaneSpec("main", handler=_answer, capacity=32, queue_limit=None), LaneSpec("other", handler=_answer)]


def _supervisor(directory: str, durability: Durability) -> Supervisor:
    return Supervisor(directory, lanes=LANES, inbox=Inbox(durability=durability), limits=Limits(lag_s=60))


def figures() -> list[Figure]:
    """All figures of this module."""
    return [
        *(figure for backend in ("asyncio", "trio") for figure in anyio.run(_shared, backend, backend=backend)),
        *(anyio.run(_first_step, backend, backend=backend) for backend in ("asyncio", "trio")),
        *anyio.run(_come_back),
        anyio.run(_many_rows),
        anyio.run(_questions),
    ]


async def _shared(backend: str) -> list[Figure]:
    """Accepted messages a second of many senders, by those of one, each commit with a sync of the disk."""
    single, ratios = [], dict[int, list[float]]()
    for _ in range(ROUNDS):
        single.append(await _rate(1, SINGLES))
        for senders in (16, 128):
            ratios.setdefault(senders, []).append(await _rate(senders, SHARED) / single[-1])
    return [
        Figure(
            f"accept with a sync, {senders} senders / one ({backend})",
            median(ratios[senders]),
            "×",
            bound,
            at_least=True,
            detail=f"one: {median(single):,.0f} messages a second",
        )
        for senders, bound in ((16, 5), (128, 15))
    ]


async def _rate(senders: int, each: int) -> float:
    with tempfile.TemporaryDirectory(dir=".") as directory, anyio.fail_after(LIMIT_S):
        async with _supervisor(directory, "sync") as sup:

            async def send() -> None:
                for _ in range(each):
                    await sup.accept("main", _TEXT)

            began = time.perf_counter()
            async with anyio.create_task_group() as group:
                for _ in range(senders):
                    group.start_soon(send)
            return senders * each / (time.perf_counter() - began)


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


async def _come_back() -> list[Figure]:
    """How long a process takes to have brought back, and answered, what the last one has left."""
    with tempfile.TemporaryDirectory() as directory, anyio.fail_after(LIMIT_S):
        async with _supervisor(directory, "process"):
            pass
        _fill(directory, OPEN, "accepted")
        tracemalloc.start()
        began = time.perf_counter()
        async with _supervisor(directory, "process") as sup:
            assert sup._inbox is not None
            await anyio.sleep(0.01)
            opened = time.perf_counter() - began
            while sup._inbox.replay.behind or sup._inbox.door.in_memory:
                await anyio.sleep(0.01)
            took = time.perf_counter() - began
            peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return [
        Figure(f"{OPEN:,} open messages: until work is taken", opened, "s", 3),
        Figure(f"{OPEN:,} open messages: until all are answered", took, "s", detail="under tracemalloc"),
        Figure(f"{OPEN:,} open messages: memory at most", peak / 1e6, "MB", 20),
    ]


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
    ended = None if state == "accepted" else time.time()
    rows = (("main", f'"{_TEXT}"'.encode(), state, time.time(), ended) for _ in range(count))
    with closing(connect(path, "process")) as connection:
        connection.execute("BEGIN")
        connection.executemany(
            "INSERT INTO message (lane, body, route, digest, repeat, first, state, accepted_at, ended_at) "
            "VALUES (?, ?, CAST('null' AS BLOB), x'', 0, 0, ?, ?, ?)",
            rows,
        )
        connection.execute("COMMIT")
