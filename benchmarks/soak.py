"""Mixed load for a while, with timeouts, failures, interruptions and restarts: whether memory stays flat.

With `LANES_LONG=1` the load runs for ten minutes, which the figures need; otherwise for twenty seconds, as a trial.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import anyio
import psutil

from lanes import Draining, LaneFull, LaneSpec, Message, Run, RunContext
from runtime import Supervisor

from .measure import Figure, at_once, quiet

BACKENDS = ("asyncio", "trio")
LONG = bool(os.environ.get("LANES_LONG"))
MINUTES = 10.0 if LONG else 1 / 3
RESTART_EVERY_S = 60.0 if LONG else 5.0
WARM_UP = 0.2
"""The share of the time that counts as warm-up; memory should be flat after it."""
STEP_S, KEYS, HELD_BYTES, TIMEOUT_S = 0.01, 50, 200_000, 0.05
SLOPE_MB, GROWTH_MB, SHORT = 12.0, 2.0, "the short form, no verdict: LANES_LONG=1"


def figures() -> list[Figure]:
    """All figures of this module, on both event loops at once."""
    heard = at_once(__name__, *((backend,) for backend in BACKENDS), within_s=MINUTES * 60 + 60)
    return [figure for backend, one in zip(BACKENDS, heard, strict=True) for figure in _figures(backend, one)]


def _figures(backend: str, heard: dict[str, Any]) -> list[Figure]:
    length = f"{MINUTES:g} min" if MINUTES >= 1 else f"{MINUTES * 60:.0f} s"
    states = ", ".join(f"{number:,} {state}" for state, number in sorted(heard["states"].items()) if number)
    name = f"{length} of mixed load with timeouts"
    more = max(after - before for before, after in heard["left"].values())
    left = ", ".join(f"{what} {before} → {after}" for what, (before, after) in heard["left"].items())
    return [
        Figure(
            f"{name}: memory per hour after warm-up ({backend})",
            heard["slope"] * 3600 / 1e6,
            "MB",
            SLOPE_MB if LONG else None,
            detail=f"{heard['first'] / 1e6:.1f} → {heard['last'] / 1e6:.1f} MB" if LONG else SHORT,
        ),
        Figure(
            f"  the same by statistics() ({backend})",
            heard["own_slope"] / 1e6,
            "MB",
            detail="of the whole time but its first tenth" if LONG else "0 in the first minute",
        ),
        Figure(
            f"  memory gained after warm-up ({backend})",
            (heard["last"] - heard["first"]) / 1e6,
            "MB",
            GROWTH_MB if LONG else None,
            detail=f"{states}; {heard['refused']} refused; {heard['restarts']} restarts",
        ),
        Figure(f"  tasks, threads, descriptors: most that were left ({backend})", more, "", 0, detail=left),
    ]


class _Load:
    """A gateway's mixed load, a few calls every 10 ms."""

    def __init__(self, sup: Supervisor) -> None:
        self._sup = sup
        self._cancelled: Run | None = None
        self.refused = 0

    def step(self, number: int) -> None:
        """Submit the two or three runs that are due; a refused run is not submitted again."""
        sup, key = self._sup, f"session:{number % KEYS}"
        try:
            sup.post(key, f"m{number // 2}", dedupe=f"{number // 2}")  # every other one is a repetition
            match number % 6:
                case 0:
                    sup.submit("cron", _overstay)
                case 1:
                    sup.submit(f"once:{number}", _fail)
                case 2:
                    sup.post(key, f"i{number}", when_busy="interrupt")
                case 3:
                    sup.submit("main", _delegate, session=f"delegate-{number % KEYS}")
                case 4:
                    self._cancelled = sup.submit("heartbeat", _wait)
                case _:
                    if self._cancelled is not None:
                        self._cancelled.cancel("its sender has gone")
        except (Draining, LaneFull):
            self.refused += 1


