"""The body of the harness's runs: it writes the questions, calls a model that behaves as the message says, and answers.

A run may have several messages to answer: those that were collected, and those that it reads from its inbox while the
model thinks. They share one call and one answer.
"""

from __future__ import annotations

import mmap
import threading
import time
from collections.abc import Sequence
from typing import Any

import anyio
from anyio import get_cancelled_exc_class, to_thread

from lanes import Message, Run, RunContext
from locks import LeaseLost

from .generation_secrets import NAME, Secret
from .ledger import Ledger, Sent
from .traffic import BEHAVIOURS, Line

_STEPS = 4
"""Pauses of a model call in which the body looks for new messages."""
_DROPPED = "dropped meanwhile: "


class ToolFailed(Exception):
    """A tool of the scenario failed, as its message asks for."""


def summarize(run: Run, messages: Sequence[Message]) -> Sent:
    """The `on_drop` of lanes whose full queues are summarized: what the model gets instead of the messages."""
    dropped = "; ".join(message.body.line.text.removeprefix(_DROPPED) for message in messages)
    return Sent(Line(lane=run.lane, text=_DROPPED + dropped))


class ModelBodies:
    """The bodies of one scenario; `release` ends those that hang, so that no thread is left behind."""

    def __init__(self, ledger: Ledger, scale: float) -> None:
        self._ledger = ledger
        self._scale = scale
        self._released = anyio.Event()
        self._released_threads = threading.Event()

    def release(self) -> None:
        """End every call that hangs, blocks or swallows. On the event loop's thread."""
        self._released_threads.set()
        self._released.set()

    async def handle(self, ctx: RunContext, messages: Sequence[Message]) -> str:
        """The handler of every lane: the questions are written first, for a crash must not lose them."""
        asked: list[Sent] = [message.body for message in messages]
        context = _memory(sum(sent.line.context_mb for sent in asked))
        for sent in asked:
            await self._take_down(ctx, sent)
        try:
            await self._think(ctx, asked)
            written = await self._misbehave(ctx, _worst(asked), _reply(asked), _names(asked))
        except get_cancelled_exc_class():
            reply = _reply(asked)
            async with ctx.cleanup():
                await self._write(ctx, "assistant", reply[: len(reply) // 2], stopped=ctx.run.reason)
            raise
        if not written:
            await self._write(ctx, "assistant", _reply(asked), answers=_names(asked))
        for sent in asked:
            sent.answered = True
        del context
        return _reply(asked)

    async def note(self, ctx: RunContext, sent: Sent) -> None:
        """Append to a session that another run may be conducting."""
        line = sent.line
        await anyio.sleep(line.think * self._scale)
        await self._misbehave(ctx, line, line.text, _names([sent]))
        await self._write(ctx, "note", line.text, answers=_names([sent]))
        sent.answered = True

    async def _take_down(self, ctx: RunContext, sent: Sent, **more: Any) -> None:
        """Write a question, unless an earlier attempt has."""
        line = sent.line
        if not sent.asked:
            more |= {} if line.route is None else {"route": line.route}
            await self._write(ctx, "user", line.text, **more)
            sent.asked = True

    async def _think(self, ctx: RunContext, asked: list[Sent]) -> None:
        """Call the model, and add to what is asked the messages that come before its last step."""
        think_s = max(sent.line.think for sent in asked) * self._scale
        secret = self._secret(ctx)
        for _ in range(_STEPS):
            if secret is not None:
                secret.use()
            for message in ctx.inbox.take():
                asked.append(message.body)
                await self._take_down(ctx, message.body, steered=True)
            await anyio.sleep(think_s / _STEPS)

    def _secret(self, ctx: RunContext) -> Secret | None:
        """What this generation works with, where there is such a service."""
        return ctx.services.get(NAME)

    async def _misbehave(self, ctx: RunContext, line: Line, reply: str, names: list[str]) -> bool:
        """What the call ends in; returns whether the answer is written already."""
        match line.behave:
            case "flaky" if ctx.run.attempt <= line.fails:
                raise ToolFailed(f"the tool failed on {line.text!r:.60}, attempt {ctx.run.attempt}")
            case "raise":
                raise ToolFailed(f"the tool failed on {line.text!r:.60}")
            case "hang":
                with anyio.move_on_after(self._hold(line)):
                    await self._released.wait()
            case "block":
                await to_thread.run_sync(self._block, ctx, line, reply, names)
                return True
            case "swallow":
                await self._swallow(line)
        return False

    def _hold(self, line: Line) -> float | None:
        return None if line.hold is None else line.hold * self._scale

    def _block(self, ctx: RunContext, line: Line, reply: str, names: list[str]) -> None:
        """In a worker thread, which no cancellation reaches; a late answer must be refused."""
        self._released_threads.wait(self._hold(line))
        record = self._record(ctx, "assistant", reply, answers=names)
        if record is None:
            return
        over = ctx.run.outcome is not None
        try:
            _ = ctx.session.append_sync(record)
        except LeaseLost:
            return  # counted by the supervisor
        self._acknowledge(ctx, record, over)

    async def _swallow(self, line: Line) -> None:
        """Catch every cancellation, as code with a broad `except` does; a late answer must be refused."""
        hold = self._hold(line)
        until = None if hold is None else time.monotonic() + hold
        while not self._released.is_set() and (until is None or time.monotonic() < until):
            try:
                with anyio.move_on_after(None if until is None else until - time.monotonic()):
                    await self._released.wait()
            except get_cancelled_exc_class():
                continue  # this is the misbehaviour to be survived

    async def _write(self, ctx: RunContext, role: str, content: str, **more: Any) -> None:
        """Append a record; acknowledged means that the append has returned."""
        record = self._record(ctx, role, content, **more)
        if record is None:
            return
        over = ctx.run.outcome is not None
        _ = await ctx.session.append(record)
        self._acknowledge(ctx, record, over)

    def _record(self, ctx: RunContext, role: str, content: str, **more: Any) -> dict[str, Any] | None:
        if ctx.run.session is None:
            return None
        run, secret = ctx.run, self._secret(ctx)
        more |= {} if secret is None else {"generation": secret.name}
        return {
            "id": self._ledger.new_id(),
            # Each attempt is a writer of its own, whose time is over when the next one begins.
            "run": f"{self._ledger.instance}-{run.id}" + (f".{run.attempt}" if run.attempt > 1 else ""),
            "turn": run.turn,
            "role": role,
            "content": content,
            **more,
        }

    def _acknowledge(self, ctx: RunContext, record: dict[str, Any], over: bool) -> None:
        self._ledger.acknowledge(record, ctx.session.path)
        self._ledger.dead_writes += over


def _worst(asked: Sequence[Sent]) -> Line:
    """The message that decides what the call ends in."""
    return max((sent.line for sent in asked), key=lambda line: BEHAVIOURS.index(line.behave))


def _reply(asked: Sequence[Sent]) -> str:
    return f"answer to: {'; '.join(sent.line.text for sent in asked)}"


def _names(asked: Sequence[Sent]) -> list[str]:
    """Of the messages that an answer is to; those that the harness made up itself have none."""
    return [sent.id for sent in asked if sent.id]


def _memory(megabytes: float) -> mmap.mmap | None:
    """Memory that is really taken, and given back to the system the moment that no reference to it is left."""
    size = round(megabytes * 1e6)
    if not size:
        return None
    memory = mmap.mmap(-1, size)
    for at in range(0, size, mmap.PAGESIZE):
        memory[at] = 1
    return memory
