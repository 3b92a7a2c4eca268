"""Beside a foreign gateway that knows lock files only and takes its own again at once: shares, waits and CPU time.

The gateway polls every 50 ms while the file exists, has no queue, and leaves no gap. Two such gateways are measured as
well, for comparison. Our gap of 60 ms lets the gateway in after each of our holds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import UTC, datetime

import anyio

from .measure import Figure, quiet

HOLDS_S = (0.02, 0.1)
SECONDS = 6.0
FOREIGN_POLL_S = 0.05


def figures() -> list[Figure]:
    """Waiting for a gateway that holds on; one, then two of our processes beside one that does not; on both loops."""
    found = []
    for backend in ("asyncio", "trio"):
        _, waiting = _contend(2 * SECONDS, "foreign", backend)
        found.append(Figure(f"waiting for one foreign lock file: CPU ({backend})", waiting["cpu"] * 100, "%", 3))
    for hold_s in HOLDS_S:
        among_themselves = _contend(hold_s, "foreign", "foreign")
        foreign = f"two foreign among themselves {max(_counts(among_themselves))} : {min(_counts(among_themselves))}"
        for backend in ("asyncio", "trio"):
            one, other = _contend(hold_s, "foreign", backend)
            ms = f"{hold_s * 1e3:.0f} ms"
            found.append(
                Figure(
                    f"beside a foreign gateway, {ms} hold, no gap: ours / its ({backend})",
                    other["holds"] / max(1, one["holds"]),
                    "×",
                    0.25,
                    at_least=True,
                    detail=f"{other['holds']} : {one['holds']}, our longest wait {other['longest_s']:.2f} s; {foreign}",
                )
            )
            found.append(Figure(f"  the same: CPU ({backend})", other["cpu"] * 100, "%", detail="of one core"))
            one, *others = _contend(hold_s, "foreign", backend, backend)
            ours = sum(_counts(others))
            counts = " + ".join(str(count) for count in _counts(others))
            longest = max(other["longest_s"] for other in others)
            found.append(
                Figure(
                    f"  two processes of ours / it ({backend})",
                    ours / max(1, one["holds"]),
                    "×",
                    0.25,
                    at_least=True,
                    detail=f"{counts} : {one['holds']}, our longest wait {longest:.2f} s",
                )
            )
    return found


def _counts(results: list[dict[str, float]]) -> list[int]:
    return [int(result["holds"]) for result in results]


def _contend(hold_s: float, *kinds: str) -> list[dict[str, float]]:
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        path = os.path.join(directory, "session.jsonl")
        children = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-X", "openclaw", "-m", __spec__.name, kind, path, str(hold_s)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for kind in kinds
        ]
        for child in children:
            assert child.stdout is not None
            child.stdout.readline()
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
            while not os.path.exists(path + ".lock"):  # no gap is left before a gateway was seen
                time.sleep(0.001)
        return [json.loads(child.communicate(timeout=60)[0]) for child in children]


async def _ours(path: str, hold_s: float) -> dict[str, float]:
    from locks import LeaseTimeout, LockRegistry  # noqa: PLC0415 -- the foreign side must not need it

    registry = LockRegistry()
    async with registry.lease(path + ".warm-up"):
        pass
    _ready()
    end, holds, longest_s, cpu = time.monotonic() + SECONDS, 0, 0.0, time.process_time()
    while (asked := time.monotonic()) < end:
        try:
            async with registry.lease(path, wait_timeout=end - asked):
                longest_s = max(longest_s, time.monotonic() - asked)
                holds += 1
                await anyio.sleep(hold_s)
        except LeaseTimeout:
            longest_s = max(longest_s, time.monotonic() - asked)
    return {"holds": holds, "longest_s": longest_s, "cpu": (time.process_time() - cpu) / SECONDS}


def _foreign(path: str, hold_s: float) -> dict[str, float]:
    lock = os.path.realpath(path) + ".lock"
    with open("/proc/self/stat") as stat:
        starttime = int(stat.read().rpartition(")")[2].split()[19])
    _ready()
    end, holds, longest_s = time.monotonic() + SECONDS, 0, 0.0
    while (asked := time.monotonic()) < end:
        try:
            fd = os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            time.sleep(FOREIGN_POLL_S)
            continue
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        told = {"pid": os.getpid(), "createdAt": now, "maxHoldMs": 1_020_000, "starttime": starttime}
        data = json.dumps(told, indent=2).encode() + b"\n"
        os.write(fd, data)
        longest_s = max(longest_s, time.monotonic() - asked)
        holds += 1
        time.sleep(hold_s)
        os.close(fd)
        with open(lock, "rb") as file:
            assert file.read() == data
        os.unlink(lock)
    return {"holds": holds, "longest_s": longest_s}


def _ready() -> None:
    print("ready", flush=True)
    sys.stdin.readline()


def _child(kind: str, path: str, hold_s: float) -> None:
    quiet()
    result = _foreign(path, hold_s) if kind == "foreign" else anyio.run(_ours, path, hold_s, backend=kind)
    print(json.dumps(result))


if __name__ == "__main__":
    _child(sys.argv[1], sys.argv[2], float(sys.argv[3]))
