"""The registry: everything that this process holds or waits for, file by file.

How it hangs together. `OpenFiles` has an `Entry` per file that is held or waited for, and nothing for all others. An
entry has a `RightQueue` per right; a queue orders `Claim`s. All decisions are synchronous methods of the queue, taken
under the entry's mutex on the event loop's thread; what they return is acted upon here.

Two helpers act beside it: the `WaitingRoom` looks after files that other processes hold, and the `Steward` ends what
overstays, from a thread, so that a frozen loop cannot keep a session.
"""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Mapping
from typing import Any, Literal

import anyio
from anyio import from_thread, to_thread
from anyio.lowlevel import EventLoopToken, RunVar, checkpoint, current_token

from . import _clock, _os, transcript
from ._events import log
from ._loop import current_loop, current_task, poster
from .claim import Claim, ClaimState
from .entry import Entry, cannot, checked_path
from .errors import LeaseLost, LeaseTimeout, Revoked, RunEnded, TranscriptError
from .files import OpenFiles
from .holder import Fence, Holder, current_fence
from .kernel import AVAILABLE as KERNEL_LOCKS
from .kernel import Right
from .lease import Lease
from .queue import RightQueue
from .statistics import HeldRight, RegistryStatistics, count, held_rights
from .steward import Steward
from .transcript import OnError, Position, Records, encode_all
from .waiting import WaitingRoom

_live: weakref.WeakSet[LockRegistry] = weakref.WeakSet()
_limiter: RunVar[anyio.CapacityLimiter] = RunVar("locks.limiter")
_REPLACED_LIMIT = 100
_READ_ON_LOOP = 1 << 18  # bytes; a longer read goes to a thread


def live_registries() -> list[LockRegistry]:
    """Every registry of this process that is still referenced; for leak checks."""
    return list(_live)


