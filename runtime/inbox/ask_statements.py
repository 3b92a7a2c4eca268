"""The steps of the inbox that concern questions to persons; see `statements`."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

from .rows import Ask, AskedFor, MessageState, NewRow, Taken
from .statements import accept, end

_COLUMNS = "id, key, lane, session, route, question, options, keep, asked_at, expires_at, state, value, by"


def ask(connection: sqlite3.Connection, new: Ask) -> Ask:
    """Keep a question, unless one of its key is open; returns the one that is open then."""
    connection.execute(
        f"INSERT INTO ask ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'open', NULL, NULL) "
        "ON CONFLICT DO NOTHING",
        (
            new.id,
            new.key,
            new.lane,
            new.session,
            new.route,
            new.question,
            new.options,
            new.keep,
            new.asked_at,
            new.expires_at,
        ),
    )
    if (kept := one(connection, new.id)) is not None:
        return kept
    where = "lane = ? AND coalesce(session, '') = ? AND key = ? AND state = 'open'"
    return _asks(connection, where, (new.lane, new.session or "", new.key))[0]


def close(connection: sqlite3.Connection, how: AskedFor, new: NewRow, now: float, replayed: int) -> Taken | Ask | None:
    """Close a question, keep the message that says so, and end those that wait for it; if it is not open, return it."""
    closed = connection.execute(
        "UPDATE ask SET state = ?, value = ?, by = ?, ended_at = ? WHERE id = ? AND state = 'open'",
        (how.state, how.value, how.by, now, how.ask),
    ).rowcount
    if not closed:
        return one(connection, how.ask)
    taken = accept(connection, new, now, replayed)
    connection.execute(
        "UPDATE message SET state = 'done', ended_at = ?, reason = ? WHERE asked = ? AND state = 'waiting'",
        (now, f"{how.state} by message {taken.id}", how.ask),
    )
    return taken


def wait_for(connection: sqlite3.Connection, ids: Sequence[int], asked: str, now: float) -> int:
    """Note that messages wait for the answer to a question; or are done, where it is closed already."""
    connection.executemany("UPDATE message SET asked = ? WHERE id = ?", [(asked, message) for message in ids])
    stands = one(connection, asked)
    if stands is None or stands.state != "open":
        stands_as = "answered" if stands is None else stands.state
        return end(connection, ids, MessageState.DONE, now, f"asked, and {stands_as} meanwhile")
    return end(connection, ids, MessageState.WAITING, now, f"asked a person: {asked}")


def withdraw(connection: sqlite3.Connection, session: str, now: float, reason: str) -> None:
    """Withdraw the open questions of a session, and end those that wait for them."""
    connection.execute(
        "UPDATE message SET state = 'cancelled', ended_at = ?, reason = ? WHERE state = 'waiting' "
        "AND asked IN (SELECT id FROM ask WHERE session = ? AND state = 'open')",
        (now, reason, session),
    )
    connection.execute(
        "UPDATE ask SET state = 'withdrawn', ended_at = ? WHERE session = ? AND state = 'open'", (now, session)
    )


def one(connection: sqlite3.Connection, asked: str) -> Ask | None:
    """A question."""
    found = _asks(connection, "id = ?", (asked,))
    return found[0] if found else None


def open_ones(connection: sqlite3.Connection, lane: str | None, session: str | None, at_most: int) -> list[Ask]:
    """The questions that are open, of a lane, of a session or all, the oldest first."""
    where = "state = 'open' AND (?1 IS NULL OR lane = ?1) AND (?2 IS NULL OR session = ?2) ORDER BY asked_at LIMIT ?3"
    return _asks(connection, where, (lane, session, at_most))


def due(connection: sqlite3.Connection, now: float, at_most: int) -> list[Ask]:
    """The open questions that have expired by an instant."""
    return _asks(connection, "state = 'open' AND expires_at <= ? ORDER BY expires_at LIMIT ?", (now, at_most))


def next_expiry(connection: sqlite3.Connection) -> float | None:
    """When the next open question expires."""
    at: float | None = connection.execute("SELECT min(expires_at) FROM ask WHERE state = 'open'").fetchone()[0]
    return at


def _asks(connection: sqlite3.Connection, where: str, values: Iterable[Any]) -> list[Ask]:
    names = _COLUMNS.split(", ")
    found = connection.execute(f"SELECT {_COLUMNS} FROM ask WHERE {where}", tuple(values))
    return [Ask(**dict(zip(names, row, strict=True))) for row in found]
