"""The file of an inbox and its thread, when the disk fails, the power goes, or the event loop is gone."""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import pytest

from runtime import InboxDown, MessageState
from runtime.inbox import schema
from runtime.inbox.answer import Answer
from runtime.inbox.rows import NewRow
from runtime.inbox.sqlite import SqliteInbox
from tests.inboxes import FILE, rows

pytestmark = pytest.mark.backends("asyncio", "trio")


def inbox(root: Path) -> SqliteInbox:
    return SqliteInbox(str(root / FILE), "sync")


def new(n: int) -> NewRow:
    return NewRow(lane="a", session=None, body=str(n).encode(), route=b"null")


async def accept(store: SqliteInbox, n: int) -> int:
    answer = Answer[Any]()
    store.accept(new(n), 0, answer)
    return int((await answer.wait()).id)


def writer_thread() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name.startswith("inbox ")]


async def test_what_is_reported_is_in_the_file_by_then(tmp_path):
    store = inbox(tmp_path)
    await store.open()
    missing = []
    with closing(sqlite3.connect(tmp_path / FILE)) as other:

        def kept(taken, _error):
            if other.execute("SELECT 1 FROM message WHERE id = ?", (taken.id,)).fetchone() is None:
                missing.append(taken.id)

        for _ in range(3):
            for n in range(10):
                store.accept(new(n), 0, kept)
            answer = Answer[None]()
            store.settle(answer)
            await answer.wait()
    await store.close()
    assert missing == []
    assert len(rows(tmp_path)) == 30


class Faulty:
    """A connection on which one statement fails: the n-th of its kind, instead of being done, or after it."""

    def __init__(
        self, connection: sqlite3.Connection, statement: str, n: int, *, after: bool, error: Exception
    ) -> None:
        self._connection, self._statement, self._left = connection, statement, n
        self._after, self._error = after, error
        self.done_since: list[str] | None = None
        """What was executed since it has failed."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, statement: str, *values: Any) -> Any:
        if self.done_since is not None:
            self.done_since.append(statement)
        if statement.startswith(self._statement):
            self._left -= 1
            if not self._left:
                self.done_since = []
                if self._after:
                    self._connection.execute(statement, *values)
                raise self._error
        return self._connection.execute(statement, *values)


def disk_full() -> Exception:
    return sqlite3.OperationalError("database or disk is full")


def disk_broken() -> Exception:
    return sqlite3.OperationalError("disk I/O error")


@pytest.mark.failure("G10")
@pytest.mark.parametrize("fault", [disk_full, disk_broken])
@pytest.mark.parametrize("statement, after", [("BEGIN", False), ("UPDATE", False), ("COMMIT", False), ("COMMIT", True)])
async def test_a_commit_that_fails_is_not_acknowledged_and_nothing_is_tried_after_it(
    tmp_path, monkeypatch, statement, after, fault
):
    connect, made = schema.connect, []

    def faulty(path, durability):
        made.append(Faulty(connect(path, durability), statement, 3, after=after, error=fault()))
        return made[-1]

    monkeypatch.setattr(schema, "connect", faulty)
    store = inbox(tmp_path)
    await store.open()
    reported: list[tuple[int, Any]] = []
    ids: list[int] = []
    for n in range(4):
        try:
            ids.append(await accept(store, n))
            answer = Answer[int]()
            store.end([ids[-1]], MessageState.FAILED, "", None, answer)
            reported.append((ids[-1], await answer.wait()))
        except InboxDown:
            continue
    assert isinstance(store.failure, sqlite3.OperationalError)
    await store.close()
    assert made[0].done_since in ([], ["ROLLBACK"])
    monkeypatch.undo()
    kept = dict(rows(tmp_path))
    assert set(ids) <= set(kept)
    assert all(kept[one] == "failed" for one, _ in reported)
    assert len(kept) == len(ids) + (after and statement == "COMMIT" and len(ids) == 1)
    store = inbox(tmp_path)
    await store.open()
    assert await accept(store, 9) == max(kept) + 1
    await store.close()


@pytest.mark.failure("G10")
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and /dev/full")
@pytest.mark.parametrize("device, says", [("/dev/full", "full"), ("/dev/zero", "I/O")])
async def test_a_disk_that_is_full_or_does_not_sync_costs_nothing_of_what_was_acknowledged(tmp_path, device, says):
    """For real: SQLite's descriptor of its log is one of a device that refuses writes, or that cannot be synced."""
    store = inbox(tmp_path)
    await store.open()
    kept = [await accept(store, n) for n in range(3)]
    (log,) = [int(fd) for fd in os.listdir("/proc/self/fd") if _leads_to(fd, f"{tmp_path / FILE}-wal")]
    _replace(log, device)
    for _ in range(2):
        with pytest.raises(InboxDown, match=says):
            await accept(store, 3)
    # The kernel has given up on the pages that it could not write. It says so once, and has others from then on.
    await anyio.Path(tmp_path / "pages").write_bytes(bytes(1 << 20))
    _replace(log, str(tmp_path / "pages"))
    await store.close()
    with closing(sqlite3.connect(tmp_path / FILE)) as other:
        assert other.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert rows(tmp_path) == [(one, "accepted") for one in kept]


