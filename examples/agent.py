"""The bodies of `examples/gateway.py`: answer, research, cron job, heartbeat, and compaction of the transcript."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import anyio
from anyio import get_cancelled_exc_class

from lanes import LaneError, Message, RunContext
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


@dataclass(frozen=True)
class Agent:
    """Conducts a session: the handler of its lane."""

    compact_above: int
    """Records that a transcript may have before it is compacted."""

    async def __call__(self, ctx: RunContext, messages: Sequence[Message]) -> str:
        """Answer the posted messages, and those that arrive meanwhile (`when_busy="steer"`)."""
        before = await ctx.session.read()
        reply, unread = "", list(messages)
        try:
            while unread:
                for message in unread:  # first: a crash must not lose it
                    await ctx.session.append({"role": "user", "content": message.body})
                if len(before) > self.compact_above:
                    before = await compact(ctx, before)
                for message in unread:
                    delegate(ctx, message.body)
                    async for token in ctx.services["model"].answer(message.body):
                        reply += token
                        ctx.emit(token)
                unread = ctx.inbox.take()
        except get_cancelled_exc_class():
            async with ctx.cleanup():  # the next turn must not find a question without an answer
                await ctx.session.append({"role": "assistant", "content": reply, "stopped": ctx.run.reason})
            raise
        await ctx.session.append({"role": "assistant", "content": reply})
        return reply


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
