"""What a lock costs that is free: taken and given back by one task, in one process and between processes."""

from __future__ import annotations

import os
import tempfile
import time
from functools import partial

import anyio
from anyio.lowlevel import checkpoint

from ..checker import Witness
from ..peers.interface import Backend, BlockingLocks, Locks, Peer
from .contention import violations
from .interface import Ask, Cell, Question, Sample, Scale

_PAIRS, _PAIRS_FULL = 2_000, 10_000
_CROWD, _TURNS = 4, 5


def measure(peer: Peer, backend: Backend, *, pairs: int) -> Sample:
    """In the worker: microseconds for taking a free lock and giving it back, and whether the peer excludes tasks."""
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "session.jsonl")
        took_s = pairs_s(peer, backend, path, pairs)
        found = anyio.run(_crowd, peer.make(), path, backend=backend) if peer.kind == "inside" else 0
    return Sample({"take and give back": took_s / pairs * 1e6}, violations=found)


def pairs_s(peer: Peer, backend: Backend, path: str, pairs: int) -> float:
    """Seconds for taking the lock of `path`, which is free, and giving it back, so often."""
    if backend == "blocking":
        return _blocking(peer.make(), path, pairs)
    return anyio.run(partial(_async, peer.make(), path, pairs), backend=backend)


def _blocking(locks: BlockingLocks, path: str, pairs: int) -> float:
    for _ in range(pairs // 10):  # warm up
        with locks.hold(path):
            pass
    began = time.perf_counter()
    for _ in range(pairs):
        with locks.hold(path):
            pass
    return time.perf_counter() - began


async def _async(locks: Locks, path: str, pairs: int) -> float:
    for _ in range(pairs // 10):  # warm up
        async with locks.hold(path):
            pass
    began = time.perf_counter()
    for _ in range(pairs):
        async with locks.hold(path):
            pass
    return time.perf_counter() - began


async def _crowd(locks: Locks, key: str) -> int:
    """The violations of a few tasks that want the same lock: the loop that is timed has no second task."""
    witness = Witness()

    async def wait() -> None:
        for _ in range(_TURNS):
            async with locks.hold(key):
                witness.enter(key)
                await checkpoint()
                witness.leave(key)

    async with anyio.create_task_group() as group:
        for _ in range(_CROWD):
            group.start_soon(wait)
    return witness.violations


def _take(cell: Cell, ask: Ask, scale: Scale) -> Sample:
    return ask("cost:measure", pairs=scale.pick(_PAIRS, _PAIRS_FULL))


def _take_between(cell: Cell, ask: Ask, scale: Scale) -> Sample:
    found = _take(cell, ask, scale)
    found.violations += violations(ask)
    return found


COST = Question(
    name="cost",
    title="What does taking a free lock and giving it back cost, in one process?",
    unit="µs",
    kind="inside",
    take=_take,
    floor="anyio.Lock",
    seconds=8,
)
FILE_COST = Question(
    name="file-cost",
    title="What does taking a free lock and giving it back cost, between processes?",
    unit="µs",
    kind="between",
    take=_take_between,
    floor="flock",
    seconds=15,
)
