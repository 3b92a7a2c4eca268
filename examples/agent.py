"""The bodies of `examples/gateway.py`: answer, research, cron job, heartbeat, and compaction of the transcript."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import anyio
from anyio import get_cancelled_exc_class

from lanes import Answer, LaneError, Message, RunContext
from locks import LeaseTimeout, Records
from runtime import Supervisor


@dataclass(frozen=True)
class Model:
    """Stands for a model: waits before each token as a real model does, and repeats the question."""

    delay: float
    """Seconds before each token."""
    tokens: int
    """The least number of tokens in an answer."""

    async def answer(self, question: str) -> AsyncIterator[str]:
        """Yield the answer token by token; each token is a checkpoint."""
        words = question.split() or ["?"]
        for word in islice(cycle(words), max(len(words), self.tokens)):
            await anyio.sleep(self.delay)
            yield word + " "

    async def summarise(self, records: Records) -> str:
        """Summarise the records in one line. A checkpoint."""
        await anyio.sleep(self.delay)
        return f"{len(records)} records, the last one: {records[-1].get('content')!r:.80}"


DAY_S = 86_400.0


@dataclass(frozen=True)
class Agent:
    """Conducts a session: the handler of its lane. It deletes nothing before a person has said yes.

    Its records name the messages of the inbox that they belong to (`message`, `answers`). So after the process was
    killed, the transcript says how far each message has come, whatever the inbox could still write.
    """

    compact_above: int
    """Records that a transcript may have before it is compacted."""

    async def __call__(self, ctx: RunContext, messages: Sequence[Message]) -> str:
        """Answer the posted messages, and those that arrive meanwhile (`when_busy="steer"`)."""
        before = await ctx.session.read()
        reply, unread, to_delete = "", list(messages), list[str]()
        try:
            while unread:
                for message in unread:  # first: a crash must not lose it
                    await ctx.session.append(heard(message))
                if len(before) > self.compact_above:
                    before = await compact(ctx, before)
                for message in unread:
                    if message.answer is not None:
                        reply += await decided(ctx, message.answer)
                    elif (name := message.body.removeprefix("/delete ")) != message.body:
                        to_delete.append(name)
                    else:
                        delegate(ctx, message.body)
                        async for token in ctx.services["model"].answer(message.body):
                            reply += token
                            ctx.emit(token)
                unread = ctx.inbox.take()
            if to_delete:
                await self.ask(ctx, to_delete, reply)
        except get_cancelled_exc_class():
            async with ctx.cleanup():  # the next turn must not find a question without an answer
                stopped = {"content": reply, "stopped": ctx.run.reason, "answers": ctx.message_ids}
                await ctx.session.append({"role": "assistant"} | stopped)
            raise
        async with ctx.cleanup():  # a whole answer is written, also when the run is cancelled meanwhile
            await ctx.finish({"role": "assistant", "content": reply, "answers": ctx.message_ids}, reply)
        return reply

    async def ask(self, ctx: RunContext, to_delete: list[str], said: str) -> None:
        """Ask a person whether to delete files, and end the run: it holds nothing while that person thinks."""
        question = f"Delete {', '.join(to_delete)}?"
        asked = await ctx.ask(question, options=["yes", "no"], expires=DAY_S, keep={"delete": to_delete})
        record = {"content": said + question, "ask": asked.id, "answers": ctx.message_ids}
        await ctx.session.append({"role": "assistant"} | record)
        raise asked

    async def interrupted(self, ctx: RunContext, messages: Sequence[Message]) -> None:
        """Tell the session of messages that a process was answering when it was killed. They are not answered again:
        what they asked for may have been done. Those that the transcript shows as answered need no word."""
        records = await ctx.session.read()
        known = {record.get("message") for record in records}
        answered = {message for record in records for message in record.get("answers", ())}
        left = [message for message in messages if message.id not in answered]
        for message in left:
            if message.id not in known:
                await ctx.session.append(heard(message))
        if left:
            record = {"content": INTERRUPTED, "answers": [message.id for message in left]}
            await ctx.session.append({"role": "assistant"} | record)


INTERRUPTED = "I was interrupted, and do not know how far I came. Please ask again."


def heard(message: Message) -> dict[str, Any]:
    """The record of a message: what a user has said, or how a person has decided."""
    if (answer := message.answer) is None:
        return {"role": "user", "content": message.body, "message": message.id}
    decision = {"ask": answer.ask, "outcome": answer.outcome, "value": answer.value, "by": answer.by}
    return {"role": "decision", "message": message.id} | decision


async def decided(ctx: RunContext, answer: Answer) -> str:
    """Do what a person has allowed; returns what there is to say. The record stands for a tool that deletes."""
    names = ", ".join(answer.keep["delete"])
    if answer.outcome == "expired":
        return f"No one has answered, so I keep {names}. "
    if answer.value != "yes":
        return f"I keep {names}. "
    await ctx.session.append({"role": "tool", "content": f"deleted {names}", "ask": answer.ask})
    return f"I have deleted {names}. "


def delegate(ctx: RunContext, question: str) -> None:
    """Submit a sub-agent for `/research TOPIC`. The run is detached: it outlives this run, and takes no turn."""
    topic = question.removeprefix("/research ")
    if topic != question:
        ctx.submit("subagent", research, topic, session=ctx.session.key, turn=False, detached=True)


async def compact(ctx: RunContext, records: Records) -> Records:
    """Replace the records by a summary; later records, such as the question, are kept. A checkpoint."""
    summary = {"role": "system", "content": await ctx.services["model"].summarise(records)}  # no lease: others append
    try:
        async with ctx.session.lease(wait_timeout=5.0) as lease:
            await lease.replace([summary], through=records.position)
    except LeaseTimeout:
        return records  # another run holds the lease for long; the next turn tries again
    return await ctx.session.read()


async def research(ctx: RunContext, topic: str) -> None:
    """A sub-agent: works beside its session, and appends its result."""
    found = "".join([token async for token in ctx.services["model"].answer(topic)])
    await ctx.session.append({"role": "announcement", "content": f"about {topic}: {found}"})


async def remind(ctx: RunContext) -> None:
    """A cron job: takes the session's turn, and appends a record like a user."""
    await ctx.session.append({"role": "cron", "content": f"{len(await ctx.session.read())} records so far"})


async def beat(ctx: RunContext) -> None:
    """A heartbeat: appends a record without the session's turn."""
    await ctx.session.append({"role": "heartbeat"})


Body = Callable[[RunContext], Any]


@asynccontextmanager
async def clock(sup: Supervisor, keys: Iterable[str], cron_every: float, heartbeat_every: float) -> AsyncIterator[None]:
    """A service: submits the cron job and the heartbeat of each session, until the supervisor stops or restarts."""

    async def every(period: float, lane: str, body: Body, turn: bool) -> None:
        while True:
            await anyio.sleep(period)
            for key in list(keys):
                try:
                    sup.submit(lane, body, session=key, turn=turn)
                except LaneError:
                    break  # a lane is full, or the supervisor drains: try again in the next period

    async with anyio.create_task_group() as timers:
        timers.start_soon(every, cron_every, "cron", remind, True)
        timers.start_soon(every, heartbeat_every, "heartbeat", beat, False)
        yield
        timers.cancel_scope.cancel()