def _replace(fd: int, path: str) -> None:
    other = os.open(path, os.O_RDWR)
    os.dup2(other, fd)
    os.close(other)


def _leads_to(fd: str, path: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == path
    except OSError:
        return False


@pytest.mark.failure("G11")
@pytest.mark.suite("W2")
def test_a_power_cut_at_any_byte_of_the_log_leaves_all_that_was_acknowledged(tmp_path):
    """What was synced by a commit is there, wherever the log ends behind it; and what is half there is not there."""
    synced: list[tuple[int, int]] = []
    log = Path(f"{tmp_path / FILE}-wal")

    async def fill() -> tuple[bytes, bytes]:
        store = inbox(tmp_path)
        await store.open()
        for n in range(6):
            await accept(store, n)
            synced.append((n + 1, os.stat(log).st_size))
        found = await anyio.Path(tmp_path / FILE).read_bytes(), await anyio.Path(log).read_bytes()
        await store.close()
        return found

    image, whole = anyio.run(fill)
    cuts = {size + more for _, size in synced for more in (0, 1, 24, 2048, 4119, 4120)}
    for cut in sorted(one for one in cuts if one <= len(whole)):
        root = tmp_path / str(cut)
        (root / FILE).parent.mkdir(parents=True)
        (root / FILE).write_bytes(image)
        Path(f"{root / FILE}-wal").write_bytes(whole[:cut])
        found = rows(root)
        at_least = max((count for count, size in synced if size <= cut), default=0)
        assert len(found) >= at_least, cut
        assert [one for one, _ in found] == list(range(1, len(found) + 1))
        shutil.rmtree(root)


@pytest.mark.failure("G11")
@pytest.mark.parametrize("durability, level", [("process", 1), ("sync", 2)])
@pytest.mark.backends("asyncio")
async def test_each_durability_has_its_own_level_of_syncing(
    tmp_path, durability, level
):  # "sync": each commit waits for the disk
    store = SqliteInbox(str(tmp_path / FILE), durability)
    await store.open()
    assert await store._ask(lambda c: c.execute("PRAGMA synchronous").fetchone()) == (level,)
    await store.close()


async def test_another_process_that_writes_for_long_is_waited_for(tmp_path):
    store = inbox(tmp_path)
    await store.open()
    await store._ask(lambda c: c.execute("PRAGMA busy_timeout = 1").fetchone())
    answer = Answer[Any]()
    with closing(sqlite3.connect(tmp_path / FILE, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        store.accept(new(1), 0, answer)
        with anyio.move_on_after(0.05):
            await answer.wait()
        assert (store.failure, rows(tmp_path)) == (None, [])
        other.execute("ROLLBACK")
    assert (await answer.wait()).new
    await store.close()


async def test_a_start_that_is_cancelled_leaves_no_thread(tmp_path):
    with anyio.CancelScope() as scope:
        scope.cancel()
        await inbox(tmp_path).open()
    for thread in writer_thread():
        await anyio.to_thread.run_sync(thread.join, 10.0)
    assert writer_thread() == []


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_a_store_whose_loop_is_gone_keeps_what_it_was_given(tmp_path, loop):
    store = inbox(tmp_path)
    told: list[Any] = []

    async def ends_without_a_word() -> None:
        await store.open()
        await accept(store, 0)
        store.accept(new(1), 0, lambda *_: told.append(1))

    anyio.run(ends_without_a_word, backend=loop)
    store.accept(new(2), 0, lambda *_: told.append(2))
    store.let_go()
    for thread in writer_thread():
        thread.join(10.0)
    assert writer_thread() == []
    assert [one for one, _ in rows(tmp_path)] == [1, 2, 3]
    assert 2 not in told  # nothing is left to run it
    refused = []
    store.accept(new(3), 0, lambda _taken, error: refused.append(type(error)))
    assert refused == [InboxDown]
