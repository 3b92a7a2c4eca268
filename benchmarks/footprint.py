"""The memory of lanes and runs: live ones, ended ones, and runs that time out while they hold much memory.

Each figure is taken in a fresh process, whose resident size no other figure has touched.
"""

from __future__ import annotations

import gc
import json
import logging
import resource
import sys
import tempfile
import tracemalloc
import weakref
from collections.abc import Awaitable, Callable
from typing import Any
from unittest.mock import patch

import anyio
import psutil
from anyio.lowlevel import checkpoint

from lanes import GroupSpec, LaneSpec, RunContext
from runtime import Limits, Supervisor

from .measure import Figure, at_once, quiet

BACKENDS = ("asyncio", "trio")
LIMIT_S = 100.0
LIVE = 10_000
ONE_SHOT, TOGETHER = 100_000, 100
TIMED_OUT, HELD_BYTES, TIMEOUT_S = 500, 5_000_000, 0.005
SETTLE = 10  # rounds of the loop in which an ended task is let go


def figures() -> list[Figure]:
    """All figures of this module, on both event loops at once."""
    calls = [(what, backend) for what in _MEASURES for backend in BACKENDS]
    found: list[Figure] = []
    for pair in zip(
        calls[::2], calls[1::2], strict=True
    ):  # both event loops at once: as many processes as there are cores
        for (what, backend), heard in zip(pair, at_once(__name__, *pair), strict=True):
            found += _FIGURES[what](backend, heard)
    return found


def _live_figures(backend: str, heard: dict[str, Any]) -> list[Figure]:
    name = f"{LIVE:,} live session lanes, each with a run: RSS per lane ({backend})"
    detail = f"{heard['traced'] / LIVE / 1e3:.1f} kB traced; {heard['files']} descriptors"
    return [Figure(name, heard["rss"] / LIVE / 1e3, "kB", 20, detail=detail)]


def _one_shot_figures(backend: str, heard: dict[str, Any]) -> list[Figure]:
    name = f"{ONE_SHOT:,} one-shot lanes: bytes kept for each ({backend})"
    detail = f"{heard['kept']} bytes in all, {heard['tasks']} tasks more than before"
    return [
        Figure(name, heard["kept"] / ONE_SHOT, "B", 1, detail=detail),
        Figure(f"  lanes left ({backend})", heard["lanes"], "", 0),
    ]


def _timed_out_figures(backend: str, heard: dict[str, Any]) -> list[Figure]:
    name = f"{TIMED_OUT} timed-out runs with {HELD_BYTES / 1e6:g} MB each"
    detail = "largest, after any of them, without a gc pass; the sender keeps every error"
    return [
        Figure(f"{name}: RSS growth ({backend})", heard["rss"] / 1e6, "MB", 20, detail=detail),
        Figure(
            f"  still alive without a gc pass ({backend})", heard["alive"], "", 0, detail=f"{heard['passes']} passes"
        ),
        Figure(f"  with child tasks: alive after one gc pass ({backend})", heard["alive_after_gc"], "", 0),
    ]


_FIGURES: dict[str, Callable[[str, dict[str, Any]], list[Figure]]] = {
    "live": _live_figures,
    "one_shot": _one_shot_figures,
    "timed_out": _timed_out_figures,
}


