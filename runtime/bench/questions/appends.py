"""What it costs to append one line to a shared file, by the size of the line."""

from __future__ import annotations

import os
import tempfile
import time
from functools import partial
from typing import Any

import anyio
import msgspec

from ..peers.interface import Backend, Peer
from .contention import violations
from .interface import Ask, Cell, Question, Sample, Scale

_BYTES, _FEWEST, _MOST = 20_000_000, 20, 500


def measure(peer: Peer, backend: Backend, *, size: int) -> Sample:
    """In the worker: microseconds to take the lock, append a line of `size` bytes, and give the lock back.

    Every line is JSON, and is with the kernel when the lock is given back. A peer that has no appends of its own opens
    the file, writes, and closes it.
    """
    count = min(_MOST, max(_FEWEST, _BYTES // size // 10))
    record = {"role": "user", "text": "x" * max(0, size - len('{"role": "user", "text": ""}\n'))}
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "session.jsonl")
        locks = peer.make()
        if backend == "blocking":
            took_s = _blocking(locks, path, record, count)
        else:
            took_s = anyio.run(partial(_async, locks, path, record, count, own=peer.appends), backend=backend)
    return Sample({"append": took_s / count * 1e6})


def _blocking(locks: Any, path: str, record: dict[str, str], count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        with locks.hold(path):
            _append(path, record)
    return time.perf_counter() - began


async def _async(locks: Any, path: str, record: dict[str, str], count: int, *, own: bool) -> float:
    began = time.perf_counter()
    for _ in range(count):
        async with locks.hold(path) as lease:
            if own:
                await lease.append(record)
            else:
                _append(path, record)
    return time.perf_counter() - began


def _append(path: str, record: dict[str, str]) -> None:
    with open(path, "ab", buffering=0) as file:
        file.write(msgspec.json.encode(record) + b"\n")


def _take(cell: Cell, ask: Ask, scale: Scale) -> Sample:
    found = ask("appends:measure", size=cell.x)
    found.violations += violations(ask)
    return found


MESSAGE_SIZE = Question(
    name="message-size",
    title="What does appending one line of so many bytes under the lock cost?",
    unit="µs",
    kind="between",
    take=_take,
    floor="flock",
    x="bytes",
    sizes=lambda scale: (100, 1_000, 10_000, 100_000, 1_000_000) if scale.full else (100, 10_000, 1_000_000),
    seconds=12,
    rounds=3,
)
