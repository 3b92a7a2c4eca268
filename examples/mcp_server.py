"""An MCP server with tool calls that take minutes: the Python SDK of the Model Context Protocol, over stdio.

    pip install session-lanes mcp
    python -m examples.mcp_server              # started by a client, such as an editor; sessions in $MCP_SESSIONS

`research` is a run: two at a time, the others wait in line and say so; one at a time for a topic. It reports progress
to the client, ends at its deadline whatever its code does, and ends when the client cancels the call or goes away. What
it has found is in the topic's session.

A client ends the server by closing its standard input; the calls under way are cancelled then, and may still write for
their grace. Ctrl-C and SIGTERM, of which the SDK handles neither, do the same here. Log lines go to standard error:
standard output is the protocol's.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio
from mcp.server.mcpserver import Context, MCPServer

from lanes import LaneSpec, Message, RunContext, RunError
from runtime import Supervisor
from runtime.log import configure

SOURCES = ("encyclopedia", "archive", "library")


async def look_up(ctx: RunContext, messages: Sequence[Message]) -> str:
    """Answer one call; the sleep stands for a slow source."""
    topic, pause_s = messages[-1].body
    for source in SOURCES:
        await anyio.sleep(pause_s)
        await ctx.session.append({"topic": topic, "source": source})
        ctx.emit(source)
    return f"{topic}: found in {', '.join(SOURCES)}"


stopping = threading.Event()
"""Set when a signal came."""


@asynccontextmanager
async def lifespan(_: MCPServer[Supervisor]) -> AsyncIterator[Supervisor]:
    """The supervisor lives as long as the server."""
    lane = LaneSpec("research", handler=look_up, capacity=2, timeout=300, grace=2)
    try:
        async with Supervisor(os.environ.get("MCP_SESSIONS", "sessions"), lanes=[lane]) as sup:
            yield sup
    finally:
        if stopping.is_set():
            os._exit(0)  # the SDK reads standard input in a thread, which would wait for one more line


server = MCPServer("research", lifespan=lifespan)


@server.tool()
async def research(topic: str, ctx: Context[Supervisor, None], pause_s: float = 0.05) -> str:
    """Look a topic up in three slow sources."""
    sup = ctx.request_context.lifespan_context
    run = sup.post("research", (topic, pause_s), session=topic)
    if run.started_at is None:
        await ctx.report_progress(0, len(SOURCES), "waits for a free place")
    try:
        found = 0
        async for source in run.events():
            found += 1
            await ctx.report_progress(found, len(SOURCES), f"looked at {source}")
        result: str = await run.result()
    except RunError as error:
        return f"no answer: {error}"
    else:
        return result
    finally:
        run.cancel("the client does not wait for it any more")  # nothing, where it has ended


async def main() -> None:
    """Serve until standard input ends, or a signal comes."""
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with anyio.create_task_group() as tasks:

            async def serve() -> None:
                await server.run_stdio_async()
                tasks.cancel_scope.cancel()

            tasks.start_soon(serve)
            async for _ in signals:
                stopping.set()
                tasks.cancel_scope.cancel()


if __name__ == "__main__":
    configure("console")
    anyio.run(main)
