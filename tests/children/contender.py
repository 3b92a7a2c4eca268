"""One of many processes that hold one file by turns: `contender PATH asyncio|trio HOLDS SECONDS GAP`.

Says `ready`, begins when it hears a line, holds HOLDS times or, with 0, as often as it can in SECONDS. Between two
holds it pauses for GAP seconds, or not at all. At the end it says one JSON line, `[[entered_ns, left_ns, epoch], ...]`,
taken inside the holds.
"""

from __future__ import annotations

import json
import os
import sys
import time

import anyio
import structlog
from anyio import to_thread

from locks import LockRegistry


async def main(path: str, holds: int, seconds: float, gap: float) -> None:
    registry = LockRegistry()
    intervals: list[tuple[int, int, int]] = []
    async with registry.lease(path + ".warm-up"):
        pass
    os.write(1, b"ready\n")
    await to_thread.run_sync(sys.stdin.readline)
    end = time.monotonic() + seconds
    while len(intervals) < holds if holds else time.monotonic() < end:
        async with registry.lease(path, max_hold=600) as lease:
            entered = time.monotonic_ns()
            await anyio.sleep(0 if holds else 0.001)
            lease.check()
            intervals.append((entered, time.monotonic_ns(), lease.epoch))
        if gap:
            await anyio.sleep(gap)
    sys.stdout.write(json.dumps(intervals) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # standard output is for the report
    anyio.run(main, sys.argv[1], int(sys.argv[3]), float(sys.argv[4]), float(sys.argv[5]), backend=sys.argv[2])
