"""A Slack bot: Slack Bolt in socket mode.

    pip install session-lanes slack-bolt aiohttp
    SLACK_APP_TOKEN=xapp-... SLACK_BOT_TOKEN=xoxb-... python -m examples.slack_bot     # sessions in $BOT_SESSIONS

A thread is a session: its messages are answered one after the other, in the thread. An event is acknowledged when its
message is on disk (`process_before_response`); one that Slack delivers again, since the acknowledgement came late, is
answered once (`dedupe`). A message that comes while the last one is being answered joins the next answer (`collect`).

The process is the supervisor's: Ctrl-C and SIGTERM end the `async with` block, which closes the socket, so no new event
comes; then the supervisor drains. Any number of processes may connect, and Slack gives each event to one of them: keep
their sessions in a `PostgresStore` then.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import anyio
from slack_bolt.adapter.socket_mode.aiohttp import AsyncSocketModeHandler
from slack_bolt.async_app import AsyncApp
from slack_sdk.web.async_client import AsyncWebClient

from lanes import LaneError, LaneSpec, Message, RunContext
from runtime import Supervisor


class Bot:
    """Answers each message in its thread."""

    def __init__(self, token: str, sessions: str, api: str | None = None) -> None:
        client = AsyncWebClient(token, base_url=api) if api is not None else AsyncWebClient(token)
        self.app = AsyncApp(client=client, process_before_response=True)
        self.app.event("message")(self.on_message)
        lane = LaneSpec("session:*", handler=self.handle, timeout=120, when_busy="collect", on_unknown=self.interrupted)
        self.sup = Supervisor(sessions, lanes=[lane], inbox=True, signals=True, drain_timeout=10)

    async def serve(self, app_token: str) -> None:
        """Connect, and serve until a signal stops the process."""
        handler = AsyncSocketModeHandler(self.app, app_token)
        async with self.sup:  # a signal cancels this block
            try:
                await handler.connect_async()
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):  # the runs under way still send, by HTTP
                    await handler.close_async()

    async def on_message(self, body: dict[str, Any], event: dict[str, Any]) -> None:
        """Accept a message. Slack delivers it again, for an hour, if this raises."""
        if event.get("subtype") or event.get("bot_id"):
            return  # an edit, a join, or what a bot has said
        thread = event.get("thread_ts", event["ts"])
        message = Message(event["text"], route={"channel": event["channel"], "thread_ts": thread})
        try:
            await self.sup.accept(f"session:{event['channel']}:{thread}", message, dedupe=body["event_id"])
        except LaneError as error:
            if error.retryable:
                raise
            await self.send(message.route, f"I cannot take this: {error}")

    async def handle(self, ctx: RunContext, messages: Sequence[Message]) -> None:
        """Answer the messages that wait; the sleep stands for a model."""
        for message in messages:
            await ctx.session.append({"role": "user", "content": message.body})
        await anyio.sleep(0.05)
        await self.say(ctx, messages, "You said: " + ", and ".join(message.body for message in messages))

    async def interrupted(self, ctx: RunContext, messages: Sequence[Message]) -> None:
        """Tell a thread of messages that a process was answering when it was killed."""
        await self.say(ctx, messages, "I was interrupted. Please look whether I have answered, or ask again.")

    async def say(self, ctx: RunContext, messages: Sequence[Message], text: str) -> None:
        """Send an answer, then keep it: what was kept and not sent, nobody would see."""
        await self.send(messages[-1].route, text)
        await ctx.finish({"role": "assistant", "content": text})

    async def send(self, route: dict[str, str], text: str) -> None:
        """Send to a thread."""
        await self.app.client.chat_postMessage(text=text, **route)


async def main() -> None:
    """Serve with what the environment says."""
    bot = Bot(os.environ["SLACK_BOT_TOKEN"], os.environ.get("BOT_SESSIONS", "sessions"), os.environ.get("SLACK_API"))
    await bot.serve(os.environ["SLACK_APP_TOKEN"])


if __name__ == "__main__":
    anyio.run(main)
