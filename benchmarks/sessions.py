"""The cost of a message on a session lane: a turn taken and given back, one append, fresh sessions, a long backlog."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from itertools import count
from statistics import median

import anyio

from lanes import GroupSpec, LaneSpec, Message, RunContext
from runtime import Limits, Supervisor

from .measure import Figure, per_operation, ratio
from .throughput import tasks_one_at_a_time, tasks_together

MESSAGES, FRESH = 1000, 1000
BACKLOG, BACKLOG_ROUNDS = 20_000, 3
LIMIT_S = 120.0
_numbers = count()


async def _answer(ctx: RunContext, messages: Sequence[Message]) -> int:
    return 1


async def _append(ctx: RunContext, messages: Sequence[Message]) -> int:
    await ctx.session.append({"text": "hello"})
    return 1


LANES = [
    LaneSpec("session:*", handler=_answer, group="sessions", priority="foreground", queue_limit=None),
    LaneSpec("writing", handler=_append, priority="foreground"),
]
GROUPS = [GroupSpec("sessions", slots=FRESH)]


def figures() -> list[Figure]:
    """All figures of this module, on both event loops."""
    return [figure for backend in ("asyncio", "trio") for figure in anyio.run(_figures, backend, backend=backend)]


async def _figures(backend: str) -> list[Figure]:
    with tempfile.TemporaryDirectory() as directory, anyio.fail_after(LIMIT_S):
        async with Supervisor(directory, lanes=LANES, groups=GROUPS, limits=Limits(lag_s=60)) as sup:
            return [
                await ratio(
                    f"a message on a session lane / a bare start_soon ({backend})",
                    partial(_one_at_a_time, sup, "session:ann", None),
                    tasks_one_at_a_time,
                    bound=3.0,
                ),
                await ratio(
                    f"a message with one append / a bare start_soon ({backend})",
                    partial(_one_at_a_time, sup, "writing", "bob"),
                    tasks_one_at_a_time,
                    bound=4.5,
                ),
                await ratio(
                    f"{FRESH:,} fresh sessions, a message each / {FRESH:,} bare start_soon ({backend})",
                    partial(_fresh, sup),
                    tasks_together,
                    bound=4.0,
                ),
                await _backlogs(sup, backend),
            ]


async def _one_at_a_time(sup: Supervisor, lane: str, session: str | None) -> float:
    async def body() -> None:
        message = Message("hello")
        for _ in range(MESSAGES):
            await sup.post(lane, message, session=session).result()

    gc.collect()
    return await per_operation(MESSAGES, body)


async def _fresh(sup: Supervisor) -> float:
    number = next(_numbers)

    async def body() -> None:
        message = Message("hello")
        for run in [sup.post(f"session:{number}-{one}", message) for one in range(FRESH)]:
            await run.result()

    gc.collect()  # a round must not collect the garbage of the round before
    return await per_operation(FRESH, body)


async def _backlogs(sup: Supervisor, backend: str) -> Figure:
    await _backlog(sup)  # warm up
    taken = median([await _backlog(sup) for _ in range(BACKLOG_ROUNDS)])
    return Figure(
        f"a backlog of {BACKLOG:,} on one session lane, from post to the end ({backend})",
        taken,
        "s",
        2.5,
        detail=f"{taken / BACKLOG * 1e6:.1f} µs each",
    )


async def _backlog(sup: Supervisor) -> float:
    gc.collect()
    message, began = Message("hello"), time.perf_counter()
    runs = [sup.post("session:ann", message) for _ in range(BACKLOG)]
    await runs[-1].wait()
    taken = time.perf_counter() - began
    assert all(run.outcome is not None for run in runs)
    return taken