class LockRegistry:
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
        self, *, max_hold: float = 300.0, grace: float = 2.0, engine: Literal["auto", "kernel", "none"] = "auto"
    ) -> None:
        self.max_hold = _seconds("max_hold", max_hold)
        self.grace = _seconds("grace", grace)
        if engine not in ("auto", "kernel", "none"):
            raise ValueError(f"engine: {engine!r} is unknown; allowed: 'auto', 'kernel', 'none'")
        if engine != "none" and not KERNEL_LOCKS:
            raise ValueError(f"engine: {engine!r} needs Linux open-file-description locks; allowed here: 'none'")
        self.engine: Literal["kernel", "none"] = "none" if engine == "none" else "kernel"
        self._files = OpenFiles(kernel_locks=self.engine == "kernel", grace=self.grace)
        self._room = WaitingRoom()
        self._steward = Steward(self._settle)
        self._loop: object = None
        self._token: EventLoopToken | None = None
        self._granted = self._appended = 0
        _live.add(self)

    def __repr__(self) -> str:
        now = self.statistics()
        return f"<LockRegistry ({self.engine}): {now.held} held, {now.waiting} waiting, {now.sessions} sessions>"

    # For everybody

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

    # For schedulers, which own the scope that a claim lives in

    def new_claim(
        self,
        holder: Holder | None = None,
        max_hold: float | None = None,
        *,
        fence: Fence | None = None,
        arrived_at: float | None = None,
        bound: float = math.inf,
    ) -> Claim:
        """A claim for the calling task, or for the run that `fence` belongs to, by default the calling task's.

        Args:
            bound: the instant at which the enclosing scope ends, for a claim that lives in one.
        """
        if fence is None:
            fence = current_fence.get()
        return Claim(
            _clock.clock.now() if arrived_at is None else arrived_at,
            current_task() if fence is None else fence,
            fence,
            holder,
            self.max_hold if max_hold is None else max_hold,
            bound,
        )

    def acquire_nowait(self, path: str, right: Right, claim: Claim) -> bool:
        """Take a right if nobody has it or waits for it. Returns whether; if not, nothing is left behind.

        Raises:
            TranscriptError: the file cannot be opened or locked.
        """
        entry = self._enter(path)
        claim.entry = entry
        try:
            with entry.mutex:
                taken = entry.queue(right).try_ask(claim) is not None
        except OSError as error:
            self._files.drop_if_idle(entry)
            raise cannot("lock", path, error) from error
        if taken:
            self._now_held(claim)
            try:
                if entry.is_at(path):
                    return True
            except BaseException:
                self.release(claim)
                raise
            self.release(claim)
        self._files.drop_if_idle(entry)
        return False

    async def acquire(self, path: str, right: Right, claim: Claim, wait_timeout: float | None = None) -> Claim:
        """Take a right, waiting in order of arrival. A checkpoint. Returns the claim that holds it.

        That is `claim`, or the one that the same run holds already. Cancelled, nothing is held or waited for.

        Raises:
            LeaseTimeout: `wait_timeout` seconds passed.
            TranscriptError: the file cannot be opened or locked.
        """
        asked_at = _clock.clock.now()
        give_up_at = math.inf if wait_timeout is None else asked_at + wait_timeout
        while True:
            got = self._ask(path, right, claim)
            try:
                if not got.waits():
                    await checkpoint()
                    return got
                await self._wait(path, got, give_up_at)
                if got.waits():
                    raise self._timed_out(path, got, _clock.clock.now() - asked_at)
                if got.fence is not None:
                    got.fence.check(path)  # the run may have ended while a task of it still waited
                if got.state is not ClaimState.HELD or got.entry is None or got.entry.is_at(path):
                    return got  # lost already: entering the block tells
            except BaseException:
                self.release(got)
                raise
            # Another file was renamed into its place: start over there, with the same arrival.
            self.release(got)
            self._files.forget(got.entry)
            claim = claim.again()

    def release(self, claim: Claim) -> None:
        """Give a claim back, in whatever state it is. Synchronous: nothing can interrupt it."""
        entry, queue = claim.entry, claim.queue
        if entry is None or queue is None or claim.state is ClaimState.OVER:
            return
        if claim.handles > 1:
            claim.handles -= 1
            return
        with entry.mutex:
            woken = queue.withdraw(claim)
        self._steward.held.pop(claim, None)
        if claim.fence is not None:
            claim.fence.claims.discard(claim)
        self._room.update(entry, queue)
        if woken is not None:
            if woken.state is ClaimState.HELD:
                self._now_held(woken)
            elif woken.changed is not None:
                woken.changed.set()
        self._files.drop_if_idle(entry)
        self._report(entry, queue)

    def end(self, fence: Fence, kind: type[LeaseLost] = RunEnded) -> None:
        """Refuse every later write of a run, and take away whatever its tasks still hold."""
        fence.close(kind)
        for claim in list(fence.claims):
            assert claim.entry is not None
            path = claim.entry.path
            message = f"{claim.holder} has ended: what it still held of {path} is taken away"
            self._steward.revoke(claim, kind(message, path=path, holder=claim.holder))

    def end_by(self, fence: Fence, at: float) -> None:
        """Let a run write until `at` at most: what it holds is taken away then, what it writes later is refused.

        Callable from any thread.
        """
        fence.end_by(at)
        self._steward.look_by(at)

    def look_by(self, at: float) -> None:
        """Have the steward look again at `at` at the latest: a run's fence got its instants."""
        self._steward.look_by(at)

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
        while True:
            got = self._ask(path, Right.WRITE, claim)
            try:
                waited = got.waits()
                if waited:
                    await self._wait(path, got, math.inf)
                if not waited or got.entry is None or got.entry.is_at(path):
                    if under is not None:
                        under.check(path)
                    return self.write(got, path, data, header)
            finally:
                self.release(got)
            self._files.forget(got.entry)
            claim = claim.again()

    def append_lines_sync(
        self, path: str, data: bytes, *, under: Fence | Claim | None = None, header: bytes | None = None
    ) -> Position:
        """As `append_lines`, from a worker thread, which blocks until the event loop has done it."""
        if under is not None:
            under.check(path)
        if self._token is None:
            raise RuntimeError("append_sync: the registry has not been used on an event loop yet")

        async def append() -> Position:
            return await self.append_lines(path, data, under=under, header=header)

        return from_thread.run(append, token=self._token)

    def lose_all(self, reason: str) -> None:
        """Lose every right without unlocking it, as a forked child must: an unlock would act for its parent as well."""
        for entry in list(self._files):
            for queue in entry.queues.values():
                claim = queue.holder
                if claim is not None:
                    message = f"{claim.holder} lost {entry.path}: {reason}"
                    claim.state = ClaimState.LOST
                    claim.lost = Revoked(message, path=entry.path, holder=claim.holder)
        self._files.abandon()
        self._room = WaitingRoom()
        self._steward = Steward(self._settle)
        self._loop = None

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
        hold = self.max_hold if max_hold is None else _seconds("max_hold", max_hold)
        wait = None if wait_timeout is None else _seconds("wait_timeout", wait_timeout)
        text = checked_path(path)
        return Lease(self, text, right, holder=holder, wait_timeout=wait, max_hold=hold, fence=fence, header=header)

    def _enter(self, path: str) -> Entry:
        loop = current_loop()
        if loop is not self._loop:
            self._bind(loop)
        return self._files.enter(path)

    def _bind(self, loop: object) -> None:
        if len(self._files):
            raise RuntimeError("a LockRegistry serves one event loop at a time; make another one for this loop")
        self._loop, self._token = loop, current_token()
        self._steward.post = poster()

    def _ask(self, path: str, right: Right, claim: Claim) -> Claim:
        """Take a right at once or join its queue; returns the claim to use. What is held at once is at `path` now."""
        if claim.fence is not None:
            claim.fence.check(path)  # a run that is over takes nothing any more
        for _ in range(_REPLACED_LIMIT):
            entry = self._enter(path)
            claim.entry = entry
            queue = entry.queue(right)
            try:
                with entry.mutex:
                    got = queue.ask(claim)
            except OSError as error:
                self.release(claim)
                self._files.drop_if_idle(entry)
                raise cannot("lock", path, error) from error
            if got.state is ClaimState.WAITING:
                self._room.update(entry, queue)
                return got
            if got is not claim:
                return got
            self._now_held(claim)
            # Between looking the file up and locking it, another may have been renamed into its place.
            try:
                if (self.engine == "none" and entry.fresh) or entry.is_at(path):
                    entry.fresh = False
                    return claim
            except BaseException:
                self.release(claim)
                raise
            self.release(claim)
            self._files.forget(entry)
            claim = claim.again()
        raise TranscriptError(f"{path} was replaced {_REPLACED_LIMIT} times while it was being locked", path=path)

    def _report(self, entry: Entry, queue: RightQueue | None = None) -> None:
        """Log what went wrong while the mutex was held."""
        if queue is not None and queue.trouble is not None:
            entry.note("unlock_failed", path=entry.path, right=queue.right.name.lower(), error=str(queue.trouble))
            queue.trouble = None
        if entry.notes:
            notes, entry.notes = entry.notes, ()
            for event, fields in notes:
                log(event, level="warning", **fields)

    def _now_held(self, claim: Claim) -> None:
        self._granted += 1
        self._steward.watch(claim)
        if claim.fence is not None:
            claim.fence.claims.add(claim)
        if claim.changed is not None:
            claim.changed.set()

    async def _wait(self, path: str, claim: Claim, give_up_at: float) -> None:
        """Wait until the claim holds the right, or until `give_up_at`. A checkpoint, however short the wait."""
        room, suspended = self._room, False
        while claim.waits():
            until = give_up_at
            if room.is_leader(claim):
                until = min(until, self._look())
                if not claim.waits():
                    break
            if claim.failed is not None:
                raise cannot("lock", path, claim.failed) from claim.failed
            if _clock.clock.now() < give_up_at:
                await room.sleep(claim, until)
            elif suspended:
                return
            else:
                await checkpoint()
            suspended = True
        if not suspended:
            await checkpoint()

    def _look(self) -> float:
        due = self._room.look()
        granted, self._room.granted = self._room.granted, []
        for claim in granted:
            assert claim.entry is not None and claim.queue is not None
            self._now_held(claim)
            self._room.update(claim.entry, claim.queue)
        return due

    def _settle(self, claim: Claim) -> None:
        """After a right was taken away: tell the block, log it, and let the next one in. On the loop's thread."""
        error = claim.lost
        assert error is not None and claim.entry is not None
        log(
            "lease_revoked",
            level="warning",
            path=claim.entry.path,
            epoch=claim.epoch,
            holder=str(claim.holder),
            overstayed_s=round(max(0.0, _clock.clock.now() - claim.deadline), 3),
            reason=str(error),
        )
        for scope in claim.scopes:
            scope.cancel()
        claim.handles = 1
        self.release(claim)
        if claim.on_lost is not None:
            claim.on_lost(error)

    def _timed_out(self, path: str, claim: Claim, waited_s: float) -> LeaseTimeout:
        assert claim.queue is not None
        other = claim.queue.holder
        remaining = other.remaining() if other else None
        who = f"{other.holder} holds it" if other else "another process holds it, or waited longer"
        if other is not None:
            left = "without a limit" if remaining is None else f"for at most {remaining:.3f} s more"
            who += f", since {_clock.clock.now() - other.acquired_at:.3f} s, {left}"
        return LeaseTimeout(
            f"waited {waited_s:.3f} s for {path}: {who}",
            path=path,
            waited_s=waited_s,
            holder=other.holder if other else None,
            remaining_s=remaining,
        )


def _after_fork() -> None:
    """A forked child has every descriptor and no thread: it must let go, without unlocking for its parent."""
    for registry in list(_live):
        registry.lose_all("the process was forked")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _own_limiter() -> anyio.CapacityLimiter:
    """Threads for our own disk work: hung tool calls that fill the default pool must not stop it."""
    try:
        return _limiter.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(8)
        _limiter.set(limiter)
        return limiter


def _seconds(name: str, value: float) -> float:
    if not value >= 0:  # NaN is not
        raise ValueError(f"{name}: {value!r} is no duration; allowed: seconds, 0 and more")
    return float(value)
