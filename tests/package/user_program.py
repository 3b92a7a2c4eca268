"""A user's program, as strict checkers see it: `py.typed` has to reach them, and each call to have its types."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import anyio
from anyio.lowlevel import checkpoint

from lanes import GroupSpec, LaneSpec, Message, Outcome, Run, RunContext, RunState
from locks import LockRegistry, Records
from runtime import Accepted, Inbox, Supervisor
from runtime.asgi import Supervised


async def handle(ctx: RunContext, messages: Sequence[Message]) -> str:
    await ctx.session.append({"role": "user", "content": messages[-1].body})
    records: Records = await ctx.session.read(last=10)
    ctx.emit("token")
    return f"{len(records)} so far"


LANES = [LaneSpec("session:*", handler=handle, timeout=30, when_busy="collect")]


def make() -> Supervisor:
    return Supervisor(sys.argv[1], lanes=LANES, groups=[GroupSpec("main", slots=4)], inbox=Inbox())


async def main() -> None:
    async with make() as sup:
        run: Run = sup.post("session:1", "hello", timeout=10)
        tokens = [token async for token in run.events()]
        outcome: Outcome = await run.wait()
        assert outcome.state is RunState.DONE and outcome.value == "1 so far", outcome
        accepted: Accepted = await sup.accept("session:1", "again", dedupe="a")
        assert (await accepted.wait()).value == "2 so far"
        path: str = sup.layout.file_of("1")
        print(f"{len(tokens)} tokens, {len(await LockRegistry().read(path))} records")


app: Supervised = Supervised(lambda scope, receive, send: checkpoint(), make)

if __name__ == "__main__":
    for backend in ("asyncio", "trio"):
        anyio.run(main, backend=backend)
        sys.argv[1] += "-again"
