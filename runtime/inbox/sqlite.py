"""The inbox of one machine: an SQLite file beside the transcripts, written by one thread."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import anyio

from locks import process
from locks._loop import poster

from . import ask_statements, schema, statements
from .answer import Answer
from .errors import InboxDown, ask_closed
from .rows import Ask, AskedFor, InboxRow, MessageState, NewRow, Taken, Traffic
from .settings import Durability
from .store import Report
from .writer import Writer

_T = TypeVar("_T")
CLOSE_WITHIN_S = 30.0


def _kept_as(reason: str) -> str:
    """A reason as UTF-8: the text of an exception has halves of surrogate pairs where a file name has bytes."""
    return reason.encode(errors="backslashreplace").decode()


def _nobody(_result: Any, _error: BaseException | None) -> None:
    """Nothing waits for the report."""


class SqliteInbox:
    """Keeps accepted messages in a file. See `InboxStore`."""

    def __init__(self, path: str, durability: Durability = "process") -> None:
        self.path = path
        self.durability = durability
        self._writer: Writer | None = None
        self._opened: Writer | None = None
        """The writer, also once it is closed: how it ended, and what it has counted, stays known."""

    @property
    def failure(self) -> BaseException | None:
        """Why nothing is written any more."""
        return self._opened.failure if self._opened is not None else None

    @property
    def traffic(self) -> Traffic:
        """What was written since it was opened."""
        writer = self._opened
        if writer is None:
            return Traffic()
        return Traffic(commits=writer.commits, changes=writer.changes, uncommitted=writer.waiting)

    async def open(self) -> None:
        """Open the file in a thread of its own."""
        ready = Answer[None]()
        writer = Writer(self.path, partial(schema.connect, self.path, self.durability), poster())
        writer.start(ready)
        try:
            await ready.wait()
        except (sqlite3.Error, OSError) as error:
            raise InboxDown(f"inbox: {self.path} cannot be opened: {error}", path=self.path) from error
        except anyio.get_cancelled_exc_class():
            writer.stop()  # the thread ends when it has opened the file
            raise
        self._writer = self._opened = writer

    async def close(self) -> None:
        """Have the thread commit what it was given, and end."""
        writer, self._writer = self._writer, None
        if writer is not None:
            ended = Answer[None]()
            writer.stop(ended)
            with anyio.move_on_after(CLOSE_WITHIN_S, shield=True):
                await ended.wait()

    def let_go(self) -> None:
        """Have the thread end by itself: the event loop is gone, and nothing can wait for it."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.stop()

    def _do(self, step: Callable[[sqlite3.Connection], Any], report: Report | None) -> None:
        if self._writer is None:
            (report or _nobody)(None, InboxDown(f"inbox {self.path} is not open", path=self.path))
        else:
            self._writer.do(step, report or _nobody)

    async def _ask(self, step: Callable[[sqlite3.Connection], _T]) -> _T:
        answer = Answer[_T]()
        self._do(step, answer)
        return await answer.wait()

    # Changes

    def accept(self, new: NewRow, replayed: int, report: Report) -> None:
        """Keep a message."""
        self._do(lambda c: statements.accept(c, new, process.wall(), replayed), report)

    def begin(self, ids: Sequence[int], report: Report | None) -> None:
        """Messages are given to a body."""
        self._do(lambda c: statements.begin(c, ids, process.wall()), report)

    def wait_again(self, ids: Sequence[int]) -> None:
        """Messages wait for another attempt."""
        self._do(lambda c: statements.wait_again(c, ids), None)

    def take_back(self, ids: Sequence[int]) -> None:
        """No body was given messages that were accepted as started."""
        self._do(lambda c: statements.take_back(c, ids), None)

    def end(
        self, ids: Sequence[int], state: MessageState, reason: str, result: bytes | None, report: Report | None
    ) -> None:
        """Messages have ended."""
        why = _kept_as(reason)
        self._do(lambda c: statements.end(c, ids, state, process.wall(), why, result), report)

    def refuse(self, message: int, reason: str, report: Report) -> None:
        """A message that was accepted found no room."""
        self._do(lambda c: statements.refuse(c, message, process.wall(), _kept_as(reason)), report)

    def told(self, ids: Sequence[int]) -> None:
        """The lane of messages whose end is unknown was told of them."""
        self._do(lambda c: statements.told(c, ids), None)

    def settle(self, report: Report) -> None:
        """Change nothing."""
        self._do(lambda _: None, report)

    def requeue(self, message: int, report: Report) -> None:
        """Have a message wait again."""
        self._do(lambda c: statements.requeue(c, message, process.wall()), report)

    def cancel_waiting(
        self,
        lane: str | None,
        session: str | None,
        reason: str,
        report: Report,
        *,
        message: int | None = None,
        upto: int | None = None,
    ) -> None:
        """Messages that wait end as cancelled."""
        which = (lane, session, message, upto)
        why = _kept_as(reason)
        self._do(lambda c: statements.cancel_waiting(c, which, process.wall(), why), report)

    # Questions to persons

    def withdraw(self, session: str, reason: str) -> None:
        """The open questions of a session are withdrawn."""
        self._do(lambda c: ask_statements.withdraw(c, session, process.wall(), _kept_as(reason)), None)

    def ask(self, ask: Ask, report: Report) -> None:
        """Keep a question."""
        self._do(lambda c: ask_statements.ask(c, ask), report)

    def close_ask(self, how: AskedFor, new: NewRow, replayed: int, report: Report) -> None:
        """Close a question, and keep the message that says so."""

        def closed(taken: Taken | Ask | None, error: BaseException | None) -> None:
            if error is None and not isinstance(taken, Taken):
                report(None, ask_closed(how.ask, taken))
            else:
                report(taken, error)

        self._do(lambda c: ask_statements.close(c, how, new, process.wall(), replayed), closed)

    def wait_for(self, ids: Sequence[int], ask: str, report: Report | None) -> None:
        """Messages wait for the answer to a question."""
        self._do(lambda c: ask_statements.wait_for(c, ids, ask, process.wall()), report)

    async def find_ask(self, ask: str) -> Ask | None:
        """A question that is kept."""
        return await self._ask(lambda c: ask_statements.one(c, ask))

    async def open_asks(self, lane: str | None, session: str | None, at_most: int) -> list[Ask]:
        """The questions that are open."""
        return await self._ask(lambda c: ask_statements.open_ones(c, lane, session, at_most))

    async def due_asks(self, now: float, at_most: int) -> list[Ask]:
        """The open questions that have expired."""
        return await self._ask(lambda c: ask_statements.due(c, now, at_most))

    async def next_expiry(self) -> float | None:
        """When the next open question expires."""
        return await self._ask(ask_statements.next_expiry)

    # Schedules

    def accept_served(self, schedule: str, instant: float, new: NewRow, replayed: int, report: Report) -> None:
        """Keep a message of a schedule."""

        def step(connection: sqlite3.Connection) -> Taken:
            statements.serve(connection, schedule, instant)
            return statements.accept(connection, new, process.wall(), replayed)

        self._do(step, report)

    def serve(self, schedule: str, instant: float) -> None:
        """A schedule is served up to an instant."""
        self._do(lambda c: statements.serve(c, schedule, instant), None)

    async def served(self, schedule: str) -> float | None:
        """Up to which instant a schedule is served."""
        return await self._ask(lambda c: statements.served(c, schedule))

    # Questions to the store

    async def changes(self) -> int:
        """SQLite's `data_version`."""
        return await self._ask(statements.changes)

    def waiting(self, lane: str | None, after: int, at_most: int, report: Report) -> None:
        """Report a page of the messages that wait."""
        self._do(lambda c: statements.waiting(c, lane, after, at_most), report)

    async def recover(self, ids: Sequence[int] | None = None) -> tuple[int, int]:
        """Put right what was started and cut off."""
        return await self._ask(lambda c: statements.recover(c, process.wall(), ids))

    async def said(self, lane: str, session: str | None, key: str, digest: bytes) -> tuple[int, bool] | None:
        """The message that is kept under a key, and whether its body has that digest."""
        return await self._ask(lambda c: statements.said(c, lane, session, key, digest))

    async def accepted_among(self, ids: Sequence[int]) -> list[InboxRow]:
        """Those of some messages that wait."""
        return await self._ask(lambda c: statements.accepted_among(c, ids))

    async def untold(self, after: int, at_most: int) -> list[InboxRow]:
        """A page of the messages whose end is unknown, and that their lane was not told of."""
        where = "state = 'unknown' AND NOT told AND id > ? ORDER BY id LIMIT ?"
        return await self._ask(lambda c: statements.rows(c, where, (after, at_most)))

    async def find(self, message: int) -> InboxRow | None:
        """A message that is kept."""
        return await self._ask(lambda c: statements.one(c, message))

    async def in_state(self, state: MessageState, at_most: int) -> list[InboxRow]:
        """The oldest messages in a state."""
        return await self._ask(lambda c: statements.rows(c, "state = ? ORDER BY id LIMIT ?", (state, at_most)))

    async def last_id(self) -> int:
        """The id of the newest message there ever was."""
        return await self._ask(statements.last_id)

    def census(self, report: Report) -> None:
        """Count what still asks for something."""
        self._do(statements.census, report)

    async def comes_back(self) -> bool:
        """Never: after a failed sync nothing is known of what the disk has."""
        await anyio.lowlevel.checkpoint()
        return False

    async def ended_among(self, ids: Sequence[int]) -> list[int]:
        """Those of some messages for which nothing is to be done any more, forgotten ones with them."""
        return await self._ask(
            lambda c: [one for one in ids if (row := statements.one(c, one)) is None or not row.state.open]
        )

    async def purge(self, before: float, at_most: int) -> int:
        """Forget what ended before an instant."""
        return await self._ask(lambda c: statements.purge(c, before, at_most))
