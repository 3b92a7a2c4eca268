"""Many sessions at once: the load of waiters on the event loop, and the memory of idle sessions."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import tracemalloc

import anyio

from locks import LockRegistry

from .measure import Figure

FILES, SECONDS = 64, 10.0
SESSIONS = 100_000
TICK_S = 0.01


def figures() -> list[Figure]:
    """Waiters on both event loops, then idle sessions."""
    return [figure for backend in ("asyncio", "trio") for figure in _waiting(backend)] + [anyio.run(_idle)]


def _waiting(backend: str) -> list[Figure]:
    with tempfile.TemporaryDirectory() as directory:
        holder = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.many", directory], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert holder.stdout is not None
        holder.stdout.readline()
        floor, _ = anyio.run(_lag, None, backend=backend)
        lags, cpu = anyio.run(_lag, directory, backend=backend)
        holder.communicate()
    p99 = sorted(lags)[int(len(lags) * 0.99)] * 1e3
    floor_p99 = sorted(floor)[int(len(floor) * 0.99)] * 1e3
    name = f"{FILES} waiters for other processes on {FILES} files"
    return [
        Figure(f"{name}: loop lag p99 ({backend})", p99, "ms", 20, detail=f"without them {floor_p99:.2f} ms"),
        Figure(f"{name}: CPU ({backend})", cpu * 100, "%", 10, detail=f"of one core, over {SECONDS:g} s"),
    ]


async def _lag(directory: str | None) -> tuple[list[float], float]:
    """The delay of a timer of 10 ms, and the used share of a core."""
    registry, lags = LockRegistry(), []

    async def wait(path: str) -> None:
        async with registry.lease(path):
            pass

    async with anyio.create_task_group() as group:
        if directory is not None:
            for number in range(FILES):
                group.start_soon(wait, f"{directory}/{number}.jsonl")
        await anyio.sleep(0.5)
        began, used = time.monotonic(), time.process_time()
        while time.monotonic() < began + (SECONDS if directory is not None else SECONDS / 5):
            due = time.monotonic() + TICK_S
            await anyio.sleep(TICK_S)
            lags.append(time.monotonic() - due)
        cpu = (time.process_time() - used) / (time.monotonic() - began)
        group.cancel_scope.cancel()
    return lags, cpu


async def _hold(directory: str) -> None:
    registry = LockRegistry(max_hold=600)

    async def hold(path: str) -> None:
        async with registry.lease(path):
            await anyio.sleep_forever()

    async with anyio.create_task_group() as group:
        for number in range(FILES):
            group.start_soon(hold, f"{directory}/{number}.jsonl")
        while registry.statistics().held < FILES:
            await anyio.sleep(0.01)
        os.write(1, b"held\n")
        await anyio.to_thread.run_sync(sys.stdin.read)
        group.cancel_scope.cancel()


async def _idle() -> Figure:
    """Touch a hundred thousand sessions once each, and measure what the registry keeps."""
    registry = LockRegistry()
    with tempfile.TemporaryDirectory() as directory:

        async def touch(first: int, count: int) -> None:
            for number in range(first, first + count):
                async with registry.lease(f"{directory}/{number % 1000}/{number}.jsonl"):
                    pass

        for number in range(1000):
            os.mkdir(f"{directory}/{number}")
        await touch(0, 1000)
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        await touch(1000, SESSIONS)
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        left = registry.statistics().sessions
    detail = f"{left} sessions left in the registry, {after - before} bytes in all"
    return Figure(
        f"{SESSIONS:,} sessions touched once: bytes kept for each", (after - before) / SESSIONS, "B", 1, detail=detail
    )


if __name__ == "__main__":
    anyio.run(_hold, sys.argv[1])
