"""Between processes: eight greedy writers of one file, each holding for 1 ms, ours against blocking `flock`."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import anyio

from .measure import Figure

PROCESSES = 8
HOLD_S = 0.001
SECONDS = 4.0
ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Result:
    """What eight processes did."""

    holds: int
    share: float
    """Most holds of a process / fewest."""
    handoff_p50_s: float
    handoff_p99_s: float
    longest_wait_s: float
    overlaps: int


def figures() -> list[Figure]:
    """Ours and blocking flock, in turn."""
    rounds = [(_contend("ours"), _contend("flock")) for _ in range(ROUNDS)]
    ours = [a for a, _ in rounds]
    flock = [b for _, b in rounds]
    longest = median(r.longest_wait_s for r in flock)
    return [
        Figure("8 processes, 1 ms hold: count max/min", median(r.share for r in ours), "×", 1.10),
        Figure(
            "8 processes: handoff p50",
            median(r.handoff_p50_s for r in ours) * 1e3,
            "ms",
            1.5,
            detail=f"p99 {median(r.handoff_p99_s for r in ours) * 1e3:.2f} ms",
        ),
        Figure(
            "8 processes: throughput / blocking flock",
            median(a.holds / b.holds for a, b in rounds),
            "×",
            0.65,
            at_least=True,
            detail=f"{_rate(ours):.0f} against {_rate(flock):.0f} holds/s",
        ),
        Figure(
            "8 processes: longest wait",
            median(r.longest_wait_s for r in ours) * 1e3,
            "ms",
            detail=f"flock: {longest * 1e3:.0f} ms, count max/min {median(r.share for r in flock):.2f}",
        ),
        Figure("8 processes: overlapping holds", float(sum(r.overlaps for r in ours)), "", 0),
    ]


def _rate(results: list[Result]) -> float:
    return median(result.holds for result in results) / SECONDS


def _contend(kind: str) -> Result:
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "session.jsonl")
        command = [sys.executable, "-m", "benchmarks.between", kind, path]
        children = [
            subprocess.Popen(
                [*command, "trio" if n % 2 else "asyncio"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            for n in range(PROCESSES)
        ]
        for child in children:
            assert child.stdout is not None
            child.stdout.readline()  # it has started
        start = time.monotonic() + 0.3
        return _judge([json.loads(child.communicate()[0]) for child in _told(children, start)])


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


async def _ours(path: str) -> list[list[float]]:
    from locks import LockRegistry  # noqa: PLC0415 -- a flock child needs none of it

    registry, holds = LockRegistry(), []
    start = _ready()
    await anyio.sleep(max(0.0, start - time.monotonic()))
    while (asked := time.monotonic()) < start + SECONDS:
        async with registry.lease(path):
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
    holds = anyio.run(_ours, path, backend=backend) if kind == "ours" else _flock(path)
    json.dump(holds, sys.stdout)


if __name__ == "__main__":
    _child(*sys.argv[1:])
