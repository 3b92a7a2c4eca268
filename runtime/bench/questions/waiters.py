"""How handoffs grow with the number of waiting tasks."""

from __future__ import annotations

import os
import tempfile
import time
from functools import partial

import anyio
from anyio.lowlevel import checkpoint

from ..checker import Witness
from ..peers.interface import Backend, Locks, Peer
from .interface import Ask, Cell, Question, Sample, Scale

_LEAST_HANDOFFS = 2_000


def measure(peer: Peer, backend: Backend, *, waiters: int) -> Sample:
    """In the worker: microseconds per handoff among so many tasks. Each holder suspends once, so each entry is one."""
    witness = Witness()
    turns = max(2, _LEAST_HANDOFFS // waiters)
    with tempfile.TemporaryDirectory() as directory:
        key = os.path.join(directory, "crowd")
        took_s = anyio.run(partial(_crowd, peer.make(), key, witness, waiters, turns), backend=backend)
    return Sample({"handoff": took_s / (waiters * turns) * 1e6}, violations=witness.violations)


async def _crowd(locks: Locks, key: str, witness: Witness, waiters: int, turns: int) -> float:
    async def wait(turns: int) -> None:
        for _ in range(turns):
            async with locks.hold(key):
                witness.enter(key)
                await checkpoint()
                witness.leave(key)

    await wait(10)  # warm up
    began = time.perf_counter()
    async with anyio.create_task_group() as group:
        for _ in range(waiters):
            group.start_soon(wait, turns)
    return time.perf_counter() - began


def _take(cell: Cell, ask: Ask, scale: Scale) -> Sample:
    return ask("waiters:measure", waiters=cell.x)


WAITERS = Question(
    name="waiters",
    title="What does a handoff cost when many tasks of one process wait for the same lock?",
    unit="µs",
    kind="inside",
    take=_take,
    floor="anyio.Lock",
    x="waiters",
    sizes=lambda scale: (2, 10, 100, 1_000, 10_000) if scale.full else (2, 10, 100, 1_000),
    seconds=10,
)
