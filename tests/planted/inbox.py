"""Defects of the durable inbox, each a patch of one function. A defect counts how often it was reached: one that never
is shows nothing."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from msgspec.structs import replace

from lanes import Message
from lanes.body.session import Session
from locks import Fence
from runtime.inbox import ask_statements, statements
from runtime.inbox.answer import Answer
from runtime.inbox.journal import InboxJournal
from runtime.inbox.rows import Ask, AskedFor, InboxRow, MessageState, NewRow, Taken
from runtime.inbox.writer import Step, Writer

reached: Counter[str] = Counter()


def done_before_the_append() -> None:
    """A message is done before its answer is in the transcript."""

    async def finish(self: InboxJournal, session: Session, record: Any, ids: Sequence[int], result: Any) -> None:
        reached["done_before_the_append"] += 1
        kept = Answer[int]()
        self._store.end(ids, MessageState.DONE, "", None, kept)
        await kept.wait()
        await session.append(record)

    InboxJournal.finish = finish  # type: ignore[method-assign]


def replay_out_of_order() -> None:
    """What an earlier process has left comes back with the newest first."""
    waiting = statements.waiting

    def newest_first(connection: sqlite3.Connection, lane: str | None, after: int, at_most: int) -> list[InboxRow]:
        reached["replay_out_of_order"] += 1
        return waiting(connection, lane, after, at_most)[::-1]

    statements.waiting = newest_first


def dedupe_not_unique() -> None:
    """The same message again is another message."""
    accept = statements.accept

    def accept_all(connection: sqlite3.Connection, new: NewRow, now: float, replayed: float) -> Taken:
        reached["dedupe_not_unique"] += new.dedupe is not None
        return accept(connection, replace(new, dedupe=None), now, replayed)

    statements.accept = accept_all


def repeat_without_leave() -> None:
    """What was begun when the process died is begun again, whatever its lane says."""

    def recover(connection: sqlite3.Connection, now: float, ids: Sequence[int] | None) -> tuple[int, int]:
        reached["repeat_without_leave"] += 1
        return connection.execute("UPDATE message SET state = 'accepted' WHERE state = 'started'").rowcount, 0

    statements.recover = recover


def answer_lost_at_expiry() -> None:
    """A question expires without a word to its session."""
    close = ask_statements.close

    def without_a_word(
        connection: sqlite3.Connection, how: AskedFor, new: NewRow, now: float, replayed: int
    ) -> Taken | Ask | None:
        if how.state != "expired":
            return close(connection, how, new, now, replayed)
        reached["answer_lost_at_expiry"] += 1
        connection.execute("UPDATE ask SET state = 'expired', ended_at = ? WHERE id = ?", (now, how.ask))
        return Taken(0, False, True, False, MessageState.DONE)

    ask_statements.close = without_a_word


def acknowledged_early() -> None:
    """A group of changes is reported before it is committed: with the next one."""

    def transaction(self: Writer, connection: sqlite3.Connection, steps: list[Step]) -> tuple[list[Any], int]:
        reached["acknowledged_early"] += 1
        if connection.in_transaction:
            connection.execute("COMMIT")
        connection.execute("BEGIN IMMEDIATE")
        return [step(connection) for step in steps], len(steps)

    Writer._transaction = transaction  # type: ignore[method-assign]


def begun_before_it_is_kept() -> None:
    """A body begins while it is being written that it does."""

    async def begin(self: InboxJournal, messages: Sequence[Message], path: str | None, fence: Fence) -> None:
        reached["begun_before_it_is_kept"] += 1
        self.was_read(messages)

    InboxJournal.begin = begin  # type: ignore[method-assign]


def second_try() -> None:
    """After a commit that failed, the next one is tried."""
    commit = Writer._commit

    def forgiving(self: Writer, *args: Any) -> tuple[list[Any], BaseException | None]:
        results, error = commit(self, *args)
        reached["second_try"] += error is not None
        self.failure = None
        return results, error

    Writer._commit = forgiving  # type: ignore[assignment, method-assign]


DEFECTS: dict[str, Callable[[], None]] = {
    defect.__name__: defect
    for defect in (
        done_before_the_append,
        replay_out_of_order,
        dedupe_not_unique,
        repeat_without_leave,
        answer_lost_at_expiry,
        acknowledged_early,
        begun_before_it_is_kept,
        second_try,
    )
}
