"""A gateway that will not go, or its successor: `old_process DIRECTORY LOG asyncio|trio HOW`. LOG gets its stderr.

A run of it conducts session `a`, and says `begun`; one more is queued behind it. HOW is what keeps it from leaving:
`swallows` (a body that swallows its cancellation), `thread` (one that hangs in a thread), `service` (one that never
leaves), `blocked` (the event loop is), or nothing: `willing`, whose run ends when it is told to stop. `successor` waits
for the directory, conducts the session, says `served`, and ends.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import asynccontextmanager

import anyio
import structlog

from lanes import LaneSpec
from runtime import Limits, Supervisor

DEAD_S = 0.5


def say(line: str) -> None:
    os.write(1, line.encode() + b"\n")


def hangs_in_a_thread() -> None:
    threading.Event().wait()


def blocks_the_loop() -> None:
    while True:
        time.sleep(0.05)


@asynccontextmanager
async def never_leaves():
    yield
    with anyio.CancelScope(shield=True):
        await anyio.sleep_forever()


async def swallows(_) -> None:
    while True:
        try:
            await anyio.sleep_forever()
        except BaseException:
            continue


async def hangs(_) -> None:
    await anyio.to_thread.run_sync(hangs_in_a_thread)


async def blocks(_) -> None:
    blocks_the_loop()


async def main(directory: str, how: str) -> None:
    async def until_told_to_stop(_) -> None:
        await sup.stop_requested()

    async def serves(ctx) -> None:
        await ctx.session.append({"text": "answer"})

    async def first(ctx) -> None:
        say("begun")
        bodies = {"swallows": swallows, "thread": hangs, "blocked": blocks, "successor": serves}
        await bodies.get(how, until_told_to_stop)(ctx)

    async with Supervisor(
        directory,
        lanes=[LaneSpec("session:*", grace=0.1)],
        services={"database": never_leaves} if how == "service" else {},
        exclusive=True,
        exclusive_wait=60.0 if how == "successor" else 0.0,
        signals=True,
        on_zombie="exit",
        limits=Limits(dead_s=DEAD_S if how == "blocked" else 60.0),
        drain_timeout=30.0 if how == "willing" else 0.1,
        services_timeout=0.2,
    ) as sup:
        run = sup.submit("session:a", first)
        if how == "successor":
            await run.result()
            say("served")
            return
        sup.submit("session:a", serves)
        await anyio.sleep_forever()


if __name__ == "__main__":
    os.dup2(os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    anyio.run(main, sys.argv[1], sys.argv[4], backend=sys.argv[3])
