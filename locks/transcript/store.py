"""Where transcripts are kept: `TranscriptStore` is what a scheduler needs of that, `FileStore` keeps them in files.

A write is legal while its claim is held and its run's fence is open. Both are asked inside the write, under the mutex
of the file that revocation takes as well.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from functools import partial
from typing import Literal, Protocol

from anyio.lowlevel import checkpoint

from .. import _effects
from .._loop import current_task, from_thread, on_loop_thread
from .._threads import in_thread
from ..engines.interface import Right
from ..errors import LeaseLost
from ..rights.arbiter import Arbiter
from ..rights.claim import without
from ..rights.fence import Fence
from ..rights.open_file import Entry, FileClaim
from .appending import append
from .decoding import Decoding, TakesLong
from .reading import BlocksAhead, check, read, read_short
from .records import OnError, Position, Records
from .set_aside import set_aside
from .syncing import GroupSync

Durability = Literal["process", "sync"]


class TranscriptStore(Protocol):
    """Keeps transcripts by path: reads them without a lock, and writes for runs that may.

    A `Position` is its own: users only give it back.
    """

    async def read(
        self, path: str, *, last: int | None = None, on_error: OnError = "skip", header: bytes | None = None
    ) -> Records:
        """Read the records: a whole prefix; `header` is the one that it would get. A checkpoint."""

    def stream(
        self, path: str, *, after: Position | None = None, on_error: OnError = "skip"
    ) -> AsyncGenerator[Records, None]:
        """As `read`, in batches, from behind a position on."""

    async def append(
        self, path: str, data: bytes, *, under: Fence | FileClaim | None = None, header: bytes | None = None
    ) -> Position:
        """Append encoded lines, whole or not at all, while `under` may write. A checkpoint."""

    def append_sync(
        self, path: str, data: bytes, *, under: Fence | FileClaim | None = None, header: bytes | None = None
    ) -> Position:
        """As `append`, from a worker thread."""

    async def set_aside(self, path: str, to: str | None, *, under: Fence) -> bool:
        """Rename the transcript, or remove it; the next append begins a new one. A checkpoint."""


class FileStore:
    """Transcripts in files, written under the rights that an arbiter grants."""

    def __init__(self, arbiter: Arbiter, durability: Durability) -> None:
        self.durability: Durability = durability
        self.appended = 0
        """Total of acknowledged writes."""
        self.syncs = GroupSync()
        self._arbiter = arbiter
        arbiter.on_loop_left = self._forget_waiting

    def _forget_waiting(self) -> None:
        self.syncs = GroupSync()  # the tasks that waited for the disk have gone with their loop

    async def stream(
        self, path: str, *, after: Position | None = None, on_error: OnError = "skip"
    ) -> AsyncGenerator[Records, None]:
        """As `LockRegistry.stream`."""
        check(on_error)
        # Only the disk may hang, so only what reads it has to be in a thread. Usual lines are decoded here: that takes
        # less time than to wake a thread, and holds up the loop no longer, since it holds the interpreter either way.
        ahead, decoding = BlocksAhead(path, after), Decoding(path, after.offset if after else 0, on_error)
        try:
            while not ahead.over:
                for index, block in enumerate(await in_thread(ahead.next)):
                    if index:
                        await checkpoint()
                    try:
                        batch = decoding.batch(block, quick=True)
                    except TakesLong:
                        batch = await in_thread(partial(decoding.batch, block))
                    yield batch
        finally:
            ahead.close()

    def write(self, claim: FileClaim, path: str, data: bytes, header: bytes | None = None) -> Position:
        """Append whole lines under a held write claim, checking inside the write that it is legal.

        Callable from a worker thread of the claim's run.

        Raises:
            LeaseLost, TranscriptError: nothing was written.
        """
        entry, queue = claim.entry, claim.queue
        if entry is None or queue is None:
            raise LeaseLost(f"{claim.holder} does not hold {path}", path=path, holder=claim.holder)
        try:
            with queue.mutex:
                claim.check(path)
                if queue.guard is not None and (change := queue.guard.disturbed()) is not None:
                    entry.note("sidecar_replaced", path=change.path, by=change.by, what=change.what)
                position = append(entry, path, data, header)
        finally:
            if claim.revoke_pending is not None:
                self._arbiter.grants.steward.revoke(claim, claim.revoke_pending)
            if entry.notes:
                self._arbiter.grants.report(entry)
        self.appended += 1
        if position.offset <= len(data) + len(header or b""):  # the first lines of a file
            self.syncs.forget(entry.file_id)
        return position

    async def written(self, claim: FileClaim, path: str, data: bytes, header: bytes | None = None) -> Position:
        """As `write`, for the event loop's thread: does not wait there for another thread's write, which may hang."""
        if claim.queue is not None and claim.queue.mutex.locked():
            return await in_thread(partial(self.write, claim, path, data, header))
        return self.write(claim, path, data, header)

    async def read(
        self, path: str, *, last: int | None = None, on_error: OnError = "skip", header: bytes | None = None
    ) -> Records:
        """As `LockRegistry.read`; `header` is the one that this file would get."""
        await checkpoint()
        records = read_short(path, last=last, on_error=on_error, header=header)
        if records is None:
            records = await in_thread(partial(read, path, last=last, on_error=on_error, header=header))
        return records

    async def append(
        self, path: str, data: bytes, *, under: Fence | FileClaim | None = None, header: bytes | None = None
    ) -> Position:
        """Append encoded lines under a momentary write claim. A checkpoint.

        Args:
            path: the transcript.
            data: whole lines, each with its newline.
            under: what must still hold inside the write: a run's permission, or a turn.
            header: the first line of a file that is still empty.
        """
        fence = under if isinstance(under, Fence) else under.fence if under is not None else None
        if under is not None:
            under.check(path)  # before a file could be created; it is asked again inside the write
        await checkpoint()
        claim, me = self._arbiter.new_claim(fence=fence), current_task()
        if isinstance(under, FileClaim):
            claim.identity, claim.given_holder = under.identity, under.holder
        try:
            return await self._append(path, data, under, header, claim, me)
        except BaseException:
            _effects.recover()
            self._give_write_back(
                claim, me
            )  # what an exception has kept from being done when another one had come already
            raise

    async def _append(
        self,
        path: str,
        data: bytes,
        under: Fence | FileClaim | None,
        header: bytes | None,
        asked: FileClaim,
        me: object,
    ) -> Position:
        pinned: Entry | None = None
        try:
            got = await self._arbiter.acquire(path, Right.WRITE, asked, suspend=False, task=me)
            if under is not None:
                under.check(path)
            position = await self.written(got, path, data, header)
            if self.durability == "sync":
                assert got.entry is not None
                got.entry.pins, pinned = got.entry.pins + 1, got.entry
            self._give_write_back(asked, me)
        except BaseException:
            self._give_write_back(asked, me)
            if pinned is not None:
                self._unpin(pinned)
            raise
        if pinned is not None:  # others append meanwhile, and share the sync
            await self._sync_pinned(pinned, path)
        return position

    def _give_write_back(self, asked: FileClaim, task: object) -> None:
        """Give a momentary write claim back, if it is not given back yet."""
        got = asked.got or asked
        if asked.counts:
            got.tasks = without(got.tasks, task)
        self._arbiter.release(got, asked)

    def append_sync(
        self, path: str, data: bytes, *, under: Fence | FileClaim | None = None, header: bytes | None = None
    ) -> Position:
        """As `append`, from a worker thread, which blocks until the event loop has done it.

        No cancellation reaches the thread, also while the task that waits for it is cancelled.

        Raises besides:
            RuntimeError: on an event loop's thread, or before the registry was used on one: nothing was written. Or the
                event loop has ended meanwhile: the record is there, whole, or it is not.
        """
        if under is not None:
            under.check(path)
        if on_loop_thread():
            raise RuntimeError("append_sync would block the event loop it waits for; use `await append(...)` there")
        loop = self._arbiter.loop
        if loop is None:
            raise RuntimeError("append_sync: the registry has not been used on an event loop yet")

        async def append() -> Position:
            return await self.append(path, data, under=under, header=header)

        return from_thread(loop, self._arbiter.grants.steward.post, append, f"append to {path}")

    async def set_aside(self, path: str, to: str | None, *, under: Fence) -> bool:
        """Rename a session's file, or remove it; the next append, of any process, begins a new file. A checkpoint.

        It waits for the write right in order of arrival, like an append. Who waits for a right of the file, here or in
        another process, starts over with the new one; what conducts it goes on holding the turn of the old one, and
        gives it back as usual, but should write nothing more: another process may conduct the new file by then.

        Cancelled, the file has its name, unless `durability="sync"` was waiting for the disk: then it is set aside.

        Args:
            path: the transcript; of a symlink, its target is set aside.
            to: what it is called from then on, in the same directory; `None` to remove it.
            under: the run that conducts the session: it has the turn, in this registry.

        Returns whether there was a file.

        Raises:
            LeaseLost: that run does not conduct the file of that name, or may not write any more. The file stays.
            DeadlockError: the holder of the write right waits, over any number of steps, for something that the calling
                task holds. The file stays.
            TranscriptError: something is called `to` already; the file has several names (hard links); a block of the
                run holds the write lease; or the operating system refused. The file stays, but for a sync that failed:
                the message says so.
        """
        return await set_aside(self._arbiter, path, to, under, durable=self.durability == "sync")

    async def synced(self, claim: FileClaim, path: str) -> None:
        """Return once what was written under a claim is as durable as this registry promises.

        A checkpoint only where there is something to wait for.
        """
        if self.durability == "sync" and claim.entry is not None:
            claim.entry.pins += 1
            await self._sync_pinned(claim.entry, path)

    async def _sync_pinned(self, entry: Entry, path: str) -> None:
        try:
            await self.syncs.sync(entry, path)
        finally:
            self._unpin(entry)

    def _unpin(self, entry: Entry) -> None:
        entry.pins = max(0, entry.pins - 1)  # 0 already, if the loop of the waiters has ended
        self._arbiter.files.drop_if_idle(entry)
        if entry.notes:
            self._arbiter.grants.report(entry)

    def synced_now(self, claim: FileClaim, path: str) -> None:
        """As `synced`, on a worker thread."""
        if self.durability == "sync" and claim.entry is not None:
            self.syncs.sync_now(claim.entry, path)
