"""Takes a lease and keeps it until it hears a line: `holder PATH lease|turn asyncio|trio`.

Says `waiting` while it waits, `held` when it holds and its turn, if it is one, is noted, and `left`. Appends one record
while it holds.
"""

from __future__ import annotations

import os
import sys

import anyio
from anyio import create_task_group, to_thread

from locks import LockRegistry
from locks.sidecar import turn_note


def say(line: str) -> None:
    os.write(1, line.encode() + b"\n")


async def main(path: str, right: str) -> None:
    registry = LockRegistry()

    async def watch() -> None:
        while not registry.statistics().waiting:
            await anyio.sleep(0.001)
        say("waiting")

    async with create_task_group() as group:
        group.start_soon(watch)
        async with getattr(registry, right)(path) as lease:
            group.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await lease.append({"by": os.getpid()})
                while right == "turn" and turn_note.read(path) is None:
                    await anyio.sleep(0.002)
                say("held")
                await to_thread.run_sync(sys.stdin.readline)
    say("left")


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2], backend=sys.argv[3])
