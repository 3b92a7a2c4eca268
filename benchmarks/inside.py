"""Inside one process: leases against anyio's and asyncio's locks and portalocker."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import anyio
import portalocker
from anyio.lowlevel import checkpoint

from locks import LockRegistry

from .measure import Figure, absolute, per_operation, ratio

PAIRS = 4000
WAITERS, TURNS_EACH = 1000, 4


async def figures(backend: str) -> list[Figure]:
    """Every figure that needs one event loop."""
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/session.jsonl"
        inside, kernel, lock = LockRegistry(engine="none"), LockRegistry(sidecar=False), anyio.Lock()
        shared = LockRegistry()
        found = [
            await ratio(
                f"uncontended lease, in-process / anyio.Lock ({backend})",
                partial(_pairs, lambda: inside.lease(path)),
                partial(_pairs, lambda: lock),
                bound=1.5 if backend == "asyncio" else 2.5,
            ),
            await ratio(
                f"uncontended lease, kernel lock / portalocker ({backend})",
                partial(_pairs, lambda: kernel.lease(path)),
                partial(_portalocker, path),
                bound=2.0,
            ),
            await absolute(f"  the same ({backend})", partial(_pairs, lambda: kernel.lease(path)), bound_us=30),
            await ratio(
                f"uncontended lease with lock file / a file made and removed ({backend})",
                partial(_pairs, lambda: shared.lease(path)),
                partial(_file_made_and_removed, path),
                bound=4.0,
            ),
            await absolute(f"  the same ({backend})", partial(_pairs, lambda: shared.lease(path)), bound_us=100),
            await ratio(
                f"append of 1 kB under a held lease / a bare write ({backend})",
                partial(_appends, shared, path),
                partial(_writes, path),
                bound=8.0,
            ),
            await absolute(f"  the same ({backend})", partial(_appends, shared, path), bound_us=20),
        ]
        peer_name, peer = ("asyncio.Lock", asyncio.Lock()) if backend == "asyncio" else ("anyio.Lock", lock)
        for name, registry in (("in-process", inside), ("kernel lock", kernel)):
            found.append(
                await ratio(
                    f"handoffs among 1,000 waiters, {name} / {peer_name} ({backend})",
                    partial(_crowd, partial(registry.lease, path)),
                    partial(_crowd, lambda: peer),
                    bound=0.55,
                    at_least=True,
                )
            )
        return found


async def _pairs(make: Callable[[], AbstractAsyncContextManager[Any]]) -> float:
    async def body() -> None:
        for _ in range(PAIRS):
            async with make():
                pass

    return await per_operation(PAIRS, body)


async def _portalocker(path: str) -> float:
    async def body() -> None:
        for _ in range(PAIRS):
            with portalocker.Lock(path, "a", timeout=0):
                pass

    return await per_operation(PAIRS, body)


async def _file_made_and_removed(path: str) -> float:
    data = b"x" * 300

    async def body() -> None:
        for _ in range(PAIRS):
            fd = os.open(path + ".made", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            os.write(fd, data)
            os.close(fd)
            os.unlink(path + ".made")

    return await per_operation(PAIRS, body)


async def _appends(registry: LockRegistry, path: str) -> float:
    record = {"text": "x" * 1_000}

    async with registry.lease(path) as lease:

        async def body() -> None:
            for _ in range(PAIRS):
                await lease.append(record)

        return await per_operation(PAIRS, body)


async def _writes(path: str) -> float:
    data = b"x" * 1_010 + b"\n"
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)

    async def body() -> None:
        for _ in range(PAIRS):
            os.write(fd, data)

    try:
        return await per_operation(PAIRS, body)
    finally:
        os.close(fd)


async def _crowd(make: Callable[[], AbstractAsyncContextManager[Any]]) -> float:
    """Every holder suspends once, so that every acquisition is a handoff."""

    async def waiter() -> None:
        for _ in range(TURNS_EACH):
            async with make():
                await checkpoint()

    async def body() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(WAITERS):
                group.start_soon(waiter)

    return await per_operation(WAITERS * TURNS_EACH, body)


def help_figure() -> Figure:
    """How long `lanes --help` takes to answer, as a whole process."""
    command = [str(Path(sys.executable).with_name("lanes")), "--help"]
    times: list[float] = []
    floor: list[float] = []
    for _ in range(7):
        for argv, sink in ((command, times), ([sys.executable, "-c", ""], floor)):
            began = time.perf_counter()
            subprocess.run(argv, check=True, capture_output=True)
            sink.append(time.perf_counter() - began)
    detail = f"a bare interpreter: {median(floor) * 1e3:.0f} ms"
    return Figure("lanes --help", median(times) * 1e3, "ms", 300, detail=detail)


def run(backend: str) -> list[Figure]:
    """The figures of one backend."""
    work: Callable[[], Awaitable[list[Figure]]] = partial(figures, backend)
    return anyio.run(work, backend=backend)
