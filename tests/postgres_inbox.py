"""The messages of one process on PostgreSQL, as the conformance suite of stores asks for them.

It is the product's own `PostgresMessages` on its own link, and without what stands above those in a node. So it does
itself what there is done by others:

- the server has the clock of the test;
- a process is gone without a word when its store is closed, and the next one inherits when it puts things right, as
  every node does with the sessions of a dead one;
- a message that is to start at once is begun as soon as it is accepted;
- a question is asked behind all changes that were handed over: between nodes the answer to one has no place among them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import psycopg
from msgspec.structs import replace

from lanes import LaneSpec
from lanes.spec_table import SpecTable
from locks import process
from locks._loop import poster
from runtime import PostgresStore
from runtime.inbox.answer import Answer
from runtime.inbox.rows import Ask, AskedFor, MessageState, NewRow, Taken
from runtime.inbox.store import Report
from runtime.postgres import life as lives
from runtime.postgres.link import Link
from runtime.postgres.messages import PostgresMessages
from runtime.postgres.step import Rows, Step

_NOW = "to_timestamp(coalesce(nullif(current_setting('lanes.wall', true), ''), '0')::float8)"
_NEVER_S = 1e6


def by_the_tests_clock(text: str) -> str:
    """SQL of ours, whose clock is the one of the test."""
    return text.replace("clock_timestamp()", _NOW)


class _Link(Link):
    """Tells the server what time it is, each time."""

    now: float | None = None
    """By default, what the clock of the test says."""

    def statement(self, text: str) -> bytes:
        return super().statement(by_the_tests_clock(text))

    async def connect(self, role: str = "") -> psycopg.AsyncConnection:
        connection = await super().connect(role)
        await self._tell_time(connection)
        return connection

    async def _commit(self, connection: psycopg.AsyncConnection, batch: list[tuple[Step, Report]]) -> list[Any]:
        await self._tell_time(connection)
        return await super()._commit(connection, batch)

    async def _rows(self, connection: psycopg.AsyncConnection, step: Step) -> Rows:
        await self._tell_time(connection)
        return await super()._rows(connection, step)

    async def _tell_time(self, connection: psycopg.AsyncConnection) -> None:
        now = process.wall() if self.now is None else self.now
        await connection.execute("select set_config('lanes.wall', %s, false)", [repr(now)])


class _Life(lives.Life):
    """Joins, never beats, and is gone without a word."""

    async def live(self, connection: psycopg.AsyncConnection) -> None:
        while not (self._link.over and self._link.idle):
            await asyncio.sleep(0.002)
        self._link.node = 0
        await connection.close()


class _Opening:
    """Opens and closes the link, as a node does."""

    clock_ahead_s = 0.0

    def __init__(self, link: Link) -> None:
        def nothing(_given: object) -> None: ...

        self._link = link
        self._life = _Life(link, "n", joined=nothing, lost=nothing, inherited=nothing)

    async def open(self) -> None:
        post, ready = poster(), Answer[None]()

        def told(error: BaseException | None) -> None:
            post(partial(ready, None, error))

        self._link.start(post, partial(lives.serve, self._link, self._life, told), told)
        await ready.wait()

    async def close(self) -> None:
        self._link.stop()
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._link.join, 30.0)

    def let_go(self) -> None:
        self._link.stop()


class _UpTo(Collection[int]):
    """The messages up to an id: those are in memory."""

    def __init__(self, last: int) -> None:
        self._last = last

    def __contains__(self, message: object) -> bool:
        return isinstance(message, int) and message <= self._last

    def __iter__(self) -> Iterator[int]:
        return iter(())

    def __len__(self) -> int:
        return 0


class PostgresInbox(PostgresMessages):
    """See above."""

    def __init__(self, dsn: str, schema: str) -> None:
        self._own = _Link(PostgresStore(dsn, schema=schema, ttl=_NEVER_S, connections=3, notify=False))
        lanes = SpecTable([LaneSpec(name) for name in "abc"], [])
        super().__init__(self._own, _Opening(self._own), lanes)

    async def _ask(self, step: Step) -> Any:
        answer = Answer[None]()
        self.settle(answer)
        await answer.wait()
        return await super()._ask(step)

    def accept(self, new: NewRow, replayed: int, report: Report) -> None:
        self.in_memory = _UpTo(replayed)
        super().accept(new, replayed, self._begun(new, report))

    def close_ask(self, how: AskedFor, new: NewRow, replayed: int, report: Report) -> None:
        super().close_ask(how, new, replayed, self._begun(new, report))

    def _begun(self, new: NewRow, report: Report) -> Report:
        def begin(taken: Taken | None, error: BaseException | None) -> None:
            if taken is None or not taken.new:
                report(taken, error)
                return
            begun = replace(taken, state=MessageState.STARTED)
            super(PostgresInbox, self).begin([taken.id], lambda _none, failed: report(begun, failed))

        return begin if new.started else report

    def begin(self, ids: Sequence[int], report: Report | None) -> None:
        """Messages are given to a body; reports how many, which no product asks of a shared store."""
        super().begin(ids, None)
        text = "select count(*) from {s}.message where id = any(%s::bigint[]) and state = 'started'"
        self._do(Step(text, (list(ids),), lambda rows: rows[0][0]), report)

    def take_back(self, ids: Sequence[int]) -> None:
        """Undo what `_begun` has done."""
        text = "update {s}.message set attempt = attempt - 1 where id = any(%s::bigint[]) and state = 'started'"
        self._do(Step(text, (list(ids),), lambda _: None), None)
        self.wait_again(ids)

    async def due_asks(self, now: float, at_most: int) -> list[Ask]:
        """Those that have expired by an instant, and not by the clock of the server."""
        self._own.now = now
        try:
            return await super().due_asks(now, at_most)
        finally:
            self._own.now = None

    async def recover(self, ids: Sequence[int] | None = None) -> tuple[int, int]:
        """As the product; of all messages, first those of the processes before this one."""
        if ids is not None:
            return await super().recover(ids)
        text = "select id from {s}.message where state = 'started'"
        started: list[int] = await self._ask(Step(text, (), lambda rows: [row[0] for row in rows]))
        for text in ("update {s}.node set beat_at = '-infinity' where id <> %s", lives.REAP):
            self._do(Step(text, (self._own.node,), lambda _: None), None)
        found = [row for row in [await self.find(one) for one in started] if row is not None]
        again, unknown = await super().recover([row.id for row in found if row.state is MessageState.STARTED])
        return (
            again + sum(row.state is MessageState.ACCEPTED for row in found),
            unknown + sum(row.state is MessageState.UNKNOWN for row in found),
        )
