"""The process around the lanes: the delay until a blocked loop is reported, a frozen loop, the cost of watching.

Each figure is taken in processes of its own: a blocked or frozen loop disturbs no other figure.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import anyio
import psutil

from lanes import GroupSpec, LaneSpec, RunContext
from locks import _events
from runtime import Limits, Supervisor
from runtime.status.client import Client
from runtime.status.protocol import Status

from .measure import CHILD_S, Figure, at_once, per_operation, quiet, ratio

BACKENDS = ("asyncio", "trio")
LIMIT_S = 100.0

BLOCKS, BLOCK_S = 5, 1.5

FREEZES, HELD, TIMEOUT_S, GRACE_S = 5, 5, 0.3, 0.05

SHARED, QUEUED, CONTROLS = ("main", "cron", "heartbeat", "subagent"), 2000, 64
SESSIONS, SESSION_QUEUE = 50, 20
QUESTIONS, PAUSE_S = 100, 0.01

WATCHED_S = 5.0
RUNS = 4000


def figures() -> list[Figure]:
    """All figures of this module, on both event loops."""
    found: list[Figure] = []
    for backend in BACKENDS:
        found += _blocked_figures(backend, *at_once(__name__, ("blocked", backend)))
        found.append(_frozen_figure(backend, [_past_a_frozen_one(backend) for _ in range(FREEZES)]))
        found.append(_status_figure(backend, *_ask_when_full(backend)))
    for backend in BACKENDS:
        watched, alone = at_once(__name__, ("idle", backend), ("idle_alone", backend))
        found += _cost_figures(backend, watched, alone, *at_once(__name__, ("throughput", backend)))
    return found


def _blocked_figures(backend: str, heard: list[dict[str, Any]]) -> list[Figure]:
    after = [one["after_s"] for one in heard]
    right = sum(one["right_line"] and one["right_run"] for one in heard)
    name = f"a body computes for {BLOCK_S:g} s"
    return [
        Figure(
            f"{name} → it is logged, longest of {BLOCKS} ({backend})",
            max(after),
            "s",
            1,
            detail=f"median {median(after):.2f} s",
        ),
        Figure(
            f"  of these with its line and its run ({backend})",
            right,
            "",
            BLOCKS,
            at_least=True,
            detail=f"{heard[-1]['place']}; {heard[-1]['run']}",
        ),
    ]


def _frozen_figure(backend: str, rounds: list[list[float]]) -> Figure:
    late = [one for found in rounds for one in found]
    return Figure(
        f"frozen loop: deadline + grace of {HELD} runs → next run, longest ({backend})",
        max(late) * 1e3,
        "ms",
        50,
        detail=f"median {median(late) * 1e3:.2f} ms of {len(late)}",
    )


def _status_figure(backend: str, answered: list[float], cpu_s: float) -> Figure:
    return Figure(
        f"status through the socket, all lanes full: longest of {len(answered)} ({backend})",
        max(answered) * 1e3,
        "ms",
        50,
        detail=f"median {median(answered) * 1e3:.2f} ms, of which {cpu_s / QUESTIONS * 1e3:.1f} ms of CPU there",
    )


def _cost_figures(backend: str, watched: float, alone: float, throughput: dict[str, Any]) -> list[Figure]:
    return [
        Figure(
            f"the watchdog beside an idle supervisor: CPU ({backend})",
            (watched - alone) * 100,
            "%",
            2,
            detail=f"of one core: {watched * 100:.2f} % with it, {alone * 100:.2f} % without, over {WATCHED_S:g} s",
        ),
        Figure(
            f"submit → result with the watchdog / without ({backend})",
            throughput["value"],
            "×",
            1.1,
            detail=throughput["detail"],
        ),
    ]


# A blocked loop


async def _blocked() -> list[dict[str, Any]]:
    """Bodies that compute, one after the other, and the log line of each."""
    logged: list[tuple[float, str, str]] = []
    found = []
    loop_at = _compute.__code__.co_firstlineno + 2
    lines = {f"process.py:{number} in _compute" for number in (loop_at, loop_at + 1)}

    def note(event: str, level: str, fields: Any) -> None:
        if event == "loop_blocked":
            logged.append((time.monotonic(), fields["place"], fields["run"]))

    _events.observers = (*_events.observers, note)
    with tempfile.TemporaryDirectory() as directory:
        async with Supervisor(directory) as sup:
            for _ in range(BLOCKS):
                await anyio.sleep(0.2)
                run = sup.submit("main", _compute)
                began = await run.result()
                await anyio.sleep(0.2)
                ((at, place, whose),) = logged or [(began + BLOCK_S, "", "")]
                found.append(
                    {
                        "after_s": at - began,
                        "place": place,
                        "run": whose,
                        "right_line": place in lines,
                        "right_run": whose == f"run {run.id} on lane main",
                    }
                )
                logged.clear()
    return found


async def _compute(ctx: RunContext) -> float:
    began, total = time.monotonic(), 0
    while time.monotonic() < began + BLOCK_S:
        total += 1
    return began


# A frozen process


def _past_a_frozen_one(backend: str) -> list[float]:
    """Seconds from deadline + grace of runs in a frozen process until another process has each session."""
    with tempfile.TemporaryDirectory() as directory, _child("freeze", backend, directory) as ended_at:
        until = {f"s{number}": at for number, at in enumerate(ended_at)}
        return anyio.run(_take_over, directory, until, backend=backend)


async def _take_over(directory: str, until: dict[str, float]) -> list[float]:
    late = []

    async def take(ctx: RunContext) -> None:
        assert ctx.run.session is not None
        late.append(time.monotonic() - until[ctx.run.session])
        await ctx.session.append({"role": "assistant"})

    with anyio.fail_after(LIMIT_S):
        async with Supervisor(directory) as sup:
            for run in [sup.submit(f"session:{key}", take) for key in until]:
                await run.result()
    return late


async def _freeze(directory: str) -> None:
    """Runs that conduct sessions, and a run that blocks the loop for ever; the parent kills this process."""
    lanes = [LaneSpec("session:*", timeout=TIMEOUT_S, grace=GRACE_S)]

    async def wait(ctx: RunContext) -> None:
        await ctx.session.append({"role": "user"})
        await anyio.sleep_forever()

    async def freeze(ctx: RunContext) -> None:
        _say([run.deadline + GRACE_S for run in runs if run.deadline is not None])
        time.sleep(LIMIT_S)  # noqa: ASYNC251 -- frozen on purpose

    async with Supervisor(directory, lanes=lanes) as sup:
        runs = [sup.submit(f"session:s{number}", wait) for number in range(HELD)]
        await anyio.sleep(0.1)  # all runs have begun
        await sup.submit("main", freeze).result()


# Status of a process that is full


def _ask_when_full(backend: str) -> tuple[list[float], float]:
    """Seconds to connect, ask and get an answer, each time as `lanes status` does; and the CPU time of the process."""
    answered = []
    with tempfile.TemporaryDirectory() as directory, _child("full", backend, directory) as (pid, queued):
        used = _cpu_of(pid)
        for _ in range(QUESTIONS):
            time.sleep(PAUSE_S)
            began = time.monotonic()
            with Client(f"{directory}/lanes.sock") as client:
                picture = client.ask(Status()).status
            answered.append(time.monotonic() - began)
            assert picture is not None and sum(lane.queued for lane in picture.lanes) == queued, picture
        used = _cpu_of(pid) - used
    return answered, used


def _cpu_of(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


async def _full(directory: str) -> None:
    """Every lane full, `control` too; the parent kills this process."""
    lanes = [LaneSpec(name, capacity=8, group="full", queue_limit=None) for name in SHARED]
    lanes.append(LaneSpec("session:*", group="full", queue_limit=SESSION_QUEUE))
    groups = [GroupSpec("full", slots=40)]

    async def wait(ctx: RunContext) -> None:
        await anyio.sleep(LIMIT_S)

    async with Supervisor(
        f"{directory}/sessions", lanes=lanes, groups=groups, status_socket=f"{directory}/lanes.sock"
    ) as sup:
        for name in SHARED:
            for _ in range(QUEUED):
                sup.submit(name, wait)
        for number in range(SESSIONS):
            for _ in range(SESSION_QUEUE):
                sup.submit(f"session:{number}", wait)
        for _ in range(2 * CONTROLS):
            sup.submit("control", wait, timeout=LIMIT_S)
        await anyio.sleep(0.5)  # all bodies wait
        _say((os.getpid(), sup.statistics().runs["queued"]))
        await anyio.sleep(LIMIT_S)


# The cost of the watchdog


async def _idle() -> float:
    """The share of a core that a supervisor uses."""
    with tempfile.TemporaryDirectory() as directory:
        async with Supervisor(directory):
            return await _cpu()


async def _idle_alone() -> float:
    """The same without its watchdog."""
    with tempfile.TemporaryDirectory() as directory:
        async with Supervisor(directory) as sup:
            sup.watchdog.stop()
            return await _cpu()


async def _cpu() -> float:
    await anyio.sleep(0.5)  # wait until the start has settled
    began, used = time.monotonic(), time.process_time()
    await anyio.sleep(WATCHED_S)
    return (time.process_time() - used) / (time.monotonic() - began)


async def _throughput() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        async with Supervisor(directory, limits=Limits(lag_s=60)) as sup:

            async def body() -> None:
                for _ in range(RUNS):
                    await sup.submit("main", _work).result()

            async def watched() -> float:
                sup.watchdog.start()
                return await per_operation(RUNS, body)

            async def alone() -> float:
                sup.watchdog.stop()
                return await per_operation(RUNS, body)

            sup.watchdog.stop()
            figure = await ratio("", watched, alone, bound=None)
            return {"value": figure.value, "detail": figure.detail}


async def _work(ctx: RunContext) -> int:
    return 1


# Processes


@contextmanager
def _child(what: str, backend: str, directory: str) -> Iterator[Any]:
    """A process of this module: the line that it prints when it is ready. Killed when the block is left."""
    child = subprocess.Popen(
        [sys.executable, "-m", __name__, what, backend, directory], stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        yield json.loads(child.stdout.readline())
    finally:
        child.kill()
        child.communicate(timeout=CHILD_S)


def _say(what: Any) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")


_MEASURES: dict[str, Callable[..., Awaitable[Any]]] = {
    "blocked": _blocked,
    "freeze": _freeze,
    "full": _full,
    "idle": _idle,
    "idle_alone": _idle_alone,
    "throughput": _throughput,
}


async def _measure(what: str, *arguments: str) -> None:
    with anyio.fail_after(LIMIT_S):
        print(json.dumps(await _MEASURES[what](*arguments)))


if __name__ == "__main__":
    quiet(logging.CRITICAL)
    what, backend, *arguments = sys.argv[1:]
    anyio.run(_measure, what, *arguments, backend=backend)
