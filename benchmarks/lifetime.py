"""How soon the next waiter has a session: after a deadline, a kill of the holder, or while its loop is frozen."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from statistics import median

import anyio

from locks import LeaseExpired, LeaseLost, LockRegistry

from .measure import Figure

DEADLINES, KILLS, FREEZES = 100, 20, 10
HOLD_S, GRACE_S = 0.02, 0.05


def figures() -> list[Figure]:
    """All three figures, on both event loops."""
    found = []
    for backend in ("asyncio", "trio"):
        late = sorted(anyio.run(_after_deadlines, backend=backend))
        found.append(
            Figure(
                f"deadline → next lease, p99 ({backend})",
                late[int(len(late) * 0.99)] * 1e3,
                "ms",
                5,
                detail=f"p50 {median(late) * 1e3:.2f} ms, {len(late)} deadlines",
            )
        )
        killed = [anyio.run(_after, "kill", backend, backend=backend) for _ in range(KILLS)]
        found.append(
            Figure(
                f"kill -9 of the holder → next lease, longest of {KILLS} ({backend})",
                max(killed) * 1e3,
                "ms",
                15,
                detail=f"median {median(killed) * 1e3:.2f} ms",
            )
        )
        frozen = [anyio.run(_after, "freeze", backend, backend=backend) for _ in range(FREEZES)]
        found.append(
            Figure(
                f"frozen loop: deadline + grace → next lease, longest of {FREEZES} ({backend})",
                max(frozen) * 1e3,
                "ms",
                50,
                detail=f"median {median(frozen) * 1e3:.2f} ms",
            )
        )
    return found


async def _after_deadlines() -> list[float]:
    """In one process: a block that runs past its deadline is cancelled, and the waiter goes on."""
    registry, late = LockRegistry(max_hold=HOLD_S, grace=GRACE_S), []
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/session.jsonl"
        for _ in range(DEADLINES):
            ends_at = 0.0

            async def overstay() -> None:
                nonlocal ends_at
                try:
                    async with registry.lease(path) as lease:
                        ends_at = lease.deadline
                        await anyio.sleep(60)
                except LeaseExpired:
                    pass

            async with anyio.create_task_group() as group:
                group.start_soon(overstay)
                while not ends_at:
                    await anyio.lowlevel.checkpoint()
                async with registry.lease(path, max_hold=60):
                    late.append(time.monotonic() - ends_at)
    return late


async def _after(what: str, backend: str) -> float:
    """Between processes: seconds from the event to our lease."""
    registry = LockRegistry()
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/session.jsonl"
        child = subprocess.Popen(  # noqa: ASYNC220 -- no other task runs yet
            [sys.executable, "-m", "benchmarks.lifetime", what, path, backend],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        told = float(child.stdout.readline())  # the child holds the lease until this instant
        happened = told

        async def kill() -> None:
            nonlocal happened
            await anyio.sleep(0.05)
            happened = time.monotonic()
            child.kill()

        async with anyio.create_task_group() as group:
            if what == "kill":
                group.start_soon(kill)
            async with registry.lease(path):
                after = time.monotonic() - happened
        child.kill()
        child.communicate()
        return after


async def _hold(what: str, path: str) -> None:
    registry = LockRegistry(grace=GRACE_S)
    try:
        async with registry.lease(path, max_hold=60 if what == "kill" else HOLD_S) as lease:
            os.write(1, f"{lease.deadline + GRACE_S}\n".encode())
            time.sleep(60)  # noqa: ASYNC251 -- the loop is frozen on purpose; the parent kills us
    except LeaseLost:
        pass


if __name__ == "__main__":
    anyio.run(_hold, sys.argv[1], sys.argv[2], backend=sys.argv[3])
