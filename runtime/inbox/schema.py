"""The file of the inbox: its tables, its version, and opening it.

`application_id` says that it is an inbox, `user_version` of which form. A file of a newer form is refused untouched.
"""

from __future__ import annotations

import os
import sqlite3

from locks.network import network_file_system
from locks.transcript.syncing import sync_directory

from .errors import InboxInvalid
from .settings import Durability

APPLICATION_ID = 0x6C616E65  # "lane"
VERSION = 1
_OLDEST = (3, 37)  # STRICT tables

_TABLES = """
CREATE TABLE message (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    lane TEXT NOT NULL,
    session TEXT,
    priority TEXT,
    timeout REAL,
    when_busy TEXT,
    body BLOB NOT NULL,
    route BLOB NOT NULL,
    dedupe TEXT,
    digest BLOB NOT NULL,
    repeat INTEGER NOT NULL,
    first INTEGER NOT NULL,
    again INTEGER,
    ask TEXT,
    state TEXT NOT NULL,
    attempt INTEGER NOT NULL DEFAULT 0,
    accepted_at REAL NOT NULL,
    started_at REAL,
    ended_at REAL,
    reason TEXT NOT NULL DEFAULT '',
    result BLOB,
    told INTEGER NOT NULL DEFAULT 0,
    asked TEXT
) STRICT;
CREATE UNIQUE INDEX message_dedupe ON message (lane, coalesce(session, ''), dedupe) WHERE dedupe IS NOT NULL;
CREATE INDEX message_accepted ON message (id) WHERE state = 'accepted';
CREATE INDEX message_accepted_of ON message (session, id) WHERE state = 'accepted';
CREATE INDEX message_accepted_on ON message (lane, id) WHERE state = 'accepted';
CREATE INDEX message_started ON message (id) WHERE state = 'started';
CREATE INDEX message_kept ON message (state, id) WHERE state IN ('waiting', 'parked', 'unknown');
CREATE INDEX message_ended ON message (ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX message_asked ON message (asked) WHERE asked IS NOT NULL;
CREATE TABLE ask (
    id TEXT PRIMARY KEY,
    key TEXT,
    lane TEXT NOT NULL,
    session TEXT,
    route BLOB NOT NULL,
    question BLOB NOT NULL,
    options BLOB,
    keep BLOB NOT NULL,
    asked_at REAL NOT NULL,
    expires_at REAL,
    state TEXT NOT NULL,
    value BLOB,
    by TEXT,
    ended_at REAL
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX ask_key ON ask (lane, coalesce(session, ''), key) WHERE key IS NOT NULL AND state = 'open';
CREATE INDEX ask_open ON ask (expires_at) WHERE state = 'open';
CREATE INDEX ask_ended ON ask (ended_at) WHERE ended_at IS NOT NULL;
CREATE TABLE schedule (
    name TEXT PRIMARY KEY,
    served REAL NOT NULL
) STRICT, WITHOUT ROWID;
"""


def connect(path: str, durability: Durability) -> sqlite3.Connection:
    """Open the inbox, make it if there is none, and see that it is one. In the thread that will use it.

    Raises:
        InboxInvalid: the file is damaged, is no inbox, or is of a newer version.
        OSError, sqlite3.Error: it cannot be opened.
    """
    if sqlite3.sqlite_version_info < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        raise _invalid(path, f"needs SQLite {oldest}, and this Python has {sqlite3.sqlite_version}")
    folder, is_new = os.path.dirname(path), not os.path.exists(path)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    if (kind := network_file_system(folder)) is not None:
        raise _invalid(path, f"is on {kind}, a network file system, where SQLite cannot lock it")
    connection = sqlite3.connect(path, isolation_level=None, timeout=5.0)
    try:
        if _is_empty(connection):
            statements = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {VERSION};"
            connection.executescript(f"BEGIN IMMEDIATE; {_TABLES} {statements} COMMIT;")
        check(connection, path)  # before anything of it is changed
        os.chmod(path, 0o600)
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise _invalid(path, f"is where SQLite cannot keep a write-ahead log (its mode there is {mode!r})")
        connection.execute(f"PRAGMA synchronous = {'FULL' if durability == 'sync' else 'NORMAL'}")
        if is_new and durability == "sync":  # SQLite syncs the folder of its file, and not the name of the folder
            sync_directory(path)
            sync_directory(folder)
    except sqlite3.DatabaseError as error:
        connection.close()
        if type(error) is sqlite3.DatabaseError:  # "malformed", "not a database"; its subclasses say that a call failed
            raise _invalid(path, f"is damaged, or no SQLite file ({error})") from error
        raise
    except BaseException:
        connection.close()
        raise
    return connection


def check(connection: sqlite3.Connection, path: str) -> None:
    """See that a database is an inbox of this version.

    Raises:
        InboxInvalid: it is not.
    """
    version = _pragma(connection, "user_version")
    if _pragma(connection, "application_id") != APPLICATION_ID:
        raise _invalid(path, "is a database of another program")
    if version != VERSION:
        raise _invalid(path, f"has form {version}; this version knows form {VERSION}")


def _is_empty(connection: sqlite3.Connection) -> bool:
    return not (
        connection.execute("SELECT EXISTS (SELECT 1 FROM sqlite_schema)").fetchone()[0]
        or _pragma(connection, "application_id")
        or _pragma(connection, "user_version")
    )


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    value: int = connection.execute(f"PRAGMA {name}").fetchone()[0]
    return value


def _invalid(path: str, why: str) -> InboxInvalid:
    return InboxInvalid(
        f"inbox: {path} {why}; nothing was changed; allowed: an inbox of this version, or to move the file aside",
        path=path,
    )
