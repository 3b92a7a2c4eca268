"""`lanes inbox`, `lanes asks` and `lanes answer`: the durable inbox of a directory of sessions, served or not."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import msgspec

from lanes import Question
from locks import process

from ..inbox import by_hand, statements
from ..inbox.errors import AskClosed, InboxInvalid
from ..inbox.rows import InboxRow, MessageState, decoded
from ..trial.output import Output, complain
from ..usage_error import UsageError, one_line
from .remote import lasting, printable

_DAY_S = 86_400.0
_AT_ONCE = 1_000


def show_list(
    directory: str, *, states: Sequence[str], lane: str | None, session: str | None, limit: int, as_json: bool
) -> int:
    """Print messages, the newest first; returns the exit code."""
    output = Output(json=as_json)
    with _inbox(directory) as connection:
        chosen = [MessageState(state) for state in states]
        rows = by_hand.listed(connection, states=chosen, lane=lane, session=session, at_most=limit)
        counts = by_hand.all_counts(connection)
    if as_json:
        output.result(json.dumps({"counts": counts, "messages": [as_json_of(row) for row in rows]}))
        return 0
    for row in rows:
        output.line(as_line_of(row))
    total = ", ".join(f"{count:,} {state}" for state, count in counts.items()) or "nothing"
    output.line(f"{directory}: {total}")
    return 0


def show(directory: str, message: int) -> int:
    """Print all that is kept of a message; returns the exit code."""
    output = Output(json=False)
    with _inbox(directory) as connection:
        row = statements.one(connection, message)
    if row is None:
        return say_no(f"message {message} is not kept in {directory}")
    for name, value in as_json_of(row).items():
        if value is not None and value != "":
            output.line(f"{name:12} {printable(value if isinstance(value, str) else json.dumps(value))}")
    return 0


def requeue(directory: str, messages: Sequence[int]) -> int:
    """Have messages wait again; returns the exit code."""
    return _change(directory, messages, by_hand.requeue, "waits again", "parked, dropped or unknown")


def discard(directory: str, messages: Sequence[int]) -> int:
    """Have messages wait for nothing any more; returns the exit code."""
    return _change(directory, messages, by_hand.discard, "is discarded", "parked, unknown or waiting")


def purge(directory: str, days: float) -> int:
    """Forget messages that ended long ago; returns the exit code.

    Raises:
        UsageError: `days` is no duration.
    """
    if not 0 <= days < float("inf"):
        raise UsageError(f"--older-than: {days!r} is not allowed; allowed: days, from 0")
    before, gone = process.wall() - days * _DAY_S, 0
    while True:
        with _inbox(directory, changing=True) as connection:
            now = statements.purge(connection, before, _AT_ONCE)
        gone += now
        if now < _AT_ONCE:
            Output(json=False).line(f"{gone:,} forgotten")
            return 0


def show_asks(directory: str, *, limit: int, as_json: bool) -> int:
    """Print the questions that wait for an answer, the oldest first; returns the exit code."""
    with _inbox(directory) as connection:
        questions = by_hand.open_questions(connection, limit)
    if as_json:
        Output(json=True).result(json.dumps([msgspec.to_builtins(one) for one in questions]))
        return 0
    return print_questions(questions, directory)


def print_questions(questions: Sequence[Question], where_kept: str) -> int:
    """Print questions; returns the exit code."""
    output = Output(json=False)
    now = process.wall()
    for one in questions:
        options = "" if one.options is None else f" [{', '.join(json.dumps(option) for option in one.options)}]"
        expires = "" if one.expires_at is None else f", expires in {lasting(max(0.0, one.expires_at - now))}"
        where = one.lane if one.session is None else f"{one.lane}, session {one.session}"
        asked = f"asked {lasting(max(0.0, now - one.asked_at))} ago{expires}"
        output.line(printable(f"{one.id}  {where}: {json.dumps(one.question)}{options}, {asked}"))
    output.line(printable(f"{where_kept}: {len(questions)} open"))
    return 0


def answer(directory: str, ask_id: str, value: str, *, by: str, as_json: bool) -> int:
    """Answer a question; returns the exit code.

    Args:
        as_json: whether `value` is JSON, and not a text.

    Raises:
        UsageError: the value is no JSON, or not one of the options.
    """
    given = value_of(value, as_json=as_json)
    with _inbox(directory, changing=True) as connection:
        try:
            message = by_hand.answer(connection, ask_id, given, by)
        except AskClosed as error:
            return say_no(str(error))
        except ValueError as error:
            raise no_answer(value, ask_id, error) from None
    Output(json=False).line(f"answered: message {message}")
    return 0


def value_of(text: str, *, as_json: bool) -> Any:
    """What is answered.

    Raises:
        UsageError: it is no JSON.
    """
    try:
        return json.loads(text) if as_json else text
    except ValueError as error:
        raise UsageError(f"VALUE: {text!r} is no JSON ({error}); allowed: JSON, or text without --json") from None


def no_answer(text: str, ask_id: str, allowed: ValueError) -> UsageError:
    """The refusal of a value that is not one of a question's options."""
    return UsageError(f"VALUE: {text!r} is no answer to question {ask_id}; allowed: {allowed}")


@contextmanager
def _inbox(directory: str, *, changing: bool = False) -> Iterator[sqlite3.Connection]:
    try:
        with by_hand.opened(directory, changing=changing) as connection:
            yield connection
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        if isinstance(error, (UsageError, UnicodeError)):
            raise
        raise UsageError(f"DIR: {directory!r} has no inbox; allowed: a directory of sessions with one") from None
    except InboxInvalid as error:
        raise UsageError(str(error)) from None
    except sqlite3.Error as error:
        raise UsageError(f"DIR: the inbox of {directory!r} cannot be used now: {error}") from None


def _change(directory: str, messages: Sequence[int], change: Any, done: str, allowed: str) -> int:
    output, code = Output(json=False), 0
    with _inbox(directory, changing=True) as connection:
        for message in messages:
            row = statements.one(connection, message)
            if row is None:
                code = say_no(f"message {message} is not kept in {directory}")
            elif change(connection, message):
                output.line(f"message {message}, which was {row.state}, {done}")
            else:
                code = say_no(f"message {message} is {row.state}; allowed: one that is {allowed}")
    return code


def say_no(why: str) -> int:
    complain(one_line(why))
    return 1


def as_json_of(row: InboxRow) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": row.id,
        "state": str(row.state),
        "lane": row.lane,
        "session": row.session,
        "body": decoded(row.body),
        "route": decoded(row.route),
        "dedupe": row.dedupe,
        "attempt": row.attempt,
        "accepted_at": _instant(row.accepted_at),
        "started_at": _instant(row.started_at),
        "ended_at": _instant(row.ended_at),
        "reason": row.reason,
        "answers": row.ask,
        "result": None if row.result is None else decoded(row.result),
    }
    return found


def as_line_of(row: InboxRow) -> str:
    age = lasting(max(0.0, process.wall() - row.accepted_at))
    where = row.lane if row.session is None or row.lane.endswith(row.session) else f"{row.lane}, session {row.session}"
    why = f": {row.reason}" if row.reason else ""
    attempts = f", attempt {row.attempt}" if row.attempt > 1 else ""
    return printable(f"{row.id:>8}  {row.state:10} {where}, accepted {age} ago{attempts}{why}")


def _instant(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(" ", "milliseconds")
