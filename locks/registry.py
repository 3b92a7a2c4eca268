"""The registry: leases, appends and reads on session files, for everybody."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import anyio
from anyio import from_thread, to_thread
from anyio.lowlevel import RunVar, checkpoint

from . import _os, transcript
from ._loop import on_loop_thread
from .arbiter import Arbiter, live_arbiters, seconds
from .claim import Claim, ClaimState
from .engines.choose import EngineName
from .engines.seam import LeaseEngine, Right
from .entry import checked_path
from .errors import LeaseLost, Revoked
from .holder import Fence, Holder, current_fence
from .lease import Lease
from .statistics import HeldRight, RegistryStatistics, count, held_rights
from .transcript import OnError, Position, Records, encode_all

_limiter: RunVar[anyio.CapacityLimiter] = RunVar("locks.limiter")
_READ_ON_LOOP = 1 << 18  # bytes; a longer read goes to a thread


def live_registries() -> list[LockRegistry]:
    """Every registry of this process that is still referenced; for leak checks."""
    return [arbiter for arbiter in live_arbiters() if isinstance(arbiter, LockRegistry)]


class LockRegistry(Arbiter):
    """Hands out turn and write leases on session files, to one event loop at a time.

    Args:
        max_hold: seconds after which a lease's block is cancelled; a run's turn is limited by the run instead.
        grace: seconds that a cancelled block may take before its right is taken away.
        engine: `"kernel"` excludes other processes through Linux open-file-description locks, `"none"` only this
            process's tasks; `"auto"` is the strongest that the platform has.

    Not thread-safe but where a method says so. Needs no closing: an idle registry holds no file and no thread of its
    own.
    """

    def __init__(
        self, *, max_hold: float = 300.0, grace: float = 2.0, engine: EngineName | LeaseEngine = "auto"
    ) -> None:
        super().__init__(max_hold=max_hold, grace=grace, engine=engine)
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
    ) -> Lease:
        """The exclusive write lease of a session file, as an async context manager.

        Args:
            path: the transcript; created when missing.
            holder: a name for error messages; by default the run's, else the task's.
            wait_timeout: seconds to wait at most; `None` waits as long as it takes.
            max_hold: seconds to hold at most, instead of the registry's.

        Entering raises:
            LeaseTimeout: the wait budget passed.
            TranscriptError: the file cannot be opened or locked.
            InvalidSession: the path cannot name a file.
        """
        return self._new_lease(path, Right.WRITE, holder, wait_timeout, max_hold)

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

        Entering raises besides:
            RunEnded, Superseded: that run may not write any more.
        """
        return self._new_lease(path, Right.WRITE, None, wait_timeout, max_hold, fence, header)

    def turn(
        self,
        path: str | os.PathLike[str],
        *,
        holder: Holder | None = None,
        wait_timeout: float | None = None,
        max_hold: float | None = None,
    ) -> Lease:
        """The turn of a session: who has it conducts the session. Others may still append.

        As `lease`, but a right of its own: its `append` takes a momentary write lease.
        """
        return self._new_lease(path, Right.TURN, holder, wait_timeout, max_hold)

    async def append(self, path: str | os.PathLike[str], record: Mapping[str, Any]) -> Position:
        """Append one record under a momentary write lease. A checkpoint.

        Cancelled or failed, the record is not in the file; returned, it survives the death of this process.

        Raises:
            RunEnded, Superseded: the calling run may not write any more.
            TranscriptError: no JSON object, or the operating system refused; the file is as before.
        """
        text = checked_path(path)
        return await self.append_lines(text, encode_all((record,), text), under=current_fence.get())

    async def read(
        self, path: str | os.PathLike[str], *, last: int | None = None, on_error: OnError = "skip"
    ) -> Records:
        """Read a transcript's records, without any lock: a whole prefix of them. A checkpoint; long files in a thread.

        Raises:
            TranscriptError: it cannot be read, or with `on_error="raise"` has a broken line.
        """
        text = checked_path(path)
        await checkpoint()
        try:
            short = _os.stat(text).st_size <= _READ_ON_LOOP
        except OSError:
            short = True  # `read` says what is wrong with it
        if short:
            return transcript.read(text, last=last, on_error=on_error)

        def read() -> Records:
            return transcript.read(text, last=last, on_error=on_error)

        return await to_thread.run_sync(read, abandon_on_cancel=True, limiter=_own_limiter())

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
            self._steward.revoke(claim, Revoked(message, path=text, holder=claim.holder))
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

    def write(self, claim: Claim, path: str, data: bytes, header: bytes | None = None) -> Position:
        """Append whole lines under a held write claim, checking inside the write that it is legal.

        Callable from a worker thread of the claim's run.

        Raises:
            LeaseLost, TranscriptError: nothing was written.
        """
        entry = claim.entry
        if entry is None:
            raise LeaseLost(f"{claim.holder} does not hold {path}", path=path, holder=claim.holder)
        try:
            with entry.mutex:
                claim.check(path)
                position = transcript.append(entry, path, data, header)
        finally:
            if claim.revoke_pending is not None:
                self._steward.revoke(claim, claim.revoke_pending)
            if entry.notes:
                self._report(entry)
        self._appended += 1
        return position

    async def append_lines(
        self, path: str, data: bytes, *, under: Fence | Claim | None = None, header: bytes | None = None
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
        claim = self.new_claim(fence=fence)
        if isinstance(under, Claim):
            claim.identity, claim.given_holder = under.identity, under.holder
        claim = await self.acquire(path, Right.WRITE, claim, suspend=False)
        try:
            if under is not None:
                under.check(path)
            return self.write(claim, path, data, header)
        finally:
            self.release(claim)

    def append_lines_sync(
        self, path: str, data: bytes, *, under: Fence | Claim | None = None, header: bytes | None = None
    ) -> Position:
        """As `append_lines`, from a worker thread, which blocks until the event loop has done it.

        Raises besides:
            RuntimeError: on the event loop's own thread, or before the registry was used on one.
        """
        if under is not None:
            under.check(path)
        if on_loop_thread():
            raise RuntimeError("append_sync would block the event loop it waits for; use `await append(...)` there")
        if self._token is None:
            raise RuntimeError("append_sync: the registry has not been used on an event loop yet")

        async def append() -> Position:
            return await self.append_lines(path, data, under=under, header=header)

        return from_thread.run(append, token=self._token)

    # Internals

    def _new_lease(
        self,
        path: str | os.PathLike[str],
        right: Right,
        holder: Holder | None,
        wait_timeout: float | None,
        max_hold: float | None,
        fence: Fence | None = None,
        header: bytes | None = None,
    ) -> Lease:
        hold = self.max_hold if max_hold is None else seconds("max_hold", max_hold)
        wait = None if wait_timeout is None else seconds("wait_timeout", wait_timeout)
        text = checked_path(path)
        return Lease(self, text, right, holder=holder, wait_timeout=wait, max_hold=hold, fence=fence, header=header)


def _own_limiter() -> anyio.CapacityLimiter:
    """Threads for our own disk work: hung tool calls that fill the default pool must not stop it."""
    try:
        return _limiter.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(8)
        _limiter.set(limiter)
        return limiter
