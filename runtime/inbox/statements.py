"""The steps of the inbox: functions of a connection, done whole or not at all by the writer's transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

from .rows import MAY_BECOME, Census, InboxRow, MessageState, NewRow, Taken

_INSERT = """
INSERT INTO message (lane, session, priority, timeout, when_busy, body, route, dedupe, digest, repeat, first, again,
    ask, state, attempt, accepted_at, started_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO NOTHING RETURNING id
"""
_BEHIND = """
SELECT 1 FROM message WHERE state = 'accepted' AND session = ? AND id > ? AND id < ? LIMIT 1
"""
_BEHIND_ON_LANE = """
SELECT 1 FROM message WHERE state = 'accepted' AND lane = ? AND session IS NULL AND id > ? AND id < ? LIMIT 1
"""
_SAID = "SELECT id, digest, state FROM message WHERE lane = ? AND coalesce(session, '') = ? AND dedupe = ?"
_COLUMNS = (
    "id, lane, session, priority, timeout, when_busy, body, route, dedupe, repeat, first, ask, state, attempt, "
    "accepted_at, started_at, ended_at, reason, result, asked"
)


def accept(connection: sqlite3.Connection, new: NewRow, now: float, replayed: float) -> Taken:
    """Keep a message, unless its key is known.

    Args:
        replayed: the id up to which what was on disk before has been brought into memory.
    """
    state = MessageState.STARTED if new.started else MessageState.ACCEPTED
    found = connection.execute(
        _INSERT,
        (
            new.lane,
            new.session,
            new.priority,
            new.timeout,
            new.when_busy,
            new.body,
            new.route,
            new.dedupe,
            new.digest,
            new.repeat,
            new.first,
            new.again,
            new.ask,
            state,
            int(new.started),
            now,
            now if new.started else None,
        ),
    ).fetchone()
    if found is None:
        known, digest, stands = connection.execute(_SAID, (new.lane, new.session or "", new.dedupe)).fetchone()
        return Taken(known, False, digest == new.digest, False, MessageState(stands))
    (taken,) = found
    return Taken(taken, True, True, _is_behind(connection, new, replayed, taken), state)


def _is_behind(connection: sqlite3.Connection, new: NewRow, replayed: float, message: int) -> bool:
    """Whether older messages of its session are on disk only."""
    if replayed >= message - 1:
        return False  # all that was there before is in memory: no id fits in between, and it need not be asked
    before = _BEHIND_ON_LANE if new.session is None else _BEHIND  # a session has one order, over all lanes
    which = new.lane if new.session is None else new.session
    return connection.execute(before, (which, replayed, message)).fetchone() is not None


def said(
    connection: sqlite3.Connection, lane: str, session: str | None, key: str, digest: bytes
) -> tuple[int, bool] | None:
    """The id of the message that is kept under a key, and whether its body has that digest."""
    found = connection.execute(_SAID, (lane, session or "", key)).fetchone()
    return None if found is None else (int(found[0]), found[1] == digest)


def begin(connection: sqlite3.Connection, ids: Sequence[int], now: float) -> int:
    """Note that a body is given messages; returns how many are in that state now."""
    return _many(
        connection,
        "UPDATE message SET state = 'started', attempt = attempt + 1, started_at = ?, "
        "ended_at = NULL, reason = '' WHERE id = ? AND state IN ('accepted', 'started', 'parked')",
        [(now, one) for one in ids],
    )


def take_back(connection: sqlite3.Connection, ids: Sequence[int]) -> int:
    """Note that no body was given messages that were expected to start at once."""
    return _many(
        connection,
        "UPDATE message SET state = 'accepted', attempt = attempt - 1, started_at = NULL "
        "WHERE id = ? AND state = 'started'",
        [(one,) for one in ids],
    )


def end(
    connection: sqlite3.Connection,
    ids: Sequence[int],
    state: MessageState,
    now: float,
    reason: str = "",
    result: bytes | None = None,
) -> int:
    """Note how messages have ended, but for those that have ended before; returns how many it noted."""
    before = MAY_BECOME[state]
    marks = ", ".join("?" * len(before))
    return _many(
        connection,
        f"UPDATE message SET state = ?, ended_at = ?, reason = ?, result = ? WHERE id = ? AND state IN ({marks})",
        [(state, now, reason, result, one, *before) for one in ids],
    )


def cancel_waiting(
    connection: sqlite3.Connection,
    which: tuple[str | None, str | None, int | None, int | None],
    now: float,
    reason: str,
) -> list[int]:
    """Note that messages that wait are cancelled; returns their ids.

    Args:
        which: of that lane, of that session, with that id, up to that id; `None` says nothing.
    """
    found = connection.execute(
        "UPDATE message SET state = 'cancelled', ended_at = ?1, reason = ?2 WHERE state = 'accepted' "
        "AND (?3 IS NULL OR lane = ?3) AND (?4 IS NULL OR session = ?4) AND (?5 IS NULL OR id = ?5) "
        "AND (?6 IS NULL OR id <= ?6) RETURNING id",
        (now, reason, *which),
    )
    return [message for (message,) in found]


def requeue(connection: sqlite3.Connection, message: int, now: float) -> bool:
    """Have a message that was parked, dropped or left unknown wait again; returns whether it does.

    It is as one that is accepted now: its time in the queue begins, and its lane is told if it ends unknown again.
    """
    return bool(
        connection.execute(
            "UPDATE message SET state = 'accepted', attempt = 0, accepted_at = ?, ended_at = NULL, reason = '', "
            "started_at = NULL WHERE id = ? AND state IN ('parked', 'dropped', 'unknown')",
            (now, message),
        ).rowcount
    )


def refuse(connection: sqlite3.Connection, message: int, now: float, reason: str) -> None:
    """Note that a message found no room when it was kept: its sender is told so, and may send it again by its key."""
    end(connection, [message], MessageState.DROPPED, now, reason)
    connection.execute("UPDATE message SET dedupe = NULL WHERE id = ? AND state = 'dropped'", (message,))


def told(connection: sqlite3.Connection, ids: Sequence[int]) -> None:
    """Note that a lane was told of messages whose end is unknown."""
    _many(connection, "UPDATE message SET told = 1 WHERE id = ?", [(one,) for one in ids])


def wait_again(connection: sqlite3.Connection, ids: Sequence[int]) -> None:
    """Note that messages wait for another attempt."""
    _many(
        connection,
        "UPDATE message SET state = 'accepted', started_at = NULL WHERE id = ? AND state = 'started'",
        [(one,) for one in ids],
    )


def recover(connection: sqlite3.Connection, now: float, ids: Sequence[int] | None) -> tuple[int, int]:
    """Put right what was started and cut off: accepted again where it may be repeated, unknown otherwise.

    Returns:
        How many are accepted again, and how many are unknown.
    """
    which = "" if ids is None else " AND id = ?"
    values: list[tuple[Any, ...]] = [()] if ids is None else [(one,) for one in ids]
    again = _many(
        connection,
        f"UPDATE message SET state = 'accepted', started_at = NULL WHERE state = 'started' AND attempt < repeat{which}",
        values,
    )
    unknown = _many(
        connection,
        "UPDATE message SET state = 'unknown', ended_at = ?, told = 0, "
        "reason = 'the process ended while it was being answered' "
        f"WHERE state = 'started'{which}",
        [(now, *one) for one in values],
    )
    return again, unknown


def waiting(connection: sqlite3.Connection, lane: str | None, after: int, at_most: int) -> list[InboxRow]:
    """A page of the messages that wait, of one lane or of all, by id."""
    if lane is None:
        return rows(connection, "state = 'accepted' AND id > ? ORDER BY id LIMIT ?", (after, at_most))
    return rows(connection, "state = 'accepted' AND lane = ? AND id > ? ORDER BY id LIMIT ?", (lane, after, at_most))


def accepted_among(connection: sqlite3.Connection, ids: Sequence[int]) -> list[InboxRow]:
    """Those of some messages that wait, by id."""
    return [row for message in sorted(ids) for row in rows(connection, "id = ? AND state = 'accepted'", (message,))]


def rows(connection: sqlite3.Connection, where: str, values: Iterable[Any]) -> list[InboxRow]:
    """Messages by a condition of ours."""
    return [_row(one) for one in connection.execute(f"SELECT {_COLUMNS} FROM message WHERE {where}", tuple(values))]


def one(connection: sqlite3.Connection, message: int) -> InboxRow | None:
    """A message."""
    found = rows(connection, "id = ?", (message,))
    return found[0] if found else None


def purge(connection: sqlite3.Connection, before: float, at_most: int) -> int:
    """Forget messages and questions that ended before an instant, up to a number; returns how many.

    What is parked or unknown stays: it waits for a person.
    """
    gone = connection.execute(
        "DELETE FROM message WHERE id IN (SELECT id FROM message WHERE ended_at IS NOT NULL AND ended_at < ? "
        "AND state NOT IN ('parked', 'unknown', 'waiting') ORDER BY ended_at LIMIT ?)",
        (before, at_most),
    ).rowcount
    gone += connection.execute(
        "DELETE FROM ask WHERE id IN (SELECT id FROM ask WHERE ended_at IS NOT NULL AND ended_at < ? "
        "ORDER BY ended_at LIMIT ?)",
        (before, at_most),
    ).rowcount
    return gone


def census(connection: sqlite3.Connection) -> Census:
    """Count what still asks for something. Each part is read from an index of such rows alone."""
    found = connection.execute(
        "SELECT 'accepted', count(*) FROM message WHERE state = 'accepted' UNION ALL "
        "SELECT 'started', count(*) FROM message WHERE state = 'started' UNION ALL "
        "SELECT state, count(*) FROM message WHERE state IN ('waiting', 'parked', 'unknown') GROUP BY state"
    )
    oldest = "SELECT accepted_at FROM message WHERE state = 'accepted' ORDER BY id LIMIT 1"
    return Census(
        messages={MessageState(state): count for state, count in found},
        questions=connection.execute("SELECT count(*) FROM ask WHERE state = 'open'").fetchone()[0],
        oldest_accepted_at=(connection.execute(oldest).fetchone() or (None,))[0],
    )


def _many(connection: sqlite3.Connection, statement: str, values: Sequence[tuple[Any, ...]]) -> int:
    if len(values) == 1:
        return connection.execute(statement, values[0]).rowcount
    return connection.executemany(statement, values).rowcount


def _row(found: tuple[Any, ...]) -> InboxRow:
    (*head, repeat, first, ask, state, attempt, accepted, started, ended, reason, result, asked) = found
    message, lane, session, priority, timeout, when_busy, body, route, dedupe = head
    return InboxRow(
        id=message,
        lane=lane,
        session=session,
        priority=priority,
        timeout=timeout,
        when_busy=when_busy,
        body=body,
        route=route,
        dedupe=dedupe,
        repeat=repeat,
        first=bool(first),
        ask=ask,
        state=MessageState(state),
        attempt=attempt,
        accepted_at=accepted,
        started_at=started,
        ended_at=ended,
        reason=reason,
        result=result,
        asked=asked,
    )


def last_id(connection: sqlite3.Connection) -> int:
    """The id of the newest message there ever was; 0 for none."""
    found = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'message'").fetchone()
    return int(found[0]) if found is not None else 0


def serve(connection: sqlite3.Connection, schedule: str, instant: float) -> None:
    """Note that a schedule is served up to an instant."""
    connection.execute(
        "INSERT INTO schedule (name, served) VALUES (?, ?) "
        "ON CONFLICT DO UPDATE SET served = max(served, excluded.served)",
        (schedule, instant),
    )


def served(connection: sqlite3.Connection, schedule: str) -> float | None:
    """Up to which instant a schedule is served."""
    found = connection.execute("SELECT served FROM schedule WHERE name = ?", (schedule,)).fetchone()
    return None if found is None else float(found[0])


def changes(connection: sqlite3.Connection) -> int:
    """A number that changes when another process commits."""
    return int(connection.execute("PRAGMA data_version").fetchone()[0])
