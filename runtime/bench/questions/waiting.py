"""What waiting costs: CPU time, and the delay of timers on the event loop, while 64 tasks wait for other processes."""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from typing import Any

import anyio
from anyio import to_thread

from ..forks import Channel, Forks, imported, together
from ..peers.interface import Backend, BlockingLocks, Locks, Peer
from .interface import Ask, Cell, NotMeasured, Question, Sample, Scale

_FILES = 64
_SETTLE_S = 0.5
_TICK_S = 0.01
_START_WITHIN_S = 30.0


def measure(peer: Peer, backend: Backend, *, seconds: float) -> Sample:
    """In the worker: one child holds all files, another one waits for all of them and looks at itself."""
    imported(peer, backend)
    with tempfile.TemporaryDirectory() as directory, Forks() as forks:
        paths = [os.path.join(directory, f"{number}.jsonl") for number in range(_FILES)]
        held = forks.channel()
        forks.fork(partial(_hold_all, peer, backend, paths, held))
        if held.receive(_START_WITHIN_S) is None:
            raise NotMeasured("the holder did not get all locks")
        wait = partial(_wait_for_all, peer, backend, paths, seconds)
        (found,) = together(1, lambda _, ready: wait(ready), Sample, directory)
        return found


def _hold_all(peer: Peer, backend: Backend, paths: list[str], held: Channel) -> None:
    if backend != "blocking":
        anyio.run(_hold_all_async, peer.make(), paths, held, backend=backend)
        return
    locks = peer.make()
    with ExitStack() as stack:
        for path in paths:
            stack.enter_context(locks.hold(path))
        held.now()
        time.sleep(3_600)


async def _hold_all_async(locks: Locks, paths: list[str], held: Channel) -> None:
    left = len(paths)

    async def hold(path: str) -> None:
        nonlocal left
        async with locks.hold(path):
            left -= 1
            if not left:
                held.now()
            await anyio.sleep_forever()

    async with anyio.create_task_group() as group:
        for path in paths:
            group.start_soon(hold, path)


def _wait_for_all(peer: Peer, backend: Backend, paths: list[str], seconds: float, ready: Any) -> Sample:
    ready()
    on = "asyncio" if backend == "blocking" else backend
    return anyio.run(partial(_looked_at, peer.make(), backend == "blocking", paths, seconds), backend=on)


async def _looked_at(locks: Any, blocking: bool, paths: list[str], seconds: float) -> Sample:
    entered, lags = 0, []
    limiter = anyio.CapacityLimiter(len(paths))

    async def wait(path: str) -> None:
        nonlocal entered
        if blocking:  # as an async program has to do it
            await to_thread.run_sync(_enter, locks, path, limiter=limiter, abandon_on_cancel=True)
        else:
            async with locks.hold(path):
                pass
        entered += 1

    async with anyio.create_task_group() as group:
        for path in paths:
            group.start_soon(wait, path)
        await anyio.sleep(_SETTLE_S)
        began, used = time.monotonic(), time.process_time()
        while time.monotonic() < began + seconds:
            due = time.monotonic() + _TICK_S
            await anyio.sleep(_TICK_S)
            lags.append(time.monotonic() - due)
        share = (time.process_time() - used) / (time.monotonic() - began)
        group.cancel_scope.cancel()
    lags.sort()
    values = {
        "CPU": share * 100,
        "lag p50": lags[len(lags) // 2] * 1e3,
        "lag p99": lags[int(len(lags) * 0.99)] * 1e3,
        "lag max": lags[-1] * 1e3,
    }
    return Sample(values, violations=entered, note=f"waits in {len(paths)} threads" if blocking else "")


def _enter(locks: BlockingLocks, path: str) -> None:
    with locks.hold(path):
        pass


def _metrics(*names: str) -> Any:
    def take(cell: Cell, ask: Ask, scale: Scale) -> Sample:
        found = ask("waiting:measure", seconds=10.0 if scale.full else 1.0)
        return Sample({name: found.values[name] for name in names}, {}, found.violations, found.note)

    return take


WAITING = Question(
    name="waiting",
    title=f"How much of a core do {_FILES} tasks use that wait for {_FILES} locks of another process?",
    unit="% of a core",
    kind="between",
    take=_metrics("CPU"),
    seconds=24,
    rounds=3,
)
LAG = Question(
    name="lag",
    title="How late are timers on the event loop meanwhile?",
    unit="ms",
    kind="between",
    take=_metrics("lag p50", "lag p99", "lag max"),
    floor="flock",
    seconds=1,  # the runs are those of `waiting`
    rounds=3,
)
