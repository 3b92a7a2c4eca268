"""The inbox and the sessions as they stand on disk: read with `sqlite3` and `json`, by code that shares nothing with
what wrote them."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

_MESSAGES = (
    "SELECT id, lane, session, state, repeat, dedupe, ask, body, accepted_at, started_at FROM message ORDER BY id"
)
_OPEN = """
SELECT count(*) FROM message WHERE state IN ('accepted', 'started', 'waiting') OR (state = 'unknown' AND NOT told)
"""


class Row(NamedTuple):
    """A message."""

    id: int
    lane: str
    session: str | None
    state: str
    repeat: int
    dedupe: str | None
    ask: str | None
    """The question that it answers."""
    body: bytes
    accepted_at: float
    started_at: float | None

    @property
    def name(self) -> str | None:
        """The name of the message that its sender has given, or of the one that was asked about."""
        body = json.loads(self.body)
        return (body["keep"] if self.ask is not None else body)["name"]  # type: ignore[no-any-return]  # JSON


class Question(NamedTuple):
    """A question."""

    id: str
    state: str
    value: str | None
    name: str
    """Of the message that it is about."""


@dataclass(frozen=True, slots=True)
class Disk:
    """What the disk says."""

    rows: dict[int, Row]
    questions: dict[str, Question]
    sessions: list[list[dict[str, Any]]]
    """The records of each session, in order."""


def path_in(root: str) -> Path:
    """Where the inbox of a sessions directory is."""
    return Path(root) / ".lanes" / "inbox.db"


def read(root: str) -> Disk:
    """Read all of it.

    Raises:
        OSError, sqlite3.Error: it cannot be read.
    """
    with closing(_opened(root)) as connection:
        rows = {row[0]: Row(*row) for row in connection.execute(_MESSAGES)}
        found = connection.execute("SELECT id, state, value, keep FROM ask").fetchall()
    questions = {
        key: Question(key, state, None if value is None else json.loads(value), json.loads(keep)["name"])
        for key, state, value, keep in found
    }
    return Disk(rows, questions, [_records(path) for path in sorted(Path(root).rglob("*.jsonl"))])


def open_work(root: str) -> int:
    """How many messages and questions something will still become of.

    Raises:
        OSError, sqlite3.Error: it cannot be read.
    """
    with closing(_opened(root)) as connection:
        (messages,) = connection.execute(_OPEN).fetchone()
        (questions,) = connection.execute("SELECT count(*) FROM ask WHERE state = 'open'").fetchone()
    return int(messages + questions)


def _opened(root: str) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(path_in(root)))}?mode=ro", uri=True, isolation_level=None)


def _records(path: Path) -> list[dict[str, Any]]:
    """The whole records of a session; what is broken is for `verdict.examine` to say."""
    found = []
    with path.open("rb") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                found.append(record)
    return found