async def _live() -> dict[str, Any]:
    """Session lanes: each holds its session's turn, and so a file and a kernel lock."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    process = psutil.Process()
    groups = [GroupSpec("main", slots=2 * LIVE, reserve=4)]

    async def wait(ctx: RunContext) -> None:
        await anyio.sleep_forever()

    with tempfile.TemporaryDirectory() as directory:
        async with Supervisor(directory, groups=groups, limits=Limits(lag_s=60)) as sup:  # the loop is late on purpose

            async def live(kind: str, count: int) -> None:
                for number in range(count):
                    sup.submit(f"session:{kind}:{number}", wait)
                    if number % 1000 == 0:
                        await checkpoint()
                await anyio.sleep(0.2)
                assert sup.statistics().runs["running"] == count
                gc.collect()

            async def end() -> None:
                sup.cancel(reason="measured")
                while sup.runs():
                    await anyio.sleep(0.05)
                gc.collect()

            await live("warm", 200)
            await end()
            resident, files = process.memory_info().rss, process.num_fds()
            await live("resident", LIVE)
            resident, files = process.memory_info().rss - resident, process.num_fds() - files
            await end()
            tracemalloc.start()
            traced, _ = tracemalloc.get_traced_memory()
            await live("traced", LIVE)
            traced = tracemalloc.get_traced_memory()[0] - traced
            tracemalloc.stop()
            await end()
    return {"rss": resident, "traced": traced, "files": files}


async def _one_shot() -> dict[str, Any]:
    """Lanes that each serve one run and are removed."""

    async def work(ctx: RunContext) -> None:
        return

    with tempfile.TemporaryDirectory() as directory:
        async with Supervisor(directory, lanes=[LaneSpec("once:*", priority="foreground")]) as sup:

            async def lanes(first: int, count: int) -> None:
                for start in range(first, first + count, TOGETHER):
                    for run in [sup.submit(f"once:{n:06}", work) for n in range(start, start + TOGETHER)]:
                        await run.result()
                for _ in range(SETTLE):
                    await checkpoint()
                gc.collect()

            tracemalloc.start()
            await lanes(0, 5_000)  # the kept outcomes have their final size
            before, tasks = tracemalloc.get_traced_memory()[0], len(anyio.get_running_tasks())
            await lanes(5_000, ONE_SHOT)
            after = tracemalloc.get_traced_memory()[0]
            tracemalloc.stop()
            left = [name for name in sup.statistics().lanes if name.startswith("once:")]
            tasks = len(anyio.get_running_tasks()) - tasks
    return {"kept": after - before, "lanes": len(left), "tasks": tasks}


class _Graph(bytearray):
    """Stands for the memory of a session; it can be referenced weakly."""

    __slots__ = ("__weakref__",)


async def _timed_out() -> dict[str, Any]:
    """A sender that tries again after each timeout, and keeps the errors."""
    process = psutil.Process()
    watched: list[weakref.ref[_Graph]] = []
    errors: list[BaseException] = []
    largest = passes = 0

    def count_pass(phase: str, info: dict[str, int]) -> None:
        nonlocal passes
        passes += phase == "start"

    def hold() -> _Graph:
        graph = _Graph(b"x" * HELD_BYTES)
        watched.append(weakref.ref(graph))
        return graph

    async def body(ctx: RunContext) -> None:
        graph = hold()
        await anyio.sleep_forever()
        del graph

    async def body_that_wraps(ctx: RunContext) -> None:
        graph = hold()
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class() as error:
            raise RuntimeError(f"the model call failed after {len(graph)} bytes") from error

    async def body_with_children(ctx: RunContext) -> None:
        graph = hold()
        async with anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(anyio.sleep_forever)
        del graph

    with tempfile.TemporaryDirectory() as directory:
        async with Supervisor(directory) as sup:

            async def send(body: Callable[[RunContext], Awaitable[None]], times: int) -> None:
                nonlocal largest
                for _ in range(times):
                    try:
                        await sup.submit("session:one", body, timeout=TIMEOUT_S).result()
                    except TimeoutError as error:
                        errors.append(error)
                    for _ in range(SETTLE):
                        await checkpoint()
                    largest = max(largest, process.memory_info().rss)

            def alive() -> int:
                return sum(ref() is not None for ref in watched)

            gc.collect()
            gc.disable()
            gc.callbacks.append(count_pass)
            with patch.object(gc, "collect", return_value=0):  # no other caller's pass may free it either
                await send(body, 10)  # warm up: the sizes of the allocator's own pools
                resident, largest = process.memory_info().rss, 0
                for one in (body, body_that_wraps):
                    await send(one, TIMED_OUT // 2)
                growth, left, passes_until_then = largest - resident, alive(), passes
            watched.clear()
            await send(body_with_children, 10)
            gc.collect()
            left_after_gc = alive()
            assert len(errors) == TIMED_OUT + 20
    return {"rss": growth, "alive": left, "passes": passes_until_then, "alive_after_gc": left_after_gc}


_MEASURES: dict[str, Callable[[], Awaitable[dict[str, Any]]]] = {
    "live": _live,
    "one_shot": _one_shot,
    "timed_out": _timed_out,
}


async def _measure(what: str) -> None:
    with anyio.fail_after(LIMIT_S):
        print(json.dumps(await _MEASURES[what]()))


if __name__ == "__main__":
    quiet(logging.CRITICAL)
    anyio.run(_measure, sys.argv[1], backend=sys.argv[2])
