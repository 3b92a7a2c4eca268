"""A chat bot that polls for updates, for any framework with a start and a stop callback.

    python examples/bot.py http://127.0.0.1:8081

A chat is a session: its messages are answered one after the other, other chats meanwhile. The server delivers an update
until the next poll confirms it, and the bot confirms it when it is on disk (`accept`). So an update that was not
accepted (the queue is full) is delivered again, and one that is delivered again after it was accepted is the same
message (`dedupe`). Killed and started again, the bot answers what waits; where it was killed while it answered, it says
so.

`/delete NAME` asks a person first, by buttons: the update of a button says which question it answers, and how. Nothing
waits for it in the bot but a row in the inbox.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import anyio
import httpx

from lanes import Answer, LaneError, LaneSpec, Message, RunContext
from locks import LockError
from runtime import Supervisor


class Bot:
    """Answers each update in its chat."""

    def __init__(self, url: str, sessions: str = "sessions") -> None:
        services = {"http": lambda: httpx.AsyncClient(base_url=url, timeout=60.0)}
        chats = LaneSpec("session:*", handler=self.handle, on_unknown=self.interrupted)
        self.sup = Supervisor(sessions, lanes=[chats], services=services, inbox=True)

    async def on_startup(self) -> None:
        """Called by the framework, in any task; `on_shutdown` may be called in another one."""
        await self.sup.start()

    async def on_shutdown(self) -> None:
        """Stop, and let the answers under way be sent."""
        await self.sup.stop(drain_timeout=10.0)

    async def on_update(self, update: dict[str, Any]) -> bool:
        """Accept an update; returns whether the next update may be confirmed and fetched."""
        try:
            if (button := update.get("button")) is not None:
                await self.sup.answer(button["ask"], button["value"], by=update["chat"])
            else:
                await self.sup.accept(f"session:{update['chat']}", update["text"], dedupe=str(update["id"]))
        except (LaneError, LockError) as error:
            # A full queue will have room. An update that can never be accepted is skipped, as a second press is.
            return not error.retryable
        return True

    async def handle(self, ctx: RunContext, messages: Sequence[Message]) -> None:
        """Answer a message, and send the answer inside the run, so that the run ends after the sending."""
        (message,) = messages  # the lane's policy is `queue`
        if (decision := message.answer) is not None:
            return await self.delete(ctx, decision)
        await ctx.session.append({"role": "user", "content": message.body, "message": message.id})
        if (name := message.body.removeprefix("/delete ")) != message.body:
            asked = await ctx.ask(f"Delete {name}?", options=["yes", "no"], expires=86_400.0, keep=name)
            buttons = [{"text": value, "ask": asked.id, "value": value} for value in ("yes", "no")]
            await self.send(ctx, f"Delete {name}?", buttons=buttons)
            raise asked  # the run ends, and holds nothing; the answer comes as a message
        answer = f"You said: {message.body}"
        await self.send(ctx, answer)
        return await ctx.finish({"role": "assistant", "content": answer, "answers": ctx.message_ids})

    async def delete(self, ctx: RunContext, decision: Answer) -> None:
        """Do what a person has decided. The record stands for the deletion."""
        name, is_allowed = decision.keep, decision.value == "yes"
        if is_allowed:
            await ctx.session.append({"role": "tool", "content": f"deleted {name}", "by": decision.by})
        text = f"{'Deleted' if is_allowed else 'I keep'} {name}"
        await self.send(ctx, text)
        await ctx.finish({"role": "assistant", "content": text, "answers": ctx.message_ids})

    async def interrupted(self, ctx: RunContext, messages: Sequence[Message]) -> None:
        """Tell a chat of messages that a process was answering when it was killed: they are not answered again."""
        answered = {one for record in await ctx.session.read() for one in record.get("answers", ())}
        if left := [message.id for message in messages if message.id not in answered]:
            await self.send(ctx, "I was interrupted. Please ask again.")
            await ctx.session.append({"role": "assistant", "content": "interrupted", "answers": left})

    async def send(self, ctx: RunContext, text: str, **more: Any) -> None:
        """Send to the chat of the run."""
        sent = await ctx.services["http"].post("/send", json={"chat": ctx.session.key, "text": text} | more)
        sent.raise_for_status()


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
                    if not await bot.on_update(update):
                        await anyio.sleep(1.0)
                        break  # this update and the later ones are delivered again, in order
                    offset = update["id"] + 1
    finally:
        with anyio.CancelScope(shield=True):
            await in_a_task_of_its_own(bot.on_shutdown)


if __name__ == "__main__":
    anyio.run(poll, sys.argv[1], Bot(sys.argv[1]))
