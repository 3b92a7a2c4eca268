"""A chat bot that polls for updates, for any framework with a start and a stop callback.

    python examples/bot.py http://127.0.0.1:8081

A chat is a session: its messages are answered one after the other, other chats meanwhile. The server delivers an update
until the next poll confirms it. So an update that was not accepted (the queue is full) is delivered again, and one that
is delivered again after it was accepted gets the same run (`dedupe`). Queued updates are lost if the process is killed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import anyio
import httpx

from lanes import LaneError, LaneSpec, Message, RunContext
from locks import LockError
from runtime import Supervisor


class Bot:
    """Answers each update in its chat."""

    def __init__(self, url: str, sessions: str = "sessions") -> None:
        services = {"http": lambda: httpx.AsyncClient(base_url=url, timeout=60.0)}
        self.sup = Supervisor(sessions, lanes=[LaneSpec("session:*", handler=self.handle)], services=services)

    async def on_startup(self) -> None:
        """Called by the framework, in any task; `on_shutdown` may be called in another one."""
        await self.sup.start()

    async def on_shutdown(self) -> None:
        """Stop, and let the answers under way be sent."""
        await self.sup.stop(drain_timeout=10.0)

    def on_update(self, update: dict[str, Any]) -> bool:
        """Post an update; returns whether the next update may be confirmed and fetched."""
        try:
            self.sup.post(f"session:{update['chat']}", update["text"], dedupe=str(update["id"]))
        except (LaneError, LockError) as error:
            return not error.retryable  # a full queue will have room; an update that can never be accepted is skipped
        return True

    async def handle(self, ctx: RunContext, messages: Sequence[Message]) -> None:
        """Answer the messages, and send the answer inside the run, so that the run ends after the sending."""
        for message in messages:
            await ctx.session.append({"role": "user", "content": message.body})
        answer = f"You said: {' '.join(message.body for message in messages)}"
        sent = await ctx.services["http"].post("/send", json={"chat": ctx.session.key, "text": answer})
        sent.raise_for_status()
        await ctx.session.append({"role": "assistant", "content": answer})


# Stands for the framework


async def in_a_task_of_its_own(callback: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Call back as frameworks do: in a task of its own, on which the bot must not rely."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(callback)


async def poll(url: str, bot: Bot) -> None:
    """Start the bot, poll for updates until cancelled, and stop it."""
    await in_a_task_of_its_own(bot.on_startup)
    try:
        offset = 0
        async with httpx.AsyncClient(base_url=url, timeout=60.0) as client:
            while True:
                try:
                    updates = (await client.get("/updates", params={"offset": offset})).raise_for_status().json()
                except httpx.HTTPError:
                    await anyio.sleep(1.0)  # the server is away; it keeps its updates
                    continue
                for update in updates:
                    if not bot.on_update(update):
                        await anyio.sleep(1.0)
                        break  # this update and the later ones are delivered again, in order
                    offset = update["id"] + 1
    finally:
        with anyio.CancelScope(shield=True):
            await in_a_task_of_its_own(bot.on_shutdown)


if __name__ == "__main__":
    anyio.run(poll, sys.argv[1], Bot(sys.argv[1]))
