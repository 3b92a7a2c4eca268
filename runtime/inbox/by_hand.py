"""The inbox in the hands of an operator: looked at and changed by another process than the one that serves it.

SQLite keeps the two apart. The serving process notices within a second that the file has changed, and takes up what is
there; where none serves, the next one does.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lanes import Question
from locks import process

from . import ask_statements, schema, statements
from .asks import answered_by_hand
from .door import ALL_REPLAYED
from .errors import InboxInvalid
from .rows import InboxRow, MessageState, Taken, question_of
from .settings import FOLDER, NAME

_BUSY_S = 5.0


@contextmanager
def opened(directory: str, *, changing: bool) -> Iterator[sqlite3.Connection]:
    """The inbox of a directory of sessions, in one transaction.

    Raises:
        FileNotFoundError: there is none.
        InboxInvalid: it cannot be used.
        sqlite3.Error: it cannot be read or written now.
    """
    path = os.path.join(directory, FOLDER, NAME)
    os.stat(path)
    connection = sqlite3.connect(path, isolation_level=None, timeout=_BUSY_S)
    try:
        connection.execute("BEGIN IMMEDIATE" if changing else "BEGIN")
        schema.check(connection, path)
        yield connection
        connection.execute("COMMIT")
    except sqlite3.DatabaseError as error:
        if type(error) is sqlite3.DatabaseError:
            raise InboxInvalid(f"inbox: {path} is damaged, or no SQLite file ({error})", path=path) from error
        raise
    finally:
        connection.close()


def listed(
    connection: sqlite3.Connection,
    *,
    states: Sequence[MessageState],
    lane: str | None,
    session: str | None,
    at_most: int,
) -> list[InboxRow]:
    """Messages, the newest first."""
    marks = ", ".join("?" * len(states))
    where = (
        f"(NOT ? OR state IN ({marks})) AND (? IS NULL OR lane = ?) AND (? IS NULL OR session = ?) "
        "ORDER BY id DESC LIMIT ?"
    )
    return statements.rows(connection, where, (bool(states), *states, lane, lane, session, session, at_most))


def all_counts(connection: sqlite3.Connection) -> dict[str, int]:
    """How many messages are in each state."""
    return dict(connection.execute("SELECT state, count(*) FROM message GROUP BY state ORDER BY state").fetchall())


def requeue(connection: sqlite3.Connection, message: int) -> bool:
    """Have a message that was parked, dropped or left unknown wait again; returns whether it does."""
    return statements.requeue(connection, message, process.wall())


def discard(connection: sqlite3.Connection, message: int) -> bool:
    """Have a message that waits for an operator wait no longer; returns whether it did."""
    found = statements.one(connection, message)
    if found is None or found.state not in (MessageState.PARKED, MessageState.UNKNOWN, MessageState.WAITING):
        return False
    ended = statements.end(connection, [message], MessageState.CANCELLED, process.wall(), "discarded by an operator")
    return bool(ended)


def open_questions(connection: sqlite3.Connection, at_most: int) -> list[Question]:
    """The questions that wait for an answer, the oldest first."""
    return [question_of(ask) for ask in ask_statements.open_ones(connection, None, None, at_most)]


def answer(connection: sqlite3.Connection, ask_id: str, value: Any, by: str) -> int:
    """Answer a question; returns the id of the message that brings the answer.

    Raises:
        AskClosed: it is not open.
        ValueError: the value is not one of its options.
    """
    ask = ask_statements.one(connection, ask_id)
    (repeat,) = connection.execute("SELECT max(repeat) FROM message WHERE asked = ?", (ask_id,)).fetchone()
    how, new = answered_by_hand(ask_id, ask, value, by, repeat or 0)
    taken = ask_statements.close(connection, how, new, process.wall(), ALL_REPLAYED)
    assert isinstance(taken, Taken)
    return taken.id


def faults(connection: sqlite3.Connection) -> list[str]:
    """What is wrong with the file, in words; empty for nothing."""
    found = [str(row[0]) for row in connection.execute("PRAGMA quick_check(10)")]
    return [] if found == ["ok"] else found
