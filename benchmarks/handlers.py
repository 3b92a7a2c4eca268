"""What it costs to test a handler in virtual time: a timeout of five minutes, a question of a day, both sweeps."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from statistics import median
from typing import Any

import anyio

from lanes import LaneSpec, RunState, testing

from .measure import Figure

TIMES = 30
MOST_MS = 20.0
"""A test of a timeout, set up and taken down, in milliseconds of wall time."""


async def sleeps(ctx: Any, messages: Any) -> None:
    await anyio.sleep_forever()


async def asks(ctx: Any, messages: Any) -> None:
    if messages[0].answer is None:
        raise await ctx.ask("well?", expires=86_400)


async def answers(ctx: Any, messages: Any) -> None:
    await ctx.session.append({"role": "user"})
    await anyio.sleep(1)
    async with ctx.cleanup():
        await ctx.finish({"role": "assistant"})


async def timeout() -> int:
    """A handler's timeout, as `docs/testing.md` tests it."""
    async with testing.supervisor([LaneSpec("session:*", handler=sleeps, timeout=300)]) as sup:
        run = sup.post("session:ann", "hello")
        await sup.advance(300)
        assert run.state is RunState.TIMED_OUT
    return 1


async def expiry() -> int:
    """A question that nobody answers for a day."""
    async with testing.supervisor([LaneSpec("session:*", handler=asks)], inbox=True) as sup:
        await (await sup.accept("session:ann", "hello")).wait()
        await sup.advance(86_400)
        assert await sup.asks() == []
    return 1


async def cancelled() -> int:
    """A handler that is cancelled everywhere."""
    return await testing.cancel_everywhere(answers, "hello")


async def told(ctx: Any, messages: Any) -> None:
    await ctx.session.append({"role": "assistant"})


async def killed() -> int:
    """A handler whose process is killed everywhere."""
    return 2 + await testing.crash_everywhere(answers, "hello", on_unknown=told)


def figures() -> list[Figure]:
    """The figures with their bounds."""
    found = []
    for backend in ("asyncio", "trio"):
        found.append(_figure(f"a handler's timeout of 300 s, tested [{backend}]", timeout, backend, MOST_MS))
        found.append(_figure(f"a question that expires after a day, tested [{backend}]", expiry, backend))
        found.append(_figure(f"a handler is cancelled, for each suspension [{backend}]", cancelled, backend))
        found.append(_figure(f"its process is killed, for each suspension [{backend}]", killed, backend))
    return found


def _figure(name: str, test: Callable[[], Awaitable[int]], backend: str, bound: float | None = None) -> Figure:
    took, cpu = [], []
    for _ in range(TIMES + 1):
        began, busy = time.perf_counter(), time.process_time()
        count = testing.run(test, backend=backend)
        took.append(1000 * (time.perf_counter() - began) / count)
        cpu.append(1000 * (time.process_time() - busy) / count)
    detail = f"processor time {median(cpu[1:]):.1f} ms; the first one, with its imports: {took[0]:.0f} ms"
    return Figure(name, median(took[1:]), "ms", bound, detail=detail)
