"""Pools: a grant without contention against `anyio.CapacityLimiter`, and how the cost of a grant grows with waiters."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from types import SimpleNamespace
from typing import Any

import anyio

from lanes import LaneSpec, PoolSpec, RunContext
from lanes.checks import Priority
from lanes.queues.pool import Claim, Pool
from runtime import Supervisor

from .measure import Figure, per_operation, quiet, ratio

PAIRS = 4000
FEW, MANY = 1_000, 10_000
GRANT_BOUND, CROWD_BOUND, GROWTH_BOUND = 1.5, 1.5, 1.3
POOLS = (
    PoolSpec("slots", slots=8),
    PoolSpec("all", slots=8, rate=(10**6, 60.0), tokens=(10**9, 60.0)),
    PoolSpec("one", slots=1),
)


def figures() -> list[Figure]:
    """On both event loops."""
    quiet(logging.CRITICAL)  # ten thousand tasks keep the loop for longer than a watchdog likes
    return [*anyio.run(_figures, "asyncio"), *anyio.run(_figures, "trio", backend="trio")]


async def _figures(backend: str) -> list[Figure]:
    with tempfile.TemporaryDirectory() as sessions:
        async with Supervisor(sessions, lanes=[LaneSpec("main", timeout=600.0)], pools=POOLS) as sup:
            found: list[Figure] = await sup.run("main", _measured, backend)
            return found


async def _measured(ctx: RunContext, backend: str) -> list[Figure]:
    limiter, single = anyio.CapacityLimiter(8), anyio.CapacityLimiter(1)
    slots, all_three = partial(ctx.pool, "slots"), partial(ctx.pool, "all", tokens=100)
    return [
        await ratio(
            f"a grant of slots / anyio.CapacityLimiter ({backend})",
            partial(_pairs, slots),
            partial(_pairs, lambda: limiter),
            bound=GRANT_BOUND,
        ),
        await ratio(
            f"a grant of slots, rate and tokens / anyio.CapacityLimiter ({backend})",
            partial(_pairs, all_three),
            partial(_pairs, lambda: limiter),
            bound=None,
        ),
        await ratio(
            f"10,000 tasks that wait for a grant / anyio.CapacityLimiter ({backend})",
            partial(_crowd, partial(ctx.pool, "one")),
            partial(_crowd, lambda: single),
            bound=CROWD_BOUND,
            rounds=3,
        ),
        await ratio(
            f"  a grant of these, 10,000 waiting / 1,000 waiting, without the tasks ({backend})",
            partial(_claims, ctx, MANY),
            partial(_claims, ctx, FEW),
            bound=GROWTH_BOUND,
        ),
    ]


async def _pairs(make: Callable[[], AbstractAsyncContextManager[Any]]) -> float:
    async def body() -> None:
        for _ in range(PAIRS):
            async with make():
                pass

    return await per_operation(PAIRS, body)


async def _crowd(make: Callable[[], AbstractAsyncContextManager[Any]]) -> float:
    """Every holder suspends once, so that all the others wait."""

    async def waiter() -> None:
        async with make():
            await anyio.lowlevel.checkpoint()

    async def body() -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(MANY):
                tasks.start_soon(waiter)

    return await per_operation(MANY, body)


async def _claims(ctx: RunContext, waiting: int) -> float:
    """As many claims of as many sessions wait, and are granted one after the other."""
    pool: Pool[Any] = Pool(PoolSpec("one", slots=1))
    waiters = [SimpleNamespace(run=SimpleNamespace(session=str(number), lane="main")) for number in range(waiting)]

    async def body() -> None:
        held = Claim[Any](pool, ctx, 0)
        pool.ask(held, 0.0)
        for waiter in waiters:
            pool.wait(Claim(pool, waiter, 0), Priority.NORMAL, 0.0)
        for _ in waiters:
            pool.end(held, 0.0)
            granted, _ = pool.next(0.0)
            assert granted is not None
            held = granted

    return await per_operation(waiting, body)
