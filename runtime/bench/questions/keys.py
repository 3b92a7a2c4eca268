"""What many keys cost: the memory of an idle and of a held one, and the time of a lock among many."""

from __future__ import annotations

import gc
import os
import tempfile
import time
import tracemalloc
from functools import partial

import anyio
import anyio.lowlevel

from ..checker import Witness
from ..peers.interface import Backend, Locks, Peer
from .interface import Ask, Cell, Question, Sample, Scale

_KEYS, _KEYS_FULL = 300, 3_000
_LEAST_TAKEN = 1_000


def sessions(peer: Peer, backend: Backend, *, keys: int) -> Sample:
    """In the worker: microseconds per lock, taken by one task from so many keys in turn, each of which was used."""
    witness = Witness()
    count = max(keys, _LEAST_TAKEN)
    with tempfile.TemporaryDirectory() as directory:
        names = [os.path.join(directory, str(number)) for number in range(keys)]
        took_s = anyio.run(partial(_each_in_turn, peer.make(), names, count, witness), backend=backend)
    return Sample({"take and give back": took_s / count * 1e6}, violations=witness.violations)


async def _each_in_turn(locks: Locks, names: list[str], count: int, witness: Witness) -> float:
    for name in names:  # each is used, and those before it are idle, as in a gateway that has run for a while
        async with locks.hold(name):
            witness.enter(name)
            witness.leave(name)
    gc.collect()
    began = time.perf_counter()
    for number in range(count):
        async with locks.hold(names[number % len(names)]):
            pass
    return time.perf_counter() - began


def memory(peer: Peer, backend: Backend, *, keys: int) -> Sample:
    """In the worker: bytes that a key keeps after its last use, and while it is held."""
    with tempfile.TemporaryDirectory() as directory:
        return anyio.run(partial(_memory, peer, keys, directory), backend=backend)


async def _memory(peer: Peer, keys: int, directory: str) -> Sample:
    witness = Witness()
    first, idle, held = (
        [os.path.join(directory, f"{use}-{number}") for number in range(keys)] for use in ("first", "idle", "held")
    )
    locks: Locks = peer.make()
    tracemalloc.start()
    try:
        await _held(locks, first, witness)  # warm up, with other keys
        await _used(locks, first)
        before = _traced()
        await _used(locks, idle)
        after = _traced()
        bare = await _held(None, held, witness)
        with_locks = await _held(locks, held, witness)
    finally:
        tracemalloc.stop()
    return Sample(
        {"idle key": (after - before) / keys, "held key": (with_locks - bare) / keys}, violations=witness.violations
    )


async def _used(locks: Locks, names: list[str]) -> None:
    for name in names:
        async with locks.hold(name):
            pass


async def _held(locks: Locks | None, names: list[str], witness: Witness) -> int:
    """The traced bytes while a task per key holds its lock; without locks, while as many tasks wait."""
    inside, over = 0, anyio.Event()

    async def hold(name: str) -> None:
        nonlocal inside
        if locks is None:
            inside += 1
            await over.wait()
            return
        async with locks.hold(name):
            witness.enter(name)
            inside += 1
            await over.wait()
            witness.leave(name)

    async with anyio.create_task_group() as group:
        for name in names:
            group.start_soon(hold, name)
        while inside < len(names):
            await anyio.lowlevel.checkpoint()
        found = _traced()
        over.set()
    return found


def _traced() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def _take_sessions(cell: Cell, ask: Ask, scale: Scale) -> Sample:
    return ask("keys:sessions", keys=cell.x)


def _take_memory(cell: Cell, ask: Ask, scale: Scale) -> Sample:
    return ask("keys:memory", keys=scale.pick(_KEYS, _KEYS_FULL))


SESSIONS = Question(
    name="sessions",
    title="What does taking a free lock cost when so many sessions have used one before?",
    unit="µs",
    kind="inside",
    take=_take_sessions,
    floor="anyio.Lock",
    x="sessions",
    sizes=lambda scale: (10, 100, 1_000, 10_000, 100_000) if scale.full else (10, 1_000, 10_000),
    seconds=10,
    rounds=3,
)
MEMORY = Question(
    name="memory",
    title="How much memory does a key keep after its last use, and while it is held?",
    unit="B",
    kind="inside",
    take=_take_memory,
    seconds=8,
    rounds=3,
)
