"""Greedy processes that want one file's lock: handoff, throughput, shares, and how throughput grows with processes.

Each process takes the lock without a gap and holds it for a millisecond.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

import anyio
import msgspec

from ..checker import overlaps
from ..forks import imported, together
from ..peers.interface import Backend, BlockingLocks, Locks, Peer
from .interface import Ask, Cell, NotMeasured, Question, Sample, Scale

HOLD_S = 0.001
_PROCESSES = 8
_CHECK_S = 0.2
_PAUSE_AFTER_ERROR_S = 0.01


class Holds(msgspec.Struct):
    """What one process did."""

    holds: list[tuple[float, float, float]] = []
    """When it asked, got the lock, and gave it back."""
    failed: int = 0
    """Attempts that raised."""
    error: str = ""


class Contention(msgspec.Struct):
    """What all processes did."""

    per_process: list[Holds]
    seconds: float

    @property
    def violations(self) -> int:
        """Holds that overlap."""
        return overlaps((got, gave) for _, got, gave in self._all())

    def _all(self) -> list[tuple[float, float, float]]:
        return [hold for one in self.per_process for hold in one.holds]

    def _gaps(self) -> list[float]:
        """How long the lock was free between two processes, in order. A process that takes it twice is none."""
        holds = sorted((got, gave, index) for index, one in enumerate(self.per_process) for _, got, gave in one.holds)
        return sorted(max(0.0, later[0] - earlier[1]) for earlier, later in pairwise(holds) if earlier[2] != later[2])

    def sample(self) -> Sample:
        """All its metrics.

        Raises:
            NotMeasured: nobody ever held the lock twice in all.
        """
        holds = sorted(self._all(), key=lambda hold: hold[1])
        failed = sum(one.failed for one in self.per_process)
        errors = next((one.error for one in self.per_process if one.error), "")
        note = f"{failed} attempts failed: {errors}" if failed else ""
        if len(holds) < 2:
            raise NotMeasured(note or "no process got the lock twice")
        counts = [len(one.holds) for one in self.per_process]
        gaps = self._gaps()
        waits = [got - asked for asked, got, _ in holds]
        values = {
            "holds per second": len(holds) / self.seconds,
            "longest wait": max(waits) * 1e3,
            "longest wait ÷ median wait": max(waits) / max(median(waits), 1e-9),
            "1 - Jain's index": 1 - sum(counts) ** 2 / (len(counts) * sum(count * count for count in counts)),
        }
        missing = {}
        if gaps:
            values |= {
                "handoff p50": median(gaps) * 1e3,
                "handoff p99": gaps[int(len(gaps) * 0.99)] * 1e3,
                "handoff max": gaps[-1] * 1e3,
            }
        elif len(counts) > 1:
            missing = dict.fromkeys(("handoff p50", "handoff p99", "handoff max"), "the lock never changed hands")
        if min(counts):
            values["most holds ÷ fewest"] = max(counts) / min(counts)
        else:
            missing["most holds ÷ fewest"] = f"{counts.count(0)} processes never got the lock"
        return Sample(values, missing, self.violations, note)


def measure(peer: Peer, backend: Backend, *, processes: int, seconds: float) -> Sample:
    """In the worker: all metrics of so many processes."""
    return contend(peer, backend, processes=processes, seconds=seconds).sample()


def check(peer: Peer, backend: Backend, *, seconds: float) -> Sample:
    """In the worker: only the violations, of two processes."""
    return Sample({}, violations=contend(peer, backend, processes=2, seconds=seconds).violations)


def violations(ask: Ask) -> int:
    """The violations of two processes in a moment of contention, for questions whose own runs have a single process."""
    return ask("contention:check", seconds=_CHECK_S).violations


def contend(peer: Peer, backend: Backend, *, processes: int, seconds: float) -> Contention:
    """Fork so many processes, let them contend, and collect what they did.

    Raises:
        NotMeasured: one of them died.
    """
    imported(peer, backend)
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "session.jsonl")

        def work(_: int, ready: Callable[[], float]) -> Holds:
            holds = Holds()
            if backend == "blocking":
                _blocking(peer.make(), path, holds, ready, seconds)
            else:
                anyio.run(partial(_async, peer.make(), path, holds, ready, seconds), backend=backend)
            return holds

        return Contention(together(processes, work, Holds, directory), seconds)


@contextmanager
def _noted(holds: Holds) -> Iterator[None]:
    """An attempt that raises is counted, and the process goes on: a time limit of the peer's own, for one."""
    try:
        yield
    except Exception as error:
        holds.failed += 1
        holds.error = f"{type(error).__name__}: {error}"[:100]
        time.sleep(_PAUSE_AFTER_ERROR_S)


def _blocking(locks: BlockingLocks, path: str, holds: Holds, ready: Callable[[], float], seconds: float) -> None:
    with locks.hold(path + ".warm-up"):
        pass
    start = ready()
    time.sleep(max(0.0, start - time.monotonic()))
    while (asked := time.monotonic()) < start + seconds:
        with _noted(holds), locks.hold(path):
            got = time.monotonic()
            time.sleep(HOLD_S)
            holds.holds.append((asked, got, time.monotonic()))


async def _async(locks: Locks, path: str, holds: Holds, ready: Callable[[], float], seconds: float) -> None:
    async with locks.hold(path + ".warm-up"):
        pass
    start = ready()
    await anyio.sleep(max(0.0, start - time.monotonic()))
    while (asked := time.monotonic()) < start + seconds:
        with _noted(holds):
            async with locks.hold(path):
                got = time.monotonic()
                time.sleep(HOLD_S)  # noqa: ASYNC251 -- the hold is the same for all peers
                holds.holds.append((asked, got, time.monotonic()))


def _metrics(*names: str) -> Any:
    def take(cell: Cell, ask: Ask, scale: Scale) -> Sample:
        processes = _PROCESSES if cell.x is None else cell.x
        found = ask("contention:measure", processes=processes, seconds=4.0 if scale.full else 0.5)
        return Sample(
            {name: found.values[name] for name in names if name in found.values},
            {name: why for name, why in found.missing.items() if name in names},
            found.violations,
            found.note,
        )

    return take


HANDOFF = Question(
    name="handoff",
    title="How long is a lock free between two processes, from one's release to the next one's entry?",
    unit="ms",
    kind="between",
    take=_metrics("handoff p50", "handoff p99", "handoff max"),
    floor="flock",
    x="processes",
    sizes=lambda scale: (2, 8),
    seconds=28,
    rounds=3,
)
SHARES = Question(
    name="shares",
    title="Do eight processes that all want the lock get it equally often, and soon?",
    unit="×",
    kind="between",
    take=_metrics("most holds ÷ fewest", "1 - Jain's index", "longest wait ÷ median wait"),
    seconds=1,  # the runs of eight processes are those of `handoff`
    rounds=3,
)
PROCESSES = Question(
    name="processes",
    title="How many times a second is the lock held, 1 ms each time, by so many processes that all want it?",
    unit="holds/s",
    kind="between",
    take=_metrics("holds per second"),
    better="higher",
    floor="flock",
    x="processes",
    sizes=lambda scale: (1, 2, 4, 8, 16),
    seconds=35,
    rounds=3,
)
