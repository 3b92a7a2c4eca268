"""The body of runs whose messages an inbox keeps. It reports each step, so that its process can be killed in any.

On a lane that says `repeat`, it does what such a lane asks of a handler: all of it can be done twice. It looks in the
session whether the message is answered already.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import anyio

from lanes import Message, RunContext
from lanes.message import ids_of

from . import wire
from .ledger import Ledger
from .model_bodies import ToolFailed
from .traffic import Line

OPTIONS = ["yes", "no"]
Report = Callable[[wire.Event], None]


def body_of(line: Line, name: str) -> dict[str, Any]:
    """A message as the inbox keeps it."""
    return {"name": name, "text": line.text, "think": line.think, "behave": line.behave, "hold": line.hold}


class KeptBodies:
    """The handlers of one scenario.

    Args:
        report: tells the parent, before anything else happens.
    """

    def __init__(self, ledger: Ledger, scale: float, report: Report) -> None:
        self._ledger, self._scale, self._report = ledger, scale, report

    async def handle_once(self, ctx: RunContext, messages: Sequence[Message]) -> None:
        """The handler of lanes whose messages must not be repeated."""
        await self._handle(ctx, messages[0], ())

    async def handle_again(self, ctx: RunContext, messages: Sequence[Message]) -> None:
        """The handler of lanes whose messages may be repeated."""
        found = await ctx.session.read()
        await self._handle(ctx, messages[0], {name for record in found for name in record.get("answers", ())})

    async def tell_unknown(self, ctx: RunContext, messages: Sequence[Message]) -> None:
        """The `on_unknown` of all lanes."""
        record = self._record(ctx, "note", "I was interrupted; please ask again", unknown=ids_of(messages))
        _ = await ctx.session.append(record)
        self._ledger.acknowledge(record, ctx.session.path)

    async def _handle(self, ctx: RunContext, message: Message, answered: Collection[str]) -> None:
        self._report(wire.Begun(ctx.message_ids))
        answer, body = message.answer, message.body
        if answer is not None:
            body = answer.keep
            told = {"ask": answer.ask, "outcome": answer.outcome, "value": answer.value}
            await self._write(ctx, "user", f"{answer.outcome}: {answer.value}", begins=ctx.message_ids, **told)
        else:
            await self._write(ctx, "user", body["text"], begins=ctx.message_ids)
        name: str = body["name"]
        if name in answered:
            return
        await anyio.sleep(body["think"] * self._scale)
        if body["behave"] == "raise":
            raise ToolFailed(f"the tool failed on {body['text']!r:.60}")
        if body["behave"] == "ask" and answer is None:
            raise await self._ask(ctx, body)
        record = self._record(ctx, "assistant", f"answer to: {body['text']}", answers=[name])
        if ctx.message_ids[0] % 2:
            await ctx.finish(record)
        else:
            _ = await ctx.session.append(record)
        self._ledger.acknowledge(record, ctx.session.path)

    async def _ask(self, ctx: RunContext, body: dict[str, Any]) -> Exception:
        name, hold = body["name"], body["hold"]
        expires = None if hold is None else hold * self._scale
        asked = await ctx.ask(f"{body['text']}?", options=OPTIONS, expires=expires, key=name, keep=body)
        self._report(wire.Asked(asked.id, name))
        return asked

    async def _write(self, ctx: RunContext, role: str, content: str, **more: Any) -> None:
        record = self._record(ctx, role, content, **more)
        _ = await ctx.session.append(record)
        self._ledger.acknowledge(record, ctx.session.path)

    def _record(self, ctx: RunContext, role: str, content: str, **more: Any) -> dict[str, Any]:
        run = f"{self._ledger.instance}-{ctx.run.id}"
        return {"id": self._ledger.new_id(), "run": run, "turn": ctx.run.turn, "role": role, "content": content, **more}
