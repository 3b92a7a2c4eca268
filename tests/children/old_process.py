"""A gateway that will not go, or its successor: `old_process DIRECTORY LOG asyncio|trio HOW`. Its log lines are in LOG.

It has session `a` for itself, and one more run queued for it, and then says `begun`. HOW is what keeps it from leaving:
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
        except BaseException:  # noqa: S112 -- what a careless handler does
            continue


async def hangs(_) -> None:
    await anyio.to_thread.run_sync(hangs_in_a_thread)


async def blocks(_) -> None:
    say("begun")
    blocks_the_loop()


async def main(directory: str, how: str) -> None:
    async def until_told_to_stop(_) -> None:
        await sup.stop_requested()

    async def serves(ctx) -> None:
        await ctx.session.append({"text": "answer"})

    bodies = {"swallows": swallows, "thread": hangs, "blocked": blocks, "successor": serves}
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
        run = sup.submit("session:a", bodies.get(how, until_told_to_stop))
        if how == "successor":
            await run.result()
            say("served")
            return
        sup.submit("session:a", serves)
        while run.state.value != "running":
            await anyio.sleep(0)
        if how != "blocked":
            say("begun")
        await anyio.sleep_forever()


if __name__ == "__main__":
    os.dup2(os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1 + 1)
    import structlog

    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    anyio.run(main, sys.argv[1], sys.argv[4], backend=sys.argv[3])
