"""Latency under full load: foreground runs, lane `control`, and a loop beside bodies that never end."""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import time
from statistics import median

import anyio

from lanes import GroupSpec, LaneSpec, RunContext, RunState
from runtime import Supervisor

from .measure import Figure, at_once, quiet

BACKENDS = ("asyncio", "trio")
LIMIT_S = 60.0

FLOOD, FLOOD_S = 4000, 0.02
BURSTS, BURST, GAP_S = 60, 8, 0.03  # a burst is twice the reserve

QUEUED, SESSIONS, SESSION_QUEUE, CONTROLS, CONTROL_S = 2000, 50, 20, 50, 0.5

ABANDONED, WATCHED_S = 10, 3.0


def figures() -> list[Figure]:
    """All figures of this module, on both event loops."""
    found = []
    for backend in BACKENDS:
        found.append(anyio.run(_foreground, backend, backend=backend))
        found += anyio.run(_control, backend, backend=backend)
    cpu = at_once(__name__, *((backend,) for backend in BACKENDS))
    for backend, (idle, beside) in zip(BACKENDS, cpu, strict=True):
        name = f"{ABANDONED} abandoned bodies that swallow cancellation: CPU ({backend})"
        detail = f"of one core, above an idle supervisor's {idle * 100:.2f} %, over {WATCHED_S:g} s"
        found.append(Figure(name, (beside - idle) * 100, "%", 2, detail=detail))
    return found


async def _foreground(backend: str) -> Figure:
    """Bursts of foreground runs while background fills every slot of the group but the reserve, and queues for more."""
    flood = LaneSpec("flood", capacity=1000, priority="background", queue_limit=None)
    late: list[float] = []

    async def sleep(ctx: RunContext) -> None:
        await anyio.sleep(FLOOD_S)

    async def answer(ctx: RunContext) -> None:
        late.append(time.monotonic() - ctx.run.enqueued_at)
        await anyio.sleep(FLOOD_S)

    with tempfile.TemporaryDirectory() as directory, anyio.fail_after(LIMIT_S):
        async with Supervisor(directory, lanes=[flood]) as sup:
            for _ in range(FLOOD):
                sup.submit("flood", sleep)
            runs = []
            for _ in range(BURSTS):
                await anyio.sleep(GAP_S)
                runs += [sup.submit("main", answer) for _ in range(BURST)]
            left = sup.statistics().lanes["flood"].queued
            for run in runs:
                await run.result()
            sup.cancel(reason="measured")
    assert left, "the flood ended before the last foreground run came"
    late.sort()
    return Figure(
        f"foreground under a flood of background: longest submit → start ({backend})",
        late[-1] * 1e3,
        "ms",
        100,
        detail=f"p50 {median(late) * 1e3:.2f}, p99 {late[int(len(late) * 0.99)] * 1e3:.2f} ms of {len(late)}; "
        f"{left} background runs queued at the last",
    )


async def _control(backend: str) -> list[Figure]:
    """Statistics, cancelling and a run on the control lane, while no other lane can start a run."""
    shared = ("main", "cron", "heartbeat", "subagent")
    lanes = [LaneSpec(name, capacity=8, group="full", queue_limit=None) for name in shared]
    lanes.append(LaneSpec("session:*", group="full", queue_limit=SESSION_QUEUE))
    asked: list[float] = []
    late: list[float] = []

    async def wait(ctx: RunContext) -> None:
        await anyio.sleep_forever()

    async def answer(ctx: RunContext) -> None:
        late.append(time.monotonic() - ctx.run.enqueued_at)

    with tempfile.TemporaryDirectory() as directory, anyio.fail_after(LIMIT_S):
        async with Supervisor(directory, lanes=lanes, groups=[GroupSpec("full", slots=40)]) as sup:
            runs = [sup.submit(name, wait) for name in shared for _ in range(QUEUED)]
            for number in range(SESSIONS):
                runs += [sup.submit(f"session:{number}", wait) for _ in range(SESSION_QUEUE)]
            queued = sup.statistics().runs["queued"]
            await anyio.sleep(0.05)  # all bodies wait
            for number in range(CONTROLS):
                run = sup.submit("control", answer)  # before the cancel, which may free a slot
                with anyio.move_on_after(CONTROL_S):
                    await run.result()
                if run.started_at is None:
                    late.append(CONTROL_S)
                began = time.perf_counter()
                sup.statistics()
                told = sup.cancel(session=str(number), reason="measured")
                found = sup.find(runs[number].id)
                asked.append(time.perf_counter() - began)
                assert told == SESSION_QUEUE and found is runs[number]
            began = time.perf_counter()
            told = sup.cancel(reason="measured")
            all_s = time.perf_counter() - began
    return [
        Figure(
            f"statistics, cancel of a session and find, {queued:,} queued: longest ({backend})",
            max(asked) * 1e3,
            "ms",
            50,
            detail=f"median {median(asked) * 1e3:.2f} ms; cancelling all {told:,} at once {all_s * 1e3:.0f} ms",
        ),
        Figure(
            f"control lane, all others full: longest submit → start ({backend})",
            max(late) * 1e3,
            "ms",
            50,
            detail=f"median {median(late) * 1e3:.2f} ms of {len(late)}",
        ),
    ]


async def _beside_abandoned() -> tuple[float, float]:
    """The share of a core that a supervisor uses, idle and then beside abandoned bodies."""
    spec = LaneSpec("stuck", capacity=ABANDONED, timeout=0.05, grace=0.05)

    async def swallow(ctx: RunContext) -> None:
        while True:
            try:
                await anyio.sleep_forever()
            except anyio.get_cancelled_exc_class():
                pass

    with tempfile.TemporaryDirectory() as directory, anyio.fail_after(LIMIT_S):
        async with Supervisor(directory, lanes=[spec]) as sup:
            idle = await _cpu()
            for run in [sup.submit("stuck", swallow) for _ in range(ABANDONED)]:
                assert (await run.wait()).state is RunState.ABANDONED
            beside = await _cpu()
            print(json.dumps((idle, beside)), flush=True)
            os._exit(0)  # the abandoned bodies keep the loop from ending


async def _cpu() -> float:
    await anyio.sleep(0.3)  # wait until the start has settled
    began, used = time.monotonic(), time.process_time()
    await anyio.sleep(WATCHED_S)
    return (time.process_time() - used) / (time.monotonic() - began)


if __name__ == "__main__":
    quiet(logging.CRITICAL)
    anyio.run(_beside_abandoned, backend=sys.argv[1])
