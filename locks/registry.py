"""The registry: leases, appends and reads on session files, for everybody."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Mapping
from functools import partial
from typing import Any, Literal

from anyio.lowlevel import checkpoint

from . import _effects, transcript
from ._loop import current_task, from_thread, on_loop_thread
from ._os import FileId
from ._threads import in_thread
from .checks import flag, instance_of, seconds
from .engines.choose import EngineName
from .engines.interface import LeaseEngine, Right
from .errors import LeaseLost, Revoked
from .holder import Holder
from .lease import Lease
from .paths import checked_path
from .rights.arbiter import Arbiter, live_arbiters
from .rights.claim import ClaimState, without
from .rights.fence import Fence, current_fence
from .rights.open_file import Entry, FileClaim
from .sidecar.guards import ForeignPolicy
from .statistics import HeldRight, RegistryStatistics, count, held_rights
from .transcript import OnError, Position, Records, encode_all
from .transcript.set_aside import set_aside
from .transcript.syncing import GroupSync

Durability = Literal["process", "sync"]


def live_registries() -> list[LockRegistry]:
    """Every registry of this process that is still referenced; for leak checks."""
    return [arbiter for arbiter in live_arbiters() if isinstance(arbiter, LockRegistry)]


class LockRegistry(Arbiter):
    """Hands out turn and write leases on session files, to one event loop at a time.

    While something is held or waited for on one event loop, use on another raises `RuntimeError`, also while the two
    share a thread (trio as a guest of asyncio): make a registry for each, which exclude each other. A loop that was
    closed with something held leaves it: it is taken away at its deadline and grace, or at once if it has no deadline,
    and the next loop goes on.

    Args:
        max_hold: seconds after which a lease's block is cancelled; with 0 at its first suspension, with `inf` never. A
            run's turn is limited by the run instead.
        grace: seconds that a cancelled block may take before its right is taken away.
        sidecar: say in `<file>.lock` who has the write lease, and honour what foreign gateways write there; say in
            `<file>.turn` who conducts. About 60 µs per lease. With `engine="none"` nothing is written or honoured.
        engine: what excludes other processes: `"kernel"`, Linux open-file-description locks; `"filelock"`, the library
            of that name, elsewhere, with weaker promises; `"none"`, nothing, so it keeps apart what this process does,
            over all its registries with `"none"`; or a `LeaseEngine`. `"auto"` is the strongest that works here.
        durability: what an append that has returned survives: `"process"`, the death of this process; `"sync"`, a power
            cut too, for an `fdatasync` that appends of a file share.
        yield_to_foreign: leave foreign gateways a gap of 60 ms before each of our lock files, since they poll without a
            queue; `None` does so once one was seen.
        allow_network_fs: take sessions on network file systems too, where locks of this host exclude no other host.

    Raises:
        ValueError: an option is not what it may be, or the engine does not work here.

    Users need `lease`, `turn`, `append`, `read`, `stream`, `revoke`, `statistics` and `holders`. All other methods are
    for schedulers, such as the floor above, which own the scopes that claims live in, and for `Lease` itself:
    `lease_for`, `new_lease`, `new_claim`, `acquire`, `acquire_nowait`, `release`, `end`, `end_by`, `end_claim_by`,
    `look_by`, `lose_all`, `moved`, `read_lines`, `write`, `written`, `append_lines`, `append_lines_sync`, `synced`,
    `synced_now`, `set_aside`, `wait_sources`, `blockers`, `never_ending`, `waits`, `needs`, `keepers` and
    `waiting_for`. Those take what they get as it is.

    Not thread-safe but where a method says so. Needs no closing: an idle registry holds no file and no thread of its
    own.
    """

    def __init__(
        self,
        *,
        max_hold: float = 300.0,
        grace: float = 2.0,
        sidecar: bool = True,
        engine: EngineName | LeaseEngine = "auto",
        durability: Durability = "process",
        yield_to_foreign: bool | None = None,
        allow_network_fs: bool = False,
    ) -> None:
        if durability not in ("process", "sync"):
            raise ValueError(f"durability: {durability!r} is unknown; allowed: 'process', 'sync'")
        flag("sidecar", sidecar)
        flag("yield_to_foreign", yield_to_foreign, none=True)
        self._policy = ForeignPolicy(yield_to_foreign) if sidecar else None
        super().__init__(
            max_hold=max_hold,
            grace=grace,
            engine=engine,
            new_guard=None if self._policy is None else self._policy.guard,
            allow_network_fs=allow_network_fs,
        )
        self.durability: Durability = durability
        self._syncs = GroupSync()
        self._appended = 0

    def __repr__(self) -> str:
        now = self.statistics()
        return f"<LockRegistry ({self.engine}): {now.held} held, {now.waiting} waiting, {now.sessions} sessions>"

    def lease(
        self,
        path: str | os.PathLike[str],
        *,
        holder: Holder | None = None,
        wait_timeout: float | None = None,
        max_hold: float | None = None,
        idle_timeout: float | None = None,
        supersede: bool = False,
    ) -> Lease:
        """The exclusive write lease of a session file, as an async context manager.

        Args:
            path: the transcript; created when missing.
            holder: a name for error messages; by default the run's, else the task's.
            wait_timeout: seconds to wait at most; `None` waits as long as it takes, 0 takes only what is free.
            max_hold: seconds to hold at most, instead of the registry's; with 0 the block ends at its first suspension.
            idle_timeout: seconds without `Lease.progress()` after which the block is cancelled, within `max_hold`; 0 as
                there.
            supersede: take over now from who holds it in this process, before everybody who waits here; the loser's
                block is cancelled, and its later appends raise `Superseded`, naming the winner. A holder in another
                process is waited for.

        Raises:
            InvalidSession: the path cannot name a file.
            ValueError: another argument is not what it may be.

        Entering raises:
            LeaseTimeout: the wait budget passed.
            DeadlockError: who has it waits, over any number of steps, for something that the calling task holds, and
                the wait has no time limit of its own, as `wait_timeout` is one.
            TranscriptError: the file cannot be opened or locked, or lives on a network file system.
        """
        return self.new_lease(
            path, Right.WRITE, holder, wait_timeout, max_hold, idle_timeout=idle_timeout, supersede=supersede
        )

    def lease_for(
        self,
        fence: Fence,
        path: str,
        *,
        header: bytes | None = None,
        wait_timeout: float | None = None,
        max_hold: float | None = None,
    ) -> Lease:
        """As `lease`, for the run that `fence` belongs to, whichever task enters it.

        Args:
            fence: the run's permission to write; it ends the lease with the run.
            path: the transcript; created when missing.
            header: the first line of a file that is still empty, with its newline; `None` for none.
            wait_timeout: as for `lease`.
            max_hold: as for `lease`; the run's own deadline ends it as well.

        Entering raises besides:
            RunEnded, Superseded: that run may not write any more.
        """
        instance_of("fence", fence, Fence)
        return self.new_lease(path, Right.WRITE, None, wait_timeout, max_hold, fence=fence, header=header)

    def turn(
        self,
        path: str | os.PathLike[str],
        *,
        holder: Holder | None = None,
        wait_timeout: float | None = None,
        max_hold: float | None = None,
        idle_timeout: float | None = None,
        supersede: bool = False,
    ) -> Lease:
        """The turn of a session: who has it conducts the session. Others may still append.

        As `lease`, but a right of its own: its `append` takes a momentary write lease.
        """
        return self.new_lease(
            path, Right.TURN, holder, wait_timeout, max_hold, idle_timeout=idle_timeout, supersede=supersede
        )

    async def append(self, path: str | os.PathLike[str], record: Mapping[str, Any]) -> Position:
        """Append one record under a momentary write lease. A checkpoint.

        It waits for its turn without a bound of its own: use `anyio.fail_after`, or a lease with `wait_timeout`.

        Returned, the record survives the death of this process, with `durability="sync"` a power cut too. Failed or
        cancelled, it is not in the file, unless `durability="sync"` was waiting for the disk: then it is.

        Raises:
            LeaseLost: the momentary lease was taken away (`Revoked`, `Superseded`), or the calling run may not write
                any more (`RunEnded`, `Superseded`). Nothing was written.
            DeadlockError: who has the lease waits, over any number of steps, for something that the calling task holds.
                Nothing was written.
            TranscriptError: the record would not come back equal (the message names the place), or the operating system
                refused; the file is as before, but for a sync that failed: the message says so.
            InvalidSession: the path cannot name a file.
        """
        text = checked_path(path)
        return await self.append_lines(text, encode_all((record,), text), under=current_fence.get())

    async def read(
        self, path: str | os.PathLike[str], *, last: int | None = None, on_error: OnError = "skip"
    ) -> Records:
        """Read a transcript's records, without any lock: a whole prefix of them. A checkpoint; long reads in a thread.

        Args:
            last: only the last so many, found from the end without reading the rest.
            on_error: leave a broken line out (it is listed in `.skipped`), or raise.

        Raises:
            TranscriptError: it cannot be read, or with `on_error="raise"` has a broken line.
        """
        return await self.read_lines(checked_path(path), last=last, on_error=on_error)

    def stream(
        self, path: str | os.PathLike[str], *, after: Position | None = None, on_error: OnError = "skip"
    ) -> AsyncGenerator[Records, None]:
        """As `read`, for files that are too large to have in memory at once: yields batches of some hundred kilobytes.

        The end is where it was at the first batch. Use `contextlib.aclosing` where the loop may be left early. A
        checkpoint before each batch.

        Args:
            after: begin behind this position; `records.position` of an earlier read, say.

        Raises:
            TranscriptError: as `read`; or the file was replaced since that position was taken.
        """
        instance_of("after", after, Position, none=True)
        return _in_batches(transcript.Batches(transcript.stream(checked_path(path), after=after, on_error=on_error)))

    def revoke(self, path: str | os.PathLike[str], reason: str) -> int:
        """Take turn and write lease of a session away from whoever holds them here; returns how many were held.

        The holders' blocks are cancelled, their later appends raise `Revoked`; who waits goes on at once.
        """
        text = checked_path(path)
        entry = self._files.find(text)
        holders = [queue.holder for queue in entry.queues.values()] if entry else []
        held = [claim for claim in holders if claim is not None and claim.state is ClaimState.HELD]
        for claim in held:
            message = f"{claim.holder} lost {text}: {reason}"
            self._revoke(claim, Revoked(message, path=text, holder=claim.holder))
        return len(held)

    def statistics(self) -> RegistryStatistics:
        """What is held and waited for now, and totals."""
        return count(
            self._files,
            competing=len(self._room.competing),
            granted=self._granted,
            revoked=self._steward.revoked,
            appended=self._appended,
        )

    def holders(self) -> list[HeldRight]:
        """Every right that is held in this process, with its holder."""
        return held_rights(self._files)

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
                position = transcript.append(entry, path, data, header)
        finally:
            if claim.revoke_pending is not None:
                self._steward.revoke(claim, claim.revoke_pending)
            if entry.notes:
                self._report(entry)
        self._appended += 1
        if position.offset <= len(data) + len(header or b""):  # the first lines of a file
            self._syncs.forget(entry.file_id)
        return position

    async def written(self, claim: FileClaim, path: str, data: bytes, header: bytes | None = None) -> Position:
        """As `write`, for the event loop's thread: does not wait there for another thread's write, which may hang."""
        if claim.queue is not None and claim.queue.mutex.locked():
            return await in_thread(partial(self.write, claim, path, data, header))
        return self.write(claim, path, data, header)

    async def read_lines(
        self, path: str, *, last: int | None = None, on_error: OnError = "skip", header: bytes | None = None
    ) -> Records:
        """As `read`, for whoever gives files a header of their own: `header` is the one that this file would get."""
        await checkpoint()
        records = transcript.read_short(path, last=last, on_error=on_error, header=header)
        if records is None:
            records = await in_thread(partial(transcript.read, path, last=last, on_error=on_error, header=header))
        return records

    async def append_lines(
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
        claim, me = self.new_claim(fence=fence), current_task()
        if isinstance(under, FileClaim):
            claim.identity, claim.given_holder = under.identity, under.holder
        try:
            return await self._append_lines(path, data, under, header, claim, me)
        except BaseException:
            _effects.recover()
            self._give_write_back(
                claim, me
            )  # what an exception has kept from being done when another one had come already
            raise

    async def _append_lines(
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
            got = await self.acquire(path, Right.WRITE, asked, suspend=False, task=me)
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
        self.release(got, asked)

    def append_lines_sync(
        self, path: str, data: bytes, *, under: Fence | FileClaim | None = None, header: bytes | None = None
    ) -> Position:
        """As `append_lines`, from a worker thread, which blocks until the event loop has done it.

        No cancellation reaches the thread, also while the task that waits for it is cancelled.

        Raises besides:
            RuntimeError: on an event loop's thread, or before the registry was used on one: nothing was written. Or the
                event loop has ended meanwhile: the record is there, whole, or it is not.
        """
        if under is not None:
            under.check(path)
        if on_loop_thread():
            raise RuntimeError("append_sync would block the event loop it waits for; use `await append(...)` there")
        loop = self._loop
        if loop is None:
            raise RuntimeError("append_sync: the registry has not been used on an event loop yet")

        async def append() -> Position:
            return await self.append_lines(path, data, under=under, header=header)

        return from_thread(loop, self._steward.post, append, f"append to {path}")

    async def set_aside(self, path: str, to: str | None, *, under: Fence) -> bool:
        """Rename a session's file, or remove it; the next append by anyone begins a new one. A checkpoint.

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
            DeadlockError: who has the write right waits, over any number of steps, for something that the calling task
                holds. The file stays.
            TranscriptError: something is called `to` already; the file has several names (hard links); a block of the
                run holds the write lease; or the operating system refused. The file stays, but for a sync that failed:
                the message says so.
        """
        return await set_aside(self, path, to, under)

    # Internals

    def new_lease(
        self,
        path: str | os.PathLike[str],
        right: Right,
        holder: Holder | None,
        wait_timeout: float | None = None,
        max_hold: float | None = None,
        *,
        idle_timeout: float | None = None,
        supersede: bool = False,
        fence: Fence | None = None,
        header: bytes | None = None,
    ) -> Lease:
        """A lease on either right; what `lease`, `lease_for` and `turn` have in common."""
        instance_of("holder", holder, Holder, none=True)
        flag("supersede", supersede)
        return Lease(
            self,
            checked_path(path),
            right,
            holder=holder,
            wait_timeout=None if wait_timeout is None else seconds("wait_timeout", wait_timeout),
            max_hold=self.max_hold if max_hold is None else seconds("max_hold", max_hold),
            idle_timeout=None if idle_timeout is None else seconds("idle_timeout", idle_timeout),
            supersede=supersede,
            fence=fence,
            header=header,
        )

    def _leave_loop(self) -> None:
        self._syncs = GroupSync()  # who waited for the disk has gone
        super()._leave_loop()

    def moved(self, entry: Entry, fd: int, file_id: FileId) -> None:
        """Note that an entry goes on with the file that was renamed into its place."""
        super().moved(entry, fd, file_id)
        self._syncs.forget(file_id)

    async def synced(self, claim: FileClaim, path: str) -> None:
        """Return once what was written under a claim is as durable as this registry promises.

        A checkpoint only where there is something to wait for.
        """
        if self.durability == "sync" and claim.entry is not None:
            claim.entry.pins += 1
            await self._sync_pinned(claim.entry, path)

    async def _sync_pinned(self, entry: Entry, path: str) -> None:
        try:
            await self._syncs.sync(entry, path)
        finally:
            self._unpin(entry)

    def _unpin(self, entry: Entry) -> None:
        entry.pins = max(0, entry.pins - 1)  # 0 already, if the loop of who waited has ended
        self._files.drop_if_idle(entry)
        if entry.notes:
            self._report(entry)

    def synced_now(self, claim: FileClaim, path: str) -> None:
        """As `synced`, on a worker thread."""
        if self.durability == "sync" and claim.entry is not None:
            self._syncs.sync_now(claim.entry, path)


async def _in_batches(batches: transcript.Batches) -> AsyncGenerator[Records, None]:
    try:
        while (batch := await in_thread(batches.next)) is not None:
            yield batch
    finally:
        batches.close()
