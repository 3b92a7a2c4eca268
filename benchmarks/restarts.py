"""The cost of a restart in the process: for the loop, for a health probe, and for every message.

Whether each message was answered once is read from the transcripts at the end. A message that was refused, because
the supervisor drained at that instant, is sent again by its sender: it is neither lost nor answered twice.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from statistics import median
from typing import Any

import anyio
import anyio.from_thread
import psutil

from lanes import Draining, GroupSpec, LaneSpec, Message, RunContext
from locks import LockRegistry
from runtime import Supervisor

from .measure import Figure, at_once, quiet

BACKENDS = ("asyncio", "trio")
LIMIT_S = 110.0

ROUNDS, OVERDUE, SESSIONS, UNDER_WAY, UNDER_WAY_S = 3, 200, 50, 32, 0.2
TICK_S, PROBE_S = 0.005, 0.1

RESTARTS, BETWEEN_S, SENDERS, SEND_S = 50, 0.1, 10, 0.05
SETTLE_S = 20.0


def figures() -> list[Figure]:
    """All figures of this module, on both event loops, one after the other."""
    found: list[Figure] = []
    for backend in BACKENDS:
        found += _overdue_figures(backend, *at_once(__name__, ("overdue", backend)))
        found += _load_figures(backend, *at_once(__name__, ("load", backend)))
    return found


def _overdue_figures(backend: str, heard: dict[str, Any]) -> list[Figure]:
    lags = [one["lag_p99_s"] for one in heard["rounds"]]
    probed = [one["probed_s"] for one in heard["rounds"]]
    name = f"a restart with {OVERDUE} overdue runs"
    floor_ms = heard["floor_p99_s"] * 1e3
    detail = (
        f"{', '.join(f'{lag * 1e3:.1f}' for lag in lags)} ms; idle {floor_ms:.1f} ms; all answered after "
        f"{median(one['took_s'] for one in heard['rounds']):.1f} s"
    )
    asked = sum(one["probes"] for one in heard["rounds"])
    probe_detail = (
        f"worst of each round {', '.join(f'{worst * 1e3:.0f}' for worst in probed)} ms, {asked} probes, "
        f"{sum(one['draining'] for one in heard['rounds'])} told that it drains"
    )
    return [
        Figure(f"{name}: loop lag p99, median of {ROUNDS} ({backend})", median(lags) * 1e3, "ms", 50, detail=detail),
        Figure(f"  the worst answer of a health probe ({backend})", max(probed) * 1e3, "ms", 200, detail=probe_detail),
        *_ledger(heard, backend),
    ]


def _load_figures(backend: str, heard: dict[str, Any]) -> list[Figure]:
    took = heard["took_s"]
    left = ", ".join(f"{what} {before} → {after}" for what, (before, after) in heard["left"].items())
    more = max(after - before for before, after in heard["left"].values())
    return [
        Figure(
            f"{RESTARTS} restarts under load: median ({backend})",
            median(took) * 1e3,
            "ms",
            detail=f"worst {max(took) * 1e3:.0f} ms; {heard['refused']} messages refused meanwhile, and sent again",
        ),
        *_ledger(heard, backend),
        Figure(f"  tasks, threads, descriptors: most that were left ({backend})", more, "", 0, detail=left),
    ]


def _ledger(heard: dict[str, Any], backend: str) -> list[Figure]:
    return [
        Figure(f"  messages lost ({backend})", heard["lost"], "", 0, detail=f"of {heard['sent']}"),
        Figure(f"  messages answered twice ({backend})", heard["doubled"], "", 0),
    ]


@asynccontextmanager
async def _secrets() -> AsyncIterator[dict[str, str]]:
    """A service that takes a moment to enter and to leave."""
    await anyio.sleep(0.002)
    yield {"token": "x"}
    await anyio.sleep(0.002)


async def _answer(ctx: RunContext, messages: Sequence[Message]) -> None:
    """A little real work."""
    assert ctx.services["secrets"]["token"]
    for message in messages:
        await anyio.sleep(0.002)
        await ctx.session.append({"role": "user", "number": message.body})
        await anyio.sleep(0.002)
        await ctx.session.append({"role": "assistant", "answers": message.body})


LANES = [
    LaneSpec("under-way", capacity=UNDER_WAY),
    LaneSpec("session:*", handler=_answer, queue_limit=None),
]
GROUPS = [GroupSpec("main", slots=UNDER_WAY)]


async def _judge(directory: str, sent: Sequence[int]) -> dict[str, int]:
    """The accepted messages, compared with the files."""
    registry, answers = LockRegistry(), Counter[int]()
    for name in os.listdir(directory):
        for record in await registry.read(f"{directory}/{name}", on_error="raise"):
            if "answers" in record:
                answers[record["answers"]] += 1
    return {
        "sent": len(sent),
        "lost": sum(number not in answers for number in sent),
        "doubled": sum(times > 1 for times in answers.values()),
    }


# With work that is overdue


async def _overdue() -> dict[str, Any]:
    """Restarts while runs are under way and others wait, measured inside and outside of the loop."""
    sent: list[int] = []
    with tempfile.TemporaryDirectory() as directory:
        async with Supervisor(directory, lanes=LANES, groups=GROUPS, services={"secrets": _secrets}) as sup:
            await _restart_overdue(sup, sent)  # warm up
            floor = await _lags_during(anyio.sleep, 2.0)
            rounds = [await _restart_overdue(sup, sent) for _ in range(ROUNDS)]
        return {"rounds": rounds, "floor_p99_s": _p99(floor), **await _judge(directory, sent)}


async def _restart_overdue(sup: Supervisor, sent: list[int]) -> dict[str, Any]:
    async def under_way(ctx: RunContext) -> None:
        await anyio.sleep(UNDER_WAY_S)

    for _ in range(UNDER_WAY):
        sup.submit("under-way", under_way)
    first = len(sent)
    runs = []
    for number in range(first, first + OVERDUE):
        runs.append(sup.post(f"session:{number % SESSIONS}", number))
        sent.append(number)
    assert sup.statistics().runs["queued"] >= OVERDUE, sup

    async def restart() -> None:
        await sup.restart()
        for run in runs:
            await run.result()
        await anyio.sleep(began + 2.5 - time.monotonic())  # the ramp is over

    began, probe = time.monotonic(), _Probe(sup)
    async with anyio.create_task_group() as group:
        group.start_soon(probe.serve)
        lags = await _lags_during(restart)
        probe.over.set()
    last = max(run.started_at or 0.0 for run in runs)
    return {
        "lag_p99_s": _p99(lags),
        "probed_s": max(probe.took),
        "probes": len(probe.took),
        "draining": probe.draining,
        "took_s": last - began,
    }


async def _lags_during(body: Callable[..., Awaitable[None]], *args: Any) -> list[float]:
    """The delays of a timer while `body` runs."""
    lags: list[float] = []

    async def tick() -> None:
        while True:
            due = time.monotonic() + TICK_S
            await anyio.sleep(TICK_S)
            lags.append(time.monotonic() - due)

    async with anyio.create_task_group() as group:
        group.start_soon(tick)
        await body(*args)
        group.cancel_scope.cancel()
    return lags


def _p99(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)]


class _Probe:
    """A health probe in a thread, every 100 ms: statistics, and a run on the control lane."""

    def __init__(self, sup: Supervisor) -> None:
        self._sup = sup
        self.over = threading.Event()
        self.took: list[float] = []
        """Seconds until each answer."""
        self.draining = 0
        """How many answers were `Draining`."""

    async def serve(self) -> None:
        await anyio.to_thread.run_sync(self._ask_on)

    def _ask_on(self) -> None:
        while not self.over.wait(PROBE_S):
            began = time.monotonic()
            anyio.from_thread.run_sync(self._sup.statistics)
            try:
                self._sup.submit_threadsafe("control", _nothing).result_sync(LIMIT_S)
            except Draining:
                self.draining += 1
            self.took.append(time.monotonic() - began)


async def _nothing(ctx: RunContext) -> None:
    return


# Again and again


async def _load() -> dict[str, Any]:
    """Repeated restarts while senders send."""
    senders = _Senders()
    took: list[float] = []
    with tempfile.TemporaryDirectory() as directory:
        async with Supervisor(directory, lanes=LANES, groups=GROUPS, services={"secrets": _secrets}) as sup:

            async def restart(times: int) -> None:
                for _ in range(times):
                    await anyio.sleep(BETWEEN_S)
                    began = time.monotonic()
                    await sup.restart()
                    took.append(time.monotonic() - began)

            await senders.beside(sup, partial(restart, 5))
            await anyio.sleep(0.5)
            took.clear()
            before = _held()
            await senders.beside(sup, partial(restart, RESTARTS))
            settled_by = time.monotonic() + SETTLE_S
            while (
                any(more > less for more, less in zip(_held(), before, strict=True)) and time.monotonic() < settled_by
            ):
                await anyio.sleep(0.1)
            after = _held()
            assert sup.generation == 1 + 5 + RESTARTS
        left = dict(zip(("tasks", "threads", "descriptors"), zip(before, after, strict=True), strict=True))
        return {"took_s": took, "refused": senders.refused, "left": left, **await _judge(directory, senders.sent)}


def _held() -> tuple[int, int, int]:
    return len(anyio.get_running_tasks()), threading.active_count(), psutil.Process().num_fds()


class _Senders:
    """Senders: each sends a message, waits for its outcome, and sends the next; a refused message is sent again."""

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.refused = 0
        self._over = False

    async def beside(self, sup: Supervisor, body: Callable[[], Awaitable[None]]) -> None:
        """Send while `body` runs, and wait until all runs have ended."""
        self._over = False
        async with anyio.create_task_group() as group:
            for number in range(SENDERS):
                group.start_soon(self._send, sup, number)
            await body()
            self._over = True

    async def _send(self, sup: Supervisor, sender: int) -> None:
        while not self._over:
            number = len(self.sent)
            try:
                runs = [sup.post(f"session:{(sender * 5 + n) % SESSIONS}", number + n) for n in range(3)]
            except Draining:
                self.refused += 3
                await anyio.sleep(SEND_S / 5)
                continue
            self.sent += range(number, number + 3)
            for run in runs:
                await run.result()
            await anyio.sleep(SEND_S)


_MEASURES: dict[str, Callable[[], Awaitable[dict[str, Any]]]] = {"overdue": _overdue, "load": _load}


async def _measure(what: str) -> None:
    with anyio.fail_after(LIMIT_S):
        print(json.dumps(await _MEASURES[what]()))


if __name__ == "__main__":
    quiet(logging.CRITICAL)
    anyio.run(_measure, sys.argv[1], backend=sys.argv[2])
