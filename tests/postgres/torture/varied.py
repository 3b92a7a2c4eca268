"""What processes of the torture do besides: policies, questions to persons, resets, cancels, schedules.

Their sessions are their own, and each of them gets messages of all these lanes. Judged by `varied_judge`.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

import anyio

from lanes import LaneError, LaneSpec, Message, RunCancelled, RunContext
from locks import LockError
from runtime import Schedule, Supervisor

SENT = ("asks", "collects", "steers", "interrupts", "replaces")
TICKS = "ticks"
LANES = (*SENT, TICKS)
SESSIONS = [f"varied{n}" for n in range(6)]
EVERY_S = 0.5
NOT_DONE = (LaneError, LockError, RunCancelled)
"""The database is away, say, or a reset was cancelled by hand."""


class Writes(Protocol):
    """What a body writes: lines with the name of its run."""

    run: str
    key: str | None

    def line(self, what: str, **more: Any) -> dict[str, Any]: ...

    def acknowledged(self) -> None: ...

    async def write(self, what: str) -> None: ...


class Varied:
    """The handlers, and what processes do by themselves.

    Args:
        journal: writes down what was done.
        writer: makes what a body writes with.
    """

    def __init__(
        self,
        journal: Callable[..., None],
        rng: random.Random,
        writer: Callable[[RunContext, int], Writes],
        tell: Callable[[RunContext, Sequence[Message]], Any],
    ) -> None:
        self._journal, self._rng, self._writer, self._tell = journal, rng, writer, tell
        self.accepted: deque[int] = deque(maxlen=20)
        """Messages that this process was sent lately."""

    def lanes(self) -> list[LaneSpec]:
        common: dict[str, Any] = {"on_unknown": self._tell, "capacity": 4, "grace": 0.3, "queue_limit": None}
        return [
            LaneSpec("asks", handler=self.ask, **common),
            LaneSpec("collects", handler=self.answer, when_busy="collect", **common),
            LaneSpec("steers", handler=self.listen, when_busy="steer", **common),
            LaneSpec("interrupts", handler=self.answer, when_busy="interrupt", **common),
            LaneSpec("replaces", handler=self.answer, when_busy="replace", **common),
            LaneSpec(TICKS, handler=self.tick),
        ]

    def schedules(self) -> list[Schedule]:
        return [Schedule(TICKS, 1, every=EVERY_S, missed="all")]

    @asynccontextmanager
    async def _body(self, ctx: RunContext) -> AsyncIterator[Writes]:
        ids = list(ctx.message_ids)
        writer = self._writer(ctx, ids[0])
        for one in ids:
            self._journal("enter", writer.key, one, writer.run)
        try:
            await writer.write("varied")
            yield writer
        finally:
            self._journal("left", writer.key, ids[0], writer.run)

    async def _finish(self, ctx: RunContext, writer: Writes) -> None:
        ids = list(ctx.message_ids)
        await ctx.finish(writer.line("answered", messages=ids), ids)
        writer.acknowledged()
        for one in ids:
            self._journal("finished", one, writer.run)

    async def answer(self, ctx: RunContext, messages: Sequence[Message]) -> None:
        async with self._body(ctx) as writer:
            for kind, pause in messages[0].body["steps"]:
                await anyio.sleep(pause)
                await writer.write(kind)
            await self._finish(ctx, writer)

    async def listen(self, ctx: RunContext, _messages: Sequence[Message]) -> None:
        async with self._body(ctx) as writer:
            with anyio.move_on_after(0.1 + self._rng.random() * 0.3):
                async for _ in ctx.inbox:
                    await writer.write("heard")
            await self._finish(ctx, writer)

    async def ask(self, ctx: RunContext, messages: Sequence[Message]) -> None:
        async with self._body(ctx) as writer:
            await anyio.sleep(self._rng.random() * 0.05)
            if messages[0].answer is not None:
                await self._finish(ctx, writer)
            else:
                raise await ctx.ask("May I?", options=["yes", "no"])

    async def tick(self, _ctx: RunContext, _messages: Sequence[Message]) -> None:
        """Nothing: that it comes, and once, is all."""

    async def persons(self, sup: Supervisor, quiet: Callable[[], bool]) -> None:
        """Answer questions, whoever has asked them, until cancelled; at the end without delay."""
        while True:
            await anyio.sleep(0.1 if quiet() else 1 + 2 * self._rng.random())
            try:
                for one in await sup.asks(at_most=10):
                    accepted = await sup.answer(one.id, "yes", by="a person")
                    self._journal("answered", one.id, accepted.id)
            except NOT_DONE:
                continue

    async def meddle(self, sup: Supervisor, quiet: Callable[[], bool]) -> None:
        """Reset sessions and cancel what waits or runs, wherever that is, until it is to be quiet."""
        while not quiet():
            await anyio.sleep(0.2 + self._rng.random() / 2)
            session, what = self._rng.choice(SESSIONS), self._rng.random()
            try:
                if what < 0.5:
                    await sup.reset(session)
                    self._journal("reset", session)
                elif what < 0.65:
                    await sup.everywhere.cancel(session=session, reason="cancelled by hand")
                elif self.accepted:
                    message = self._rng.choice(self.accepted)
                    await sup.everywhere.cancel(message=message, reason="cancelled by hand")
            except NOT_DONE:
                continue
