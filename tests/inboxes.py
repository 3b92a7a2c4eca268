"""Inboxes for tests: what their files have, and how a crash leaves them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from runtime import Supervisor
from runtime.inbox import sqlite
from runtime.inbox.service import InboxService
from runtime.testing.folders import copy_inbox
from runtime.testing.inline import Inline

FILE = Path(".lanes") / "inbox.db"


def service_of(sup: Supervisor) -> InboxService:
    """The inbox of a supervisor that has one."""
    assert sup._inbox is not None
    return sup._inbox


def writer_of(sup: Supervisor) -> Inline:
    """What commits for a supervisor."""
    store = service_of(sup).store
    assert isinstance(store, sqlite.SqliteInbox)
    assert isinstance(store._writer, Inline)
    return store._writer


def copy_of(root: Path, to: Path) -> Path:
    """The inbox as a process that is killed now leaves it, in another directory of sessions."""
    copy_inbox(root, to)
    return to


def rows(root: Path, what: str = "id, state", where: str = "1") -> list[tuple[Any, ...]]:
    """What the file has, seen by another process."""
    with closing(sqlite3.connect(root / FILE)) as connection:
        return connection.execute(f"SELECT {what} FROM message WHERE {where} ORDER BY id").fetchall()
