"""An inbox that commits without a thread, so that virtual time knows of its commits."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from locks._loop import Post

from ..inbox import sqlite
from ..inbox.store import Report
from ..inbox.writer import Step, Writer
from .patches import replaced


class Inline(Writer):
    """A writer without a thread: each step is committed within the call, and reported at the next round of the loop."""

    before: Callable[[Inline], None] = staticmethod(lambda _writer: None)
    """Called before each commit: a test's chance to fail it."""
    after: Callable[[Inline], None] = staticmethod(lambda _writer: None)
    """Called after each commit that has changed something: a test's chance to look at the file."""

    def __init__(self, path: str, connect: Callable[[], sqlite3.Connection], post: Post) -> None:
        super().__init__(path, connect, post)
        self.held: list[tuple[Step, Report]] | None = None
        """Steps that are not done yet, while a test holds them."""

    def start(self, ready: Report) -> None:
        self._ready = ready
        try:
            self._open = self._connect()
        except BaseException as error:
            failed = error
            self._post(lambda: ready(None, failed))
        else:
            self._post(lambda: ready(None, None))

    def do(self, step: Step, report: Report) -> None:
        self.waiting += 1
        if self.held is not None:
            self.held.append((step, report))
        else:
            self._do([(step, report)])

    def release(self) -> None:
        """Do what was held, as one commit."""
        held, self.held = self.held or [], None
        if held:
            self._do(held)

    def stop(self, ended: Report | None = None) -> None:
        self.release()
        self._open.close()
        if ended is not None:
            self._post(lambda: ended(None, None))

    def _do(self, batch: list[tuple[Step, Report]]) -> None:
        before = self._open.total_changes
        results, error = self._commit(self._open, batch) if self.failure is None else ([], self._down())
        self._report(batch, results, error)
        if error is None and self._open.total_changes != before:
            type(self).after(self)

    def _commit(
        self, connection: sqlite3.Connection, batch: list[tuple[Step, Report]]
    ) -> tuple[list[Any], BaseException | None]:
        def prepared(_connection: sqlite3.Connection) -> None:
            type(self).before(self)

        results, error = super()._commit(connection, [*batch, (prepared, lambda *_: None)])
        return results[:-1], error


@contextmanager
def inline() -> Iterator[type[Inline]]:
    """Have inboxes commit without a thread."""

    class Mine(Inline):
        pass

    with replaced(sqlite, "Writer", Mine):
        yield Mine
