"""One process of the torture: `python -m tests.postgres.torture.node SETTINGS`, a JSON object.

Its senders write lines of JSON to its standard input, and it answers to its standard output, one line for each. What it
does, it writes down before and after in its journal, each line with the clock that all processes of a machine share:

    enter/left SESSION MESSAGE RUN    a body was begun, and is over
    wrote SESSION RUN N               the lines of a run up to the number N were acknowledged
    note SESSION NAME                 a note was acknowledged
    told MESSAGE STATE                somebody who waited for a message was told that
    finished MESSAGE RUN              its answer was acknowledged
    answered QUESTION MESSAGE         a person's answer was acknowledged
    reset SESSION                     a reset was acknowledged
    stall SECONDS                     the loop did not come round for so long
"""

from __future__ import annotations

import itertools
import json
import os
import random
import sys
import time
from collections.abc import Sequence
from typing import Any

import anyio
import anyio.to_thread
import structlog

from lanes import LaneError, LaneSpec, Message, RunContext
from locks import LockError
from runtime import Inbox, PostgresStore, StoreDown, Supervisor

from . import planted
from .varied import LANES as VARIED
from .varied import Varied

CANNOT_START = 75
TICK_S, STALL_S = 0.05, 0.05
_names = itertools.count()


class Journal:
    """Lines that outlive a kill: one `write` each."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def __call__(self, *what: Any) -> None:
        os.write(self._file, (json.dumps([time.monotonic(), *what]) + "\n").encode())


class Writer:
    """What a body writes: lines with the name of its run, numbered."""

    def __init__(self, ctx: RunContext, journal: Journal, message: int | None) -> None:
        self.run = f"{os.getpid()}-{next(_names)}"
        self.key = ctx.run.session
        self._ctx, self._journal, self._message, self._count = ctx, journal, message, 0

    def line(self, what: str, **more: Any) -> dict[str, Any]:
        record = {"run": self.run, "message": self._message, "n": self._count, "what": what, **more}
        self._count += 1
        return record

    def acknowledged(self) -> None:
        self._journal("wrote", self.key, self.run, self._count - 1)

    async def write(self, what: str, **more: Any) -> None:
        await self._ctx.session.append(self.line(what, **more))
        self.acknowledged()

    async def step(self, kind: str, rng: random.Random) -> None:
        session = self._ctx.session
        if kind == "many":
            async with session.lease() as lease:
                await lease.append_many([self.line("tool") for _ in range(3)])
            self.acknowledged()
        elif kind == "lease":
            async with session.lease() as lease:
                for part in range(3):
                    await lease.append(self.line("locked", part=part))
                    self.acknowledged()
                    await anyio.sleep(rng.random() * 0.02)
        elif kind == "thread":
            line = self.line("tool")
            await anyio.to_thread.run_sync(session.append_sync, line)
            self.acknowledged()
        else:
            await self.write("tool")


class Bodies:
    """The handlers."""

    def __init__(self, journal: Journal, rng: random.Random) -> None:
        self._journal, self._rng = journal, rng

    async def answer(self, ctx: RunContext, messages: Sequence[Message]) -> None:
        (message,), (number,) = messages, ctx.message_ids
        writer = Writer(ctx, self._journal, number)
        self._journal("enter", writer.key, number, writer.run)
        try:
            await writer.write("begin", lane=ctx.run.lane)
            for kind, pause in message.body["steps"]:
                await anyio.sleep(pause)
                await writer.step(kind, self._rng)
            await ctx.finish(writer.line("final"), number)
            self._journal("finished", number, writer.run)
            writer.acknowledged()
        except anyio.get_cancelled_exc_class():
            if self._rng.random() < 0.3:  # a body that goes on writing when it is asked to end
                with anyio.CancelScope(shield=True), anyio.move_on_after(0.2):
                    await writer.write("late")
            raise
        finally:
            self._journal("left", writer.key, number, writer.run)

    async def tell(self, ctx: RunContext, messages: Sequence[Message]) -> None:
        await ctx.session.append({"unknown": [message.id for message in messages]})

    async def work(self, ctx: RunContext) -> None:
        """A run that conducts a session and answers no message."""
        writer = Writer(ctx, self._journal, None)
        self._journal("enter", writer.key, None, writer.run)
        try:
            for _ in range(2):
                await writer.write("work")
                await anyio.sleep(self._rng.random() * 0.05)
        finally:
            self._journal("left", writer.key, None, writer.run)

    async def note(self, ctx: RunContext, name: str) -> None:
        await ctx.session.append({"note": name})
        self._journal("note", ctx.run.session, name)


class Node:
    """A supervisor, and who sends to it."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings, self._quiet = settings, False
        self._journal = Journal(f"{settings['journal']}-{os.getpid()}.journal")
        self._rng = random.Random(settings["seed"])
        bodies = self._bodies = Bodies(self._journal, self._rng)
        common: dict[str, Any] = {"handler": bodies.answer, "on_unknown": bodies.tell, "capacity": 8, "grace": 0.3}
        common["queue_limit"] = None
        self._varied = Varied(
            self._journal, self._rng, lambda ctx, message: Writer(ctx, self._journal, message), bodies.tell
        )
        lanes = [LaneSpec("once", **common), LaneSpec("again", repeat=True, **common), LaneSpec("work", capacity=8)]
        store = PostgresStore(
            settings["dsn"], schema=settings["schema"], ttl=settings["ttl"], grace=settings["grace"], create=True
        )
        self.sup = Supervisor(
            store,
            lanes=[*lanes, *self._varied.lanes()],
            inbox=Inbox(schedules=self._varied.schedules()),
            node=settings["name"],
            drain_timeout=1.0,
        )

    async def serve(self) -> None:
        async with self.sup, anyio.create_task_group() as group:
            for serve in (self._watch_the_loop, self._work):
                group.start_soon(serve)
            for does in (self._varied.persons, self._varied.meddle):
                group.start_soon(does, self.sup, lambda: self._quiet)
            self._journal("ready")
            _say({"ready": os.getpid()})
            while line := await anyio.to_thread.run_sync(sys.stdin.buffer.readline, abandon_on_cancel=True):
                sent = json.loads(line)
                if "quiet" in sent:
                    self._quiet = True
                else:
                    group.start_soon(self._accept, sent)
            group.cancel_scope.cancel()

    async def _accept(self, sent: dict[str, Any]) -> None:
        try:
            accepted = await self.sup.accept(
                sent["lane"], {"steps": sent["steps"]}, session=sent["session"], dedupe=sent["key"]
            )
        except (LaneError, LockError) as error:
            _say({"key": sent["key"], "error": f"{type(error).__name__}: {error}"})
            return
        _say({"key": sent["key"], "id": accepted.id})
        if sent["lane"] in VARIED:
            self._varied.accepted.append(accepted.id)
        try:
            outcome = await accepted.wait()
        except (LaneError, LockError):
            return
        self._journal("told", accepted.id, str(outcome.state), type(outcome.error).__name__)

    async def _watch_the_loop(self) -> None:
        last = time.monotonic()
        while True:
            await anyio.sleep(TICK_S)
            now = time.monotonic()
            if now - last > TICK_S + STALL_S:
                self._journal("stall", now - last)
            last = now

    async def _work(self) -> None:
        while not self._quiet:
            await anyio.sleep(0.2 + self._rng.random() * 0.6)
            session = self._rng.choice(self._settings["sessions"])
            try:
                if self._rng.random() < 0.5:
                    self.sup.submit("work", self._bodies.work, session=session, timeout=10)
                else:
                    name = f"{os.getpid()}-{next(_names)}"
                    self.sup.submit("work", self._bodies.note, name, session=session, turn=False, timeout=10)
            except LaneError:
                continue


def _say(what: dict[str, Any]) -> None:
    os.write(1, (json.dumps(what) + "\n").encode())


def _main() -> None:
    settings = json.loads(sys.argv[1])
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    if settings["defect"]:
        planted.DEFECTS[settings["defect"]].plant()
    try:
        anyio.run(Node(settings).serve, backend=settings["backend"])
    except StoreDown as error:  # the database was away when it started
        sys.stderr.write(f"{error}\n")
        sys.exit(CANNOT_START)


if __name__ == "__main__":
    _main()
