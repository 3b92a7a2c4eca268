"""Reading a large transcript, against loops over its lines that do no more than decode them."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import anyio
import msgspec

from locks import LockRegistry

from .measure import Figure, ratio

SIZE = 100_000_000
LAST = 200
_TAIL = 1 << 18
RECORDS = {"of 1 kB": {"text": "x" * 1_000}, "small": {"role": "user", "content": "x" * 100, "tokens": [1, 2, 3]}}
_decode = msgspec.json.Decoder().decode


def figures() -> list[Figure]:
    """The figures of both event loops."""
    found: list[Figure] = []
    with tempfile.TemporaryDirectory() as directory:
        for kind, record in RECORDS.items():
            path = f"{directory}/{kind.replace(' ', '-')}.jsonl"
            line = msgspec.json.encode(record) + b"\n"
            Path(path).write_bytes(line * (SIZE // len(line)))
            for backend in ("asyncio", "trio"):
                found += anyio.run(partial(_figures, path, kind, backend), backend=backend)
    return found


async def _figures(path: str, kind: str, backend: str) -> list[Figure]:
    registry = LockRegistry()

    async def stream() -> None:
        async for _ in registry.stream(path):
            pass

    async def read() -> None:
        await registry.read(path)

    async def read_last() -> None:
        await registry.read(path, last=LAST)

    return [
        await ratio(
            f"stream of 100 MB, records {kind} / a msgspec line loop ({backend})",
            partial(_timed, stream),
            partial(_timed, _loop, path),
            bound=1.6,
            rounds=3,
        ),
        await ratio(
            f"read of 100 MB, records {kind} / that loop, keeping them ({backend})",
            partial(_timed, read),
            partial(_timed, _keep, path),
            bound=None,
            rounds=3,
        ),
        await ratio(
            f"read of the last {LAST}, records {kind} / the end read and decoded ({backend})",
            partial(_timed, read_last),
            partial(_timed, _last, path),
            bound=1.6 if kind == "small" else None,  # the others are more than is read without a thread
            rounds=51,
        ),
    ]


async def _timed(work: Callable[..., Awaitable[None]], *arguments: str) -> float:
    began = time.perf_counter()
    await work(*arguments)
    return time.perf_counter() - began


async def _loop(path: str) -> None:
    with open(path, "rb") as file:  # noqa: ASYNC230 -- nothing else runs
        for line in file:
            _decode(line)


async def _keep(path: str) -> None:
    with open(path, "rb") as file:  # noqa: ASYNC230 -- as above
        _ = [_decode(line) for line in file]


async def _last(path: str) -> None:
    with open(path, "rb") as file:  # noqa: ASYNC230 -- as above
        file.seek(-_TAIL, os.SEEK_END)
        _ = [_decode(line) for line in file.read().splitlines()[-LAST:]]
