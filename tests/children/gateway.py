"""A gateway in a process of its own. It serves until its standard input closes, or until it is killed.

`python -m tests.children.gateway conduct DIRECTORY KEY` conducts a session: question, then a model call without end.
`python -m tests.children.gateway take-turns DIRECTORY KEY NUMBER NAME` conducts it again and again, for a moment each.

It prints a line of JSON for each thing that happens.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable

import anyio
import structlog
from anyio import to_thread

from lanes import LaneSpec
from runtime import Supervisor


def say(**fields) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


async def conduct(directory: str, key: str) -> None:
    async def body(ctx):
        await ctx.session.append({"text": "question"})
        await ctx.session.append({"text": "half an answer"})
        say(event="conducting", run=ctx.run.id)
        await anyio.sleep_forever()

    async with Supervisor(directory, lanes=[LaneSpec("session:*", grace=0.2)], drain_timeout=0.0) as sup:
        sup.submit(f"session:{key}", body)
        await to_thread.run_sync(sys.stdin.read)


async def take_turns(directory: str, key: str, number: str, name: str) -> None:
    async def body(ctx, n):
        await ctx.session.append({"by": name, "n": n, "what": "begins"})
        await anyio.sleep(0.002)
        await ctx.session.append({"by": name, "n": n, "what": "ends"})

    async with Supervisor(directory, lanes=[LaneSpec("session:*", queue_limit=None)]) as sup:
        say(event="ready")
        await to_thread.run_sync(sys.stdin.readline)
        for n in range(int(number)):
            await sup.run(f"session:{key}", body, n)
        say(event="done", turns=int(number))


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    mains: dict[str, Callable[..., Awaitable[None]]] = {"conduct": conduct, "take-turns": take_turns}
    anyio.run(mains[sys.argv[1]], *sys.argv[2:])
