"""Runs into its deadlines with bodies that end when they are asked to: `prompt DIRECTORY asyncio|trio`.

Says `begun` when all of its runs have, `asked` when they are asked to end, and, when all are over, a JSON list of the
states in which they ended. Each leaves last words, which take it a third of its grace.
"""

from __future__ import annotations

import json
import os
import sys

import anyio
import structlog
from anyio import get_cancelled_exc_class

from lanes import LaneSpec
from runtime import Supervisor

RUNS = 5
TIMEOUT, GRACE = 0.5, 0.3


def say(line: str) -> None:
    os.write(1, line.encode() + b"\n")


async def main(directory: str) -> None:
    begun = asked = 0

    async def body(ctx) -> None:
        nonlocal begun, asked
        begun += 1
        if begun == RUNS:
            say("begun")
        try:
            await anyio.sleep_forever()
        except get_cancelled_exc_class():
            asked += 1
            if asked == RUNS:
                say("asked")
            async with ctx.cleanup():
                await anyio.sleep(GRACE / 3)
                await ctx.session.append({"text": "last words"})
            raise

    async with Supervisor(directory, lanes=[LaneSpec("session:*", timeout=TIMEOUT, grace=GRACE)]) as sup:
        runs = [sup.submit(f"session:{number}", body) for number in range(RUNS)]
        say(json.dumps([(await run.wait()).state.value for run in runs]))


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # standard output is for the parent
    anyio.run(main, sys.argv[1], backend=sys.argv[2])
