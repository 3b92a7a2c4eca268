"""Limits of providers, in a few lines; `docs/pools.md` quotes the code and its output.

Run all examples, or some: `python examples/pools.py`, `python examples/pools.py slots refused`.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio
import structlog

from lanes import LaneSpec, Message, PoolSpec, RunContext
from locks import DeadlockError
from runtime import Supervisor


@asynccontextmanager
async def gateway(*pools: PoolSpec, lanes: Sequence[LaneSpec] = ()) -> AsyncIterator[Supervisor]:
    """A supervisor over a directory of its own."""
    with tempfile.TemporaryDirectory() as sessions:
        async with Supervisor(sessions, lanes=lanes, pools=pools) as sup:
            yield sup


async def slots() -> None:
    """Calls at a time."""
    under_way = most = 0

    async def handle(ctx: RunContext, messages: Sequence[Message]) -> str:
        nonlocal under_way, most
        async with ctx.pool("anthropic"):  # waits here, whatever lane it runs on
            under_way += 1
            most = max(most, under_way)
            await anyio.sleep(0.02)  # the call
            under_way -= 1
        return f"answer to {messages[0].body}"

    async with gateway(PoolSpec("anthropic", slots=2), lanes=[LaneSpec("session:*", handler=handle)]) as sup:
        runs = [sup.post(f"session:{name}", "hello") for name in ("ann", "ben", "cleo", "dan", "eve")]
        print([await run.result() for run in runs].count("answer to hello"), "answers,", most, "calls at a time")


async def tokens() -> None:
    """Tokens in a minute: what was asked for counts until it is known what was used."""

    async def ask(ctx: RunContext) -> None:
        async with ctx.pool("anthropic", tokens=1200) as grant:
            used = 800  # what the provider's answer says
            grant.settle(used)
            print("in the last minute:", sup.statistics().pools["anthropic"].tokens_in_window)

    async with gateway(PoolSpec("anthropic", rate=(60, 60.0), tokens=(2000, 60.0))) as sup:
        await sup.run("main", ask)
        await sup.run("main", ask)  # the 800, and the 1200 that it asks for, are 2000: let through at once
        third = sup.submit("main", ask, timeout=1.0)
        print("the third one:", (await third.wait()).reason)


async def refused() -> None:
    """The provider answers 429: the pool waits for as long as it says, and goes on with half of its limits."""
    answers = ["429", "200"]

    async def ask(ctx: RunContext) -> str:
        while True:
            async with ctx.pool("anthropic") as grant:
                if answers.pop(0) == "200":
                    return "answered"
                grant.throttled(retry_after=0.5)
                print(f"refused; in force: {sup.statistics().pools['anthropic'].share:.0%} of its limits")

    async with gateway(PoolSpec("anthropic", slots=8)) as sup:
        print(await sup.run("main", ask))


async def ring() -> None:
    """A wait that could never end is refused before it begins."""

    async def answer(ctx: RunContext) -> str:
        async with ctx.pool("anthropic"):
            return "42"

    async def ask(ctx: RunContext) -> None:
        async with ctx.pool("anthropic"):  # holds the one slot that its own child needs
            child = ctx.submit("main", answer)
            await anyio.sleep(0.02)
            try:
                await child.result()
            except DeadlockError as error:
                print(type(error).__name__, "a grant of pool anthropic" in str(error))

    async with gateway(PoolSpec("anthropic", slots=1)) as sup:
        await sup.run("main", ask)


async def configure() -> None:
    """Other limits while everything runs."""
    async with gateway(PoolSpec("anthropic", slots=2)) as sup:
        print(sup.configure(pools=[PoolSpec("anthropic", slots=4), PoolSpec("local", slots=1)]))


async def main(*names: str) -> None:
    """Run the examples of those names, or all."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    for example in (slots, tokens, refused, ring, configure):
        if not names or example.__name__ in names:
            print(f"== {example.__name__}")
            await example()


if __name__ == "__main__":
    anyio.run(main, *sys.argv[1:])