async def _answer(ctx: RunContext, messages: Sequence[Message]) -> None:
    for message in messages:
        await anyio.sleep(0.005)
        await ctx.session.append({"role": "assistant", "answers": message.body})


async def _overstay(ctx: RunContext) -> None:
    held = bytearray(HELD_BYTES)
    await anyio.sleep(60 + len(held))


async def _fail(ctx: RunContext) -> None:
    held = bytearray(HELD_BYTES)
    await anyio.sleep(0.005)
    raise ValueError(f"no model for {len(held)} bytes")


async def _delegate(ctx: RunContext) -> None:
    await ctx.submit("subagent", _wait, timeout=0.02).wait()
    await ctx.session.append({"role": "assistant"})


async def _wait(ctx: RunContext) -> None:
    await anyio.sleep(0.2)


LANES = [
    LaneSpec("session:*", handler=_answer, timeout=5.0),
    LaneSpec("cron", capacity=8, group="background", priority="background", timeout=TIMEOUT_S, grace=0.5),
    LaneSpec("once:*", timeout=5.0),
]


async def _measure() -> dict[str, Any]:
    process, samples = psutil.Process(), list[tuple[float, int]]()
    states, restarts = Counter[str](), 0

    async def watch() -> None:
        while True:
            await anyio.sleep(1.0)
            samples.append((time.monotonic() - began, process.memory_info().rss))

    async def restart() -> None:
        nonlocal restarts
        while True:
            await anyio.sleep(RESTART_EVERY_S)
            await sup.restart(drain_timeout=1.0)
            restarts += 1

    with tempfile.TemporaryDirectory() as directory:
        async with Supervisor(directory, lanes=LANES) as sup:
            load, began = _Load(sup), time.monotonic()
            before: tuple[int, int, int] | None = None
            async with anyio.create_task_group() as group:
                group.start_soon(watch)
                group.start_soon(restart)
                number = 0
                while (since := time.monotonic() - began) < MINUTES * 60:
                    if before is None and since >= WARM_UP * MINUTES * 60:
                        before = await _at_rest(sup)
                    load.step(number)
                    number += 1
                    await anyio.sleep(STEP_S)
                after, statistics = await _at_rest(sup), sup.statistics()
                group.cancel_scope.cancel()
            states.update({state: found for state, found in statistics.runs.items() if state != "running"})
    warm = [(at, memory) for at, memory in samples if at >= WARM_UP * MINUTES * 60]
    fifth = len(warm) // 5
    assert before is not None
    return {
        "slope": _slope(warm),
        "own_slope": statistics.process.memory_per_hour,
        "first": _mean(warm[:fifth]),
        "last": _mean(warm[-fifth:]),
        "left": dict(zip(("tasks", "threads", "descriptors"), zip(before, after, strict=True), strict=True)),
        "states": states,
        "restarts": restarts,
        "refused": load.refused,
    }


async def _at_rest(sup: Supervisor) -> tuple[int, int, int]:
    """Tasks, threads and descriptors when no run is left."""
    while sup.runs():
        await anyio.sleep(0.02)
    await anyio.sleep(0.2)
    return len(anyio.get_running_tasks()), threading.active_count(), psutil.Process().num_fds()


def _mean(points: list[tuple[float, int]]) -> float:
    return math.fsum(memory for _, memory in points) / len(points)


def _slope(points: list[tuple[float, int]]) -> float:
    """Least squares, bytes per second."""
    middle_at, middle = math.fsum(at for at, _ in points) / len(points), _mean(points)
    spread = math.fsum((at - middle_at) ** 2 for at, _ in points)
    return math.fsum((at - middle_at) * (memory - middle) for at, memory in points) / spread


async def _main() -> None:
    with anyio.fail_after(MINUTES * 60 + 50):
        print(json.dumps(await _measure()))


if __name__ == "__main__":
    quiet(logging.CRITICAL)
    anyio.run(_main, backend=sys.argv[1])
