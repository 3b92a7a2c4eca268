"""A Telegram bot: python-telegram-bot, polling.

    pip install session-lanes python-telegram-bot
    TELEGRAM_TOKEN=... python -m examples.telegram_bot       # sessions in $BOT_SESSIONS, by default sessions/

A chat is a session: its messages are answered one after the other, other chats meanwhile. An update is on disk when
its callback returns (`accept`), and one that Telegram delivers twice is answered once (`dedupe`). `/delete NAME` asks a
person by buttons; nothing but a row of the inbox waits for the answer.

Ctrl-C and SIGTERM are those of `run_polling`: it stops to fetch, lets callbacks end, then calls `post_stop`, where the
supervisor drains while the bot can still send. The library confirms updates when it fetches the next ones: those that
it had fetched and not yet handed to a callback are lost by `kill -9`. `examples/bot.py` polls by itself: it loses none.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import anyio
from telegram import InlineKeyboardButton, InlineKeyboardMarkup, Update
from telegram.ext import Application, ApplicationBuilder, CallbackQueryHandler, ContextTypes, MessageHandler, filters

from lanes import Answer, LaneError, LaneSpec, Message, RunContext
from runtime import AskClosed, Supervisor


class Bot:
    """Answers each message in its chat."""

    def __init__(self, token: str, sessions: str, api: str | None = None) -> None:
        chats = LaneSpec("session:*", handler=self.handle, timeout=120, on_unknown=self.interrupted)
        self.sup = Supervisor(sessions, lanes=[chats], inbox=True, status_socket=True)
        builder = ApplicationBuilder().token(token).post_init(self.start).post_stop(self.stop)
        if api is not None:
            builder = builder.base_url(f"{api}/bot")
        self.app: Application = builder.build()
        new_text = filters.TEXT & filters.UpdateType.MESSAGE  # no edits, no posts in channels
        self.app.add_handler(MessageHandler(new_text, self.on_message))
        self.app.add_handler(CallbackQueryHandler(self.on_button))

    async def start(self, _: Application) -> None:
        """Before the first update is fetched."""
        await self.sup.start()

    async def stop(self, _: Application) -> None:
        """After the last callback, and before the bot's connections are closed."""
        await self.sup.stop(drain_timeout=10)

    async def on_message(self, update: Update, _: ContextTypes.DEFAULT_TYPE) -> None:
        """Accept a message."""
        message = update.message
        assert message is not None
        try:
            await self.sup.accept(f"session:{message.chat_id}", message.text, dedupe=str(update.update_id))
        except LaneError as error:
            await message.reply_text("Too many messages; please wait." if error.retryable else str(error))

    async def on_button(self, update: Update, _: ContextTypes.DEFAULT_TYPE) -> None:
        """Take a person's decision to the handler that has asked."""
        query = update.callback_query
        assert query is not None and query.data is not None
        value, _, ask_id = query.data.partition(" ")
        try:
            await self.sup.answer(ask_id, value, by=query.from_user.full_name)
        except AskClosed:
            await query.answer("This has been decided.")
        else:
            await query.answer()

    async def handle(self, ctx: RunContext, messages: Sequence[Message]) -> None:
        """Answer a message; the sleep stands for a model."""
        (message,) = messages
        if message.answer is not None:
            return await self.decided(ctx, message.answer)
        await ctx.session.append({"role": "user", "content": message.body})
        if (name := message.body.removeprefix("/delete ")) != message.body:
            asked = await ctx.ask(f"Delete {name}?", options=["yes", "no"], expires=86_400, keep=name)
            buttons = [InlineKeyboardButton(value, callback_data=f"{value} {asked.id}") for value in ("yes", "no")]
            await self.send(ctx, f"Delete {name}?", InlineKeyboardMarkup([buttons]))
            raise asked  # the run ends, and holds nothing; the answer comes as a message
        await anyio.sleep(0.05)
        return await self.say(ctx, f"You said: {message.body}")

    async def decided(self, ctx: RunContext, answer: Answer) -> None:
        """Do what was decided; the record stands for the deletion."""
        if answer.value == "yes":
            await ctx.session.append({"role": "tool", "content": f"deleted {answer.keep}", "by": answer.by})
        await self.say(ctx, f"{'Deleted' if answer.value == 'yes' else 'I keep'} {answer.keep}")

    async def interrupted(self, ctx: RunContext, messages: Sequence[Message]) -> None:
        """Tell a chat of messages that a process was answering when it was killed."""
        await self.say(ctx, "I was interrupted. Please look whether I have answered, or ask again.")

    async def say(self, ctx: RunContext, text: str) -> None:
        """Send an answer, then keep it: what was kept and not sent, nobody would see."""
        await self.send(ctx, text)
        await ctx.finish({"role": "assistant", "content": text})

    async def send(self, ctx: RunContext, text: str, buttons: InlineKeyboardMarkup | None = None) -> None:
        """Send to the chat of the run."""
        await self.app.bot.send_message(int(ctx.session.key), text, reply_markup=buttons)


if __name__ == "__main__":
    bot = Bot(os.environ["TELEGRAM_TOKEN"], os.environ.get("BOT_SESSIONS", "sessions"), os.environ.get("TELEGRAM_API"))
    bot.app.run_polling()
