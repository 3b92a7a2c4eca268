"""The core of a gateway in one file: a handler that appends the question first, streams, and cleans up when cancelled.

Run it: `python examples/embedded.py`.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Sequence

import anyio
from anyio import get_cancelled_exc_class

from lanes import LaneSpec, Message, RunContext, RunTimedOut
from runtime import Supervisor


async def model(question: str, pause_s: float) -> AsyncIterator[str]:
    """Stands for a model: repeats the question, word by word."""
    for word in question.split():
        await anyio.sleep(pause_s)
        yield word + " "


async def handle(ctx: RunContext, messages: Sequence[Message]) -> str:
    """Answer the messages of a session."""
    for message in messages:
        await ctx.session.append({"role": "user", "content": message.body})  # first: a crash must not lose it
    partial = ""
    try:
        async for token in model(messages[-1].body, pause_s=0.05):
            partial += token
            ctx.emit(token)  # to every reader of run.events()
    except get_cancelled_exc_class():
        async with ctx.cleanup():  # shielded, bounded by the grace, still allowed to write
            await ctx.session.append({"role": "assistant", "content": partial, "stopped": ctx.run.reason})
        raise
    async with ctx.cleanup():  # a whole answer is written, also when the run is cancelled meanwhile
        await ctx.session.append({"role": "assistant", "content": partial})
    return partial


async def main() -> None:
    """Post two messages to one session: the first is answered, the second takes too long."""
    with tempfile.TemporaryDirectory() as sessions:
        async with Supervisor(sessions, lanes=[LaneSpec("session:*", handler=handle, grace=0.5)]) as sup:
            run = sup.post("session:agent:silvermoon", "hello from the other side")
            late = sup.post("session:agent:silvermoon", "one two three four five six seven eight", timeout=0.2)
            async for token in run.events():
                print("  token:", token)
            print("answer:", await run.result())
            try:
                await late.result()
            except RunTimedOut as error:
                print("told:", error)
            for record in await sup.registry.read(sup.layout.file_of("agent:silvermoon")):
                print("  ", record)


if __name__ == "__main__":
    anyio.run(main)
