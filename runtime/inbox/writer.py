"""One thread owns the connection: it commits whatever has come meanwhile as one transaction, then reports.

With one sender each commit carries one message; with many, the disk's sync is shared (group commit). Steps are done in
the order in which they came, and their reports reach the event loop in that order, in one call per commit.

A step with a value that SQLite cannot have fails alone: the transaction is rolled back, and done without that step.
An error of the disk or of SQLite ends the writer: its transaction is rolled back, all steps that wait get `InboxDown`,
and so does each later one. No step is tried again on that connection: after a failed sync nothing is known of what the
disk has (https://www.sqlite.org/howtocorrupt.html, https://lwn.net/Articles/752063/).
"""

from __future__ import annotations

import queue
import sqlite3
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from locks._events import described, log
from locks._loop import Post

from .errors import InboxDown
from .reports import report_each
from .store import Report

MOST_IN_A_COMMIT = 1_000
_UNFIT = (UnicodeError, OverflowError, sqlite3.DataError, sqlite3.InterfaceError, sqlite3.ProgrammingError)
"""A value cannot be bound to a statement. The fault is that of the step's caller, and nothing was written."""
Step = Callable[[sqlite3.Connection], Any]


class _Unfit(NamedTuple):
    """In the place of a result: the step could not be done, and changed nothing."""

    error: BaseException


class Writer:
    """The thread that writes. `do` may be called from the event loop's thread; reports come there too.

    Args:
        connect: opens the connection, in the thread; what it raises, `start` raises.
        post: how the thread reaches the event loop.
    """

    def __init__(self, path: str, connect: Callable[[], sqlite3.Connection], post: Post) -> None:
        self._path, self._connect, self._post = path, connect, post
        self._steps: queue.SimpleQueue[tuple[Step, Report] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"inbox {path}", daemon=True)
        self.failure: BaseException | None = None
        """Why nothing is written any more."""
        self._ending = False
        """Whether it was told to end: it waits for no other process any more."""
        self._ended: Report | None = None
        self.commits = 0
        """Commits that have changed something; like the next one, counted by the thread."""
        self.changes = 0
        """Steps that have."""
        self.waiting = 0
        """Steps that were handed over and not reported yet; on the event loop's thread."""

    def start(self, ready: Report) -> None:
        """Open the connection in the thread; `ready` is called on the loop when that has worked or failed."""
        self._ready = ready
        self._thread.start()

    def do(self, step: Step, report: Report) -> None:
        """Have a step done and committed. Never blocks; after the writer's end it is reported as down at once."""
        self.waiting += 1
        self._steps.put((step, report))

    def stop(self, ended: Report | None = None) -> None:
        """Do what was handed over, close, and end.

        Args:
            ended: called on the loop when it is closed. No thread joins this one: the interpreter would wait for that
                other thread, and for ever where the event loop was interrupted before it could end it.
        """
        self._ending = True
        self._ended = ended
        self._steps.put(None)

    # The thread

    def _run(self) -> None:
        try:
            connection = self._connect()
        except BaseException as error:
            failed = error
            self._post(lambda: self._ready(None, failed))
            return
        self._post(lambda: self._ready(None, None))
        try:
            while self._serve(connection):
                pass
        finally:
            try:
                _close(connection, self._path, failed=self.failure is not None)
            finally:
                if (ended := self._ended) is not None:
                    self._post(lambda: ended(None, None))

    def _serve(self, connection: sqlite3.Connection) -> bool:
        """Commit one batch; `False` when the writer is to end."""
        batch, last = self._batch()
        if batch:
            results, error = self._commit(connection, batch) if self.failure is None else ([], self._down())
            self._report(batch, results, error)
        return not last

    def _batch(self) -> tuple[list[tuple[Step, Report]], bool]:
        batch: list[tuple[Step, Report]] = []
        one = self._steps.get()
        while one is not None:
            batch.append(one)
            if len(batch) >= MOST_IN_A_COMMIT:
                return batch, False
            try:
                one = self._steps.get_nowait()
            except queue.Empty:
                return batch, False
        return batch, True

    def _commit(
        self, connection: sqlite3.Connection, batch: list[tuple[Step, Report]]
    ) -> tuple[list[Any], BaseException | None]:
        try:
            results, changes = self._transaction(connection, [step for step, _ in batch])
        except BaseException as error:
            self.failure = error
            log("inbox_down", level="error", path=self._path, error=described(error))
            try:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            except sqlite3.Error:
                pass  # the connection is not used again, and a transaction that has no commit is none
            return [], self._down()
        self.commits += bool(changes)
        self.changes += changes
        return results, None

    def _transaction(self, connection: sqlite3.Connection, steps: list[Step]) -> tuple[list[Any], int]:
        """Do the steps and commit; returns for each its result, or `_Unfit`, and how many have changed something."""
        unfit: dict[int, _Unfit] = {}
        while True:
            self._begin(connection)
            results: list[Any] = []
            changes, before = 0, connection.total_changes
            for n, step in enumerate(steps):
                try:
                    results.append(unfit[n] if n in unfit else step(connection))
                except _UNFIT as error:
                    unfit[n] = _Unfit(error)
                    connection.execute("ROLLBACK")
                    break
                changes += connection.total_changes != before
                before = connection.total_changes
            else:
                connection.execute("COMMIT")
                return results, changes

    def _begin(self, connection: sqlite3.Connection) -> None:
        """Begin a transaction. While another process writes, that waits: nothing is wrong with the file then."""
        while True:
            try:
                connection.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                busy = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY
                if not busy or self._ending:
                    raise
                log("inbox_locked", level="warning", path=self._path, error=described(error))

    def _down(self) -> InboxDown:
        why = described(self.failure) if self.failure is not None else "it was closed"
        return InboxDown(
            f"inbox {self._path} takes nothing: {why}; what it has acknowledged is kept; allowed: a restart of the "
            "supervisor, when the cause is gone",
            path=self._path,
        )

    def _report(self, batch: list[tuple[Step, Report]], results: list[Any], error: BaseException | None) -> None:
        reports = [partial(self._reported, report) for _, report in batch]
        told = [_told(None if error else results[n], error) for n in range(len(batch))]
        report_each(self._post, [(report, *what) for report, what in zip(reports, told, strict=True)])

    def _reported(self, report: Report, result: Any, error: BaseException | None) -> None:
        self.waiting -= 1
        report(result, error)


def _told(result: Any, error: BaseException | None) -> tuple[Any, BaseException | None]:
    return (None, result.error) if isinstance(result, _Unfit) else (result, error)


def _close(connection: sqlite3.Connection, path: str, *, failed: bool) -> None:
    """Close a connection; one that has failed without a checkpoint.

    The last connection copies the log into the database as it closes. After a write or a sync that failed, the kernel
    may have other pages in the place of those that it has lost: the copy would ruin what is whole. While a connection
    that only reads is there, SQLite makes none, and the next process finds the log with what it has on the disk.
    """
    if not failed:
        connection.close()
        return
    from urllib.parse import quote  # noqa: PLC0415 -- for this rare case

    guard = None
    try:
        guard = sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True, isolation_level=None)
        guard.execute("BEGIN")
        guard.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except sqlite3.Error:
        pass  # what cannot be read is copied nowhere either
    finally:
        connection.close()
        if guard is not None:
            guard.close()
