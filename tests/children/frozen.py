"""Takes a short lease, freezes its own event loop until it hears a line, and tries to write.

Started as `frozen PATH asyncio|trio`. Says `frozen` when the loop stands still, then what the late append raised, and
what the end of the block.
"""

from __future__ import annotations

import os
import sys

import anyio
import structlog

from locks import LockError, LockRegistry


def say(line: str) -> None:
    os.write(1, line.encode() + b"\n")


async def main(path: str) -> None:
    registry = LockRegistry(max_hold=0.05, grace=0.05)
    try:
        async with registry.lease(path) as lease:
            await lease.append({"by": "frozen", "n": 1})
            say("frozen")
            sys.stdin.readline()  # on the loop's own thread
            try:
                lease.append_sync({"by": "frozen", "n": 2})
                say("append went through")
            except LockError as error:
                say(f"append: {type(error).__name__}")
    except LockError as error:
        say(f"block: {type(error).__name__}")
    say(f"held={registry.statistics().held} revoked={registry.statistics().revoked}")


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # standard output is for the parent
    anyio.run(main, sys.argv[1], backend=sys.argv[2])
