"""A statement on its way to the database, and what is made of its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import psycopg

Decode = Callable[[list[tuple[Any, ...]]], Any]
Rows = list[tuple[Any, ...]]


class Step(NamedTuple):
    """One statement, and what to make of its rows."""

    statement: str
    values: Sequence[Any]
    decode: Decode
    place: str = ""
    """The session that it concerns, which is there, or is made by it. A transaction makes and locks the rows of all
    that its steps concern first, in one order: the transactions of two nodes never wait for each other in a ring."""
    places: Sequence[str] = ()
    """Further ones, that are not made."""
    ids: Sequence[int] = ()
    """Messages whose sessions it concerns."""
    alone: bool = False
    """Whether it has a transaction of its own: done again after a lost answer, it would undo what comes behind it."""
    names: Sequence[str] = ()
    """What its values are called, for errors."""
    asked_for: bool = False
    """Whether a sender waits for it, who can ask again: it is refused while the server is full, and others wait."""


async def fetched(cursor: psycopg.AsyncCursor[tuple[Any, ...]]) -> Rows:
    """The rows of a statement; none where it is an update that returns none, whose result cannot be fetched."""
    return await cursor.fetchall() if cursor.description is not None else []


def decoded(step: Step, rows: Rows) -> Any:
    """What a step reports: of rows that it does not understand, the error, since they are committed."""
    try:
        return step.decode(rows)
    except Exception as error:
        return error
