"""The cost of a run: against a bare task and `aiojobs`, one at a time, on fresh lanes, and from a long backlog."""

from __future__ import annotations

import gc
import tempfile
import time
from contextvars import copy_context
from functools import partial
from statistics import median

import aiojobs
import anyio
from anyio.lowlevel import checkpoint

from lanes import GroupSpec, LaneSpec, RunContext
from lanes.core.task_host import TaskHost, new_host
from locks._loop import Signal, event_type
from runtime import Limits, Supervisor

from .measure import Figure, per_operation, ratio

RUNS = 1000
JOBS, LIMIT = 2000, 32
BACKLOG, LONG_BACKLOG = 20_000, 200_000
BACKLOG_ROUNDS = 3
LIMIT_S = 120.0
MOST_OF_A_TASK = {"asyncio": 1.4, "trio": 1.2}
LANES = [
    LaneSpec("main", capacity=LIMIT, priority="foreground", queue_limit=None),
    LaneSpec("fresh:*", group="fresh", priority="foreground"),
    LaneSpec("backlog", priority="foreground", queue_limit=None),
]
GROUPS = [GroupSpec("fresh", slots=RUNS)]


def figures() -> list[Figure]:
    """All figures of this module, on both event loops."""
    return [figure for backend in ("asyncio", "trio") for figure in anyio.run(_figures, backend, backend=backend)]


async def _figures(backend: str) -> list[Figure]:
    with tempfile.TemporaryDirectory() as directory, anyio.fail_after(LIMIT_S):
        # Submitting 200,000 runs blocks the loop for longer than `limits.lag_s` allows.
        async with Supervisor(directory, lanes=LANES, groups=GROUPS, limits=Limits(lag_s=60)) as sup:
            found = [
                await ratio(
                    f"submit → result / a bare start_soon ({backend})",
                    partial(_one_at_a_time, sup),
                    tasks_one_at_a_time,
                    bound=MOST_OF_A_TASK[backend],
                ),
                await ratio(
                    f"  of that, the body's task, its scope and an event ({backend})",
                    _bodies_one_at_a_time,
                    tasks_one_at_a_time,
                    bound=None,
                ),
                await ratio(
                    f"{RUNS:,} fresh lanes with a run each / {RUNS:,} bare start_soon ({backend})",
                    partial(_fresh_lanes, sup),
                    tasks_together,
                    bound=3.0,
                ),
            ]
            if backend == "asyncio":
                found.append(
                    await ratio(
                        f"{JOBS:,} runs, {LIMIT} at a time / the same jobs of aiojobs ({backend})",
                        partial(_limited, sup),
                        _aiojobs,
                        bound=None,
                    )
                )
            found += await _backlogs(sup, backend)
        return found


async def _work(ctx: RunContext) -> int:
    return 1


async def _one_at_a_time(sup: Supervisor) -> float:
    async def body() -> None:
        for _ in range(RUNS):
            await sup.submit("main", _work).result()

    return await per_operation(RUNS, body)


async def _set(done: anyio.Event) -> None:
    done.set()


async def tasks_one_at_a_time() -> float:
    async def body() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(RUNS):
                done = anyio.Event()
                group.start_soon(_set, done)
                await done.wait()

    return await per_operation(RUNS, body)


async def _body(host: TaskHost, done: Signal) -> None:
    with host.new_scope():
        done.set()


async def _bodies_one_at_a_time() -> float:
    """What no run can do without, and no more: no lane, no deadline, no outcome."""
    new_event = event_type()

    async def body() -> None:
        async with new_host() as host:
            for _ in range(RUNS):
                done = new_event()
                host.start(_body(host, done), "body", copy_context(), _ended)
                await done.wait()

    return await per_operation(RUNS, body)


def _ended(error: BaseException | None) -> None:
    assert error is None


async def _fresh_lanes(sup: Supervisor) -> float:
    async def body() -> None:
        for run in [sup.submit(f"fresh:{number}", _work) for number in range(RUNS)]:
            await run.result()

    gc.collect()  # here and below: a round must not collect the garbage of the round before
    return await per_operation(RUNS, body)


async def tasks_together() -> float:
    async def body() -> None:
        async with anyio.create_task_group() as group:
            events = [anyio.Event() for _ in range(RUNS)]
            for done in events:
                group.start_soon(_set, done)
            for done in events:
                await done.wait()

    gc.collect()
    return await per_operation(RUNS, body)


async def _job() -> int:
    await checkpoint()
    return 1


async def _limited(sup: Supervisor) -> float:
    async def work(ctx: RunContext) -> int:
        return await _job()

    async def body() -> None:
        for run in [sup.submit("main", work) for _ in range(JOBS)]:
            await run.result()

    return await per_operation(JOBS, body)


async def _aiojobs() -> float:
    async def body() -> None:
        async with aiojobs.Scheduler(limit=LIMIT) as scheduler:
            for job in [await scheduler.spawn(_job()) for _ in range(JOBS)]:
                await job.wait()

    return await per_operation(JOBS, body)


async def _backlogs(sup: Supervisor, backend: str) -> list[Figure]:
    """Seconds of a backlog from the first `submit` to the last outcome; and, on asyncio, whether that is linear."""
    lengths = (BACKLOG, LONG_BACKLOG) if backend == "asyncio" else (BACKLOG,)
    await _backlog(sup, BACKLOG)  # warm up
    rounds = [[await _backlog(sup, length) for length in lengths] for _ in range(BACKLOG_ROUNDS)]
    short = median(taken[0] for taken in rounds)
    found = [
        Figure(
            f"a backlog of {BACKLOG:,} on one lane, from submit to the end ({backend})",
            short,
            "s",
            1.5,
            detail=f"{short / BACKLOG * 1e6:.1f} µs each",
        )
    ]
    if len(lengths) > 1:
        each = median(long / LONG_BACKLOG / (short / BACKLOG) for short, long in rounds)
        detail = f"{median(taken[1] for taken in rounds):.1f} s in all"
        name = f"  one of {LONG_BACKLOG:,} / one of {BACKLOG:,} ({backend})"
        found.append(Figure(name, each, "×", 1.3, detail=detail))
    return found


async def _backlog(sup: Supervisor, length: int) -> float:
    gc.collect()
    began = time.perf_counter()
    runs = [sup.submit("backlog", _work) for _ in range(length)]
    await runs[-1].wait()
    taken = time.perf_counter() - began
    assert all(run.outcome is not None for run in runs)
    return taken
