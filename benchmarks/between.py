"""Between processes: eight greedy writers of one file, each holding for 1 ms, ours against `flock` and `filelock`."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

import anyio

from .measure import Figure

PROCESSES = 8
HOLD_S = 0.001
SECONDS = 4.0
ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Result:
    """The holds of eight processes."""

    holds: int
    share: float
    """Most holds of a process / fewest."""
    handoff_p50_s: float
    handoff_p99_s: float
    longest_wait_s: float
    overlaps: int


def figures() -> list[Figure]:
    """Our lease, blocking `flock` and `filelock.AsyncFileLock`, in turn; then the cost of a stopped process."""
    kinds = ("ours", "bare", "flock", "filelock")
    rounds = [{kind: _contend(kind) for kind in kinds} for _ in range(ROUNDS)]
    ours, bare, flock, polling = ([one[kind] for one in rounds] for kind in kinds)
    longest = median(r.longest_wait_s for r in ours) * 1e3
    return [
        Figure("8 processes, 1 ms hold: count max/min", median(r.share for r in ours), "×", 1.10),
        Figure("8 processes: handoff p50", median(r.handoff_p50_s for r in ours) * 1e3, "ms", 1),
        Figure("8 processes: handoff p99", median(r.handoff_p99_s for r in ours) * 1e3, "ms", 3),
        Figure("8 processes: longest wait", longest, "ms", 25, detail=f"blocking flock: {_longest_ms(flock):.0f} ms"),
        Figure(
            "8 processes: longest wait of AsyncFileLock / ours",
            median(b.longest_wait_s / a.longest_wait_s for a, b in zip(ours, polling, strict=True)),
            "×",
            10,
            at_least=True,
            detail=f"{_longest_ms(polling):.0f} ms; its count max/min {median(r.share for r in polling):.1f}",
        ),
        Figure(
            "8 processes: throughput / blocking flock",
            median(a.holds / b.holds for a, b in zip(ours, flock, strict=True)),
            "×",
            0.7,
            at_least=True,
            detail=f"{_rate(ours):.0f} against {_rate(flock):.0f} holds/s",
        ),
        Figure(
            "  the same without lock files",
            median(a.holds / b.holds for a, b in zip(bare, flock, strict=True)),
            "×",
            0.7,
            at_least=True,
            detail=f"{_rate(bare):.0f} holds/s",
        ),
        _stopped(),
        Figure("8 processes: overlapping holds", float(sum(r.overlaps for r in ours + bare)), "", 0),
    ]


def _stopped() -> Figure:
    """The throughput that seven processes lose when an eighth one is stopped while it waits."""
    after_s = 0.5  # by then the stopped process has been passed over
    pairs = [
        (_contend("ours", PROCESSES - 1, after_s=after_s), _contend("ours", PROCESSES, stop=True, after_s=after_s))
        for _ in range(ROUNDS)
    ]
    value = median(without.holds / with_it.holds for without, with_it in pairs)
    detail = f"median holds {median(b.holds for _, b in pairs):.0f} against {median(a.holds for a, _ in pairs):.0f}"
    return Figure("7 processes: throughput alone / beside a stopped one", value, "×", 1.10, detail=detail)


def _longest_ms(results: list[Result]) -> float:
    return median(r.longest_wait_s for r in results) * 1e3


def _rate(results: list[Result]) -> float:
    return median(result.holds for result in results) / SECONDS


def _contend(kind: str, processes: int = PROCESSES, *, stop: bool = False, after_s: float = 0.0) -> Result:
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "session.jsonl")
        command = [sys.executable, "-m", "benchmarks.between", kind, path]
        children = [
            subprocess.Popen(
                [*command, "trio" if n % 2 and kind != "filelock" else "asyncio"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for n in range(processes)
        ]
        for child in children:
            assert child.stdout is not None
            child.stdout.readline()  # the child has started
        start = time.monotonic() + 0.3
        told = _told(children, start)
        victim = told.pop() if stop else None
        if victim is not None:
            time.sleep(start + 0.2 - time.monotonic())
            _stop_in_the_queue(victim, path)
        heard = [json.loads(child.communicate()[0]) for child in told]
        result = _judge([[hold for hold in holds if hold[0] >= start + after_s] for holds in heard])
        if victim is not None:
            victim.kill()
            victim.communicate()
        return result


def _stop_in_the_queue(victim: subprocess.Popen[str], path: str) -> None:
    """Stop a process while it waits; a process that is stopped while it holds the lock keeps it."""
    while True:
        victim.send_signal(signal.SIGSTOP)
        try:
            with open(path + ".lock", encoding="utf-8") as file:
                holder = json.load(file)["pid"]
        except (OSError, ValueError):
            holder = victim.pid  # the victim may be about to hold
        if holder != victim.pid:
            return
        victim.send_signal(signal.SIGCONT)
        time.sleep(0.003)


def _told(children: list[subprocess.Popen[str]], start: float) -> list[subprocess.Popen[str]]:
    for child in children:
        assert child.stdin is not None
        child.stdin.write(f"{start}\n")
        child.stdin.flush()
    return children


def _judge(per_process: list[list[list[float]]]) -> Result:
    counts = [len(holds) for holds in per_process]
    holds = sorted((hold for process in per_process for hold in process), key=lambda hold: hold[1])
    gaps = sorted(later[1] - earlier[2] for earlier, later in pairwise(holds))
    return Result(
        holds=len(holds),
        share=max(counts) / max(1, min(counts)),
        handoff_p50_s=gaps[len(gaps) // 2],
        handoff_p99_s=gaps[int(len(gaps) * 0.99)],
        longest_wait_s=max(got - asked for asked, got, _ in holds),
        overlaps=sum(gap < 0 for gap in gaps),
    )


async def _asynchronous(kind: str, path: str) -> list[list[float]]:
    lease: Callable[[], AbstractAsyncContextManager[Any]]
    if kind == "filelock":
        from filelock import AsyncFileLock  # noqa: PLC0415 -- each child imports what it needs

        lease = partial(AsyncFileLock, path)  # as shipped
    else:
        from locks import LockRegistry  # noqa: PLC0415 -- as above

        registry = LockRegistry(sidecar=kind == "ours")
        lease = partial(registry.lease, path)
        async with registry.lease(path + ".warm-up"):
            pass
    holds: list[list[float]] = []
    start = _ready()
    await anyio.sleep(max(0.0, start - time.monotonic()))
    while (asked := time.monotonic()) < start + SECONDS:
        async with lease():
            got = time.monotonic()
            time.sleep(HOLD_S)  # noqa: ASYNC251 -- the hold is the same for all contenders
            holds.append([asked, got, time.monotonic()])
    return holds


def _flock(path: str) -> list[list[float]]:
    holds: list[list[float]] = []
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    start = _ready()
    time.sleep(max(0.0, start - time.monotonic()))
    while (asked := time.monotonic()) < start + SECONDS:
        fcntl.flock(fd, fcntl.LOCK_EX)
        got = time.monotonic()
        time.sleep(HOLD_S)
        holds.append([asked, got, time.monotonic()])
        fcntl.flock(fd, fcntl.LOCK_UN)
    return holds


def _ready() -> float:
    print("ready", flush=True)
    return float(sys.stdin.readline())


def _child(kind: str, path: str, backend: str) -> None:
    holds = _flock(path) if kind == "flock" else anyio.run(_asynchronous, kind, path, backend=backend)
    json.dump(holds, sys.stdout)


if __name__ == "__main__":
    _child(*sys.argv[1:])
