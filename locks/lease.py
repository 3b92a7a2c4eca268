"""A lease: a right on one session file, bound to a block of code."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Literal, Self

from anyio import CancelScope, current_time
from anyio.lowlevel import checkpoint

from . import _clock, _effects
from .checks import instance_of, instant
from .engines.interface import Right
from .errors import LeaseExpired, LeaseLost
from .holder import Holder
from .rights.arbiter import Arbiter
from .rights.claim import WAITING, without
from .rights.fence import Fence
from .rights.messages import name_successor
from .rights.open_file import FileClaim
from .transcript.compaction import replace
from .transcript.encoding import encode_all
from .transcript.records import OnError, Position, Records
from .transcript.store import FileStore


class Lease:
    """The exclusive right to write to a session file, or to conduct it, for as long as a block runs.

    Made by `LockRegistry.lease` and `LockRegistry.turn`; an async context manager for one task, once. The block runs in
    a cancel scope of the lease's own:

    - entering is a checkpoint, waits in order of arrival, and can be cancelled anywhere; cancelled, it holds nothing;
    - at `deadline` the block is cancelled; `grace` later the right is taken away (`lost`), also while the event loop is
      frozen, and later appends raise;
    - with `idle_timeout` the deadline moves on with each `progress()`, up to `max_hold`;
    - leaving releases synchronously; no cancellation can interrupt it. It raises `LeaseExpired` if `max_hold` has
      passed, or the `LeaseLost` if the right was taken away; an exception of the block itself goes first.

    Inside a run, or another lease of the same task on the same file, it shares what is already held, with that one's
    deadline: tasks of one run do not exclude each other.
    """

    __slots__ = (
        "_arbiter",
        "_asked",
        "_claim",
        "_fence",
        "_idle_timeout",
        "_max_hold",
        "_read_to",
        "_requested_holder",
        "_right",
        "_scope",
        "_store",
        "_supersede",
        "_task",
        "_wait_timeout",
        "header",
        "path",
    )

    def __init__(
        self,
        arbiter: Arbiter,
        store: FileStore,
        path: str,
        right: Right,
        holder: Holder | None,
        wait_timeout: float | None,
        max_hold: float,
        idle_timeout: float | None = None,
        supersede: bool = False,
        fence: Fence | None = None,
        header: bytes | None = None,
    ) -> None:
        self._arbiter = arbiter
        self._store = store
        self.path = path
        self._right = right
        self._requested_holder = holder
        self._wait_timeout = wait_timeout
        self._max_hold = max_hold
        self._idle_timeout = idle_timeout
        self._supersede = supersede
        self._fence = fence
        self.header = header
        """The first line of a file that is still empty, if it gets one."""
        self._read_to: Position | None = None
        self._task: object = None
        self._claim: FileClaim | None = None
        self._asked: FileClaim | None = None
        self._scope: CancelScope | None = None

    def __repr__(self) -> str:
        return f"<Lease ({self._right.name.lower()}) on {self.path}: {self._claim or 'not entered'}>"

    async def __aenter__(self) -> Self:
        if self._claim is not None:
            raise RuntimeError(f"{self!r} was entered already; ask the registry for another one")
        arbiter = self._arbiter
        fence = self._fence
        if fence is not None:
            fence.check(self.path)  # before a file could be created for a run that is over
        self._task = task = arbiter.task_here()
        self._asked = claim = arbiter.new_claim(self._requested_holder, self._max_hold, fence, task)
        claim.scope_ends = bound = arbiter.effective_deadline()
        if bound != math.inf:
            if bound == -math.inf:
                await arbiter.checkpoint()  # cancelled already: raises, before anything was taken
            claim.time.bound = _clock.clock.now() + (bound - current_time())
        claim.time.idle, claim.supersedes = self._idle_timeout, self._supersede
        try:
            got = arbiter.ask(self.path, self._right, claim, claim, task)
            if got.state is WAITING:
                got = await arbiter.wait(self.path, self._right, claim, got, self._wait_timeout, task)
            else:
                await arbiter.checkpoint()
            self._claim = got
            self._enter_scope(got)
            return self
        except BaseException as error:
            if self._claim is None:
                arbiter.give_up(claim, task, error)
            else:
                self._leave_at_once(error)
            raise

    def _enter_scope(self, claim: FileClaim) -> None:
        self._scope = scope = self._arbiter.new_scope()
        scope.__enter__()
        self._join(claim, scope)

    def _join(self, claim: FileClaim, scope: CancelScope) -> None:
        claim.scopes += (scope,)
        if claim.lost is not None:
            scope.cancel()

    async def take_again(self, old: FileClaim) -> None:
        """Take the right again, for what is left of its time, after `old` was given back inside the block."""
        arbiter, scope = self._arbiter, self._scope
        assert scope is not None
        left = max(0.0, old.time.deadline - _clock.clock.now())
        claim = old.again()
        claim.supersedes = False
        self._asked, self._claim = (
            claim,
            await arbiter.acquire(
                self.path, self._right, claim, None if left == math.inf else left, task=self._task, gives_up=False
            ),
        )
        if self._claim is claim:
            claim.time.go_on_from(old.time)
            arbiter.look_by(claim.time.deadline)
        self._join(self._claim, scope)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Literal[False]:
        try:
            claim = self._claim or self.claim
            lost, late = claim.lost, _clock.clock.now() - claim.time.deadline
            if claim.handles == 1:
                claim.scopes = claim.tasks = ()
            else:
                self._unlist(claim)
            self._arbiter.release(claim, self._asked)
            # Whether the cancellation is this lease's own. (trio's scopes also say True when nothing was raised.)
            ours = self._scope is not None and bool(self._scope.__exit__(kind, error, traceback)) and error is not None
            self._scope = None
        except BaseException as raised:
            self._leave_at_once(raised)
            raise
        if error is not None and not ours:
            return False
        if lost is not None:
            name_successor(claim)  # in another process, it may have taken over since the loss
            raise lost
        if ours or (late >= 0 and claim.time.expires):
            late = max(0.0, late)  # its time may have been moved after it was cancelled
            message = f"{claim.holder} left the lease on {self.path} {late:.3f} s past its deadline"
            raise LeaseExpired(message, path=self.path, holder=claim.holder, overstayed_s=late)
        return False

    def _unlist(self, claim: FileClaim) -> None:
        """Take the block out of the claim."""
        scope = self._scope
        claim.scopes = () if claim.handles == 1 else tuple(other for other in claim.scopes if other is not scope)
        if self._task is not None:
            claim.tasks = without(claim.tasks, self._task)
            self._task = None

    def _leave_at_once(self, error: BaseException) -> None:
        """An exception came in the middle of entering or leaving: do whatever of leaving is not done yet."""
        claim = self.claim
        _effects.recover()
        self._unlist(claim)
        self._arbiter.release(claim, self._asked)
        scope, self._scope = self._scope, None
        if scope is not None:
            with suppress(RuntimeError):  # not entered yet, or left already
                scope.__exit__(type(error), error, error.__traceback__)

    @property
    def claim(self) -> FileClaim:
        """What it holds, for the lock layer itself."""
        if self._claim is None:
            raise RuntimeError(f"{self!r}: use it inside `async with`")
        return self._claim

    @property
    def epoch(self) -> int:
        """Rises with each lease of this process."""
        return self.claim.epoch

    @property
    def holder(self) -> Holder:
        """The holder's name."""
        return self.claim.holder

    @property
    def acquired_at(self) -> float:
        """When it was granted (`time.monotonic`)."""
        return self.claim.time.acquired_at

    @property
    def deadline(self) -> float:
        """When the block is cancelled (`time.monotonic`): the earliest of its own limit, its run's and its scope's.

        It is taken when the lease is entered: moving an enclosing scope's deadline later does not move it.
        """
        return self.claim.time.deadline

    @property
    def lost(self) -> LeaseLost | None:
        """Why the right was taken away, if it was."""
        return self.claim.lost

    def progress(self) -> bool:
        """Start `idle_timeout` again, within `max_hold`; returns whether the deadline has moved. From any thread.

        Not after the deadline: a block that was cancelled gets its grace, and no more.
        """
        moved = self.claim.progress()
        if moved:
            self._arbiter.look_by(self.claim.time.deadline)
        return moved

    def end_by(self, at: float) -> None:
        """Cancel the block now; what it may still write ends at `at` (`time.monotonic`), if not earlier anyway.

        Raises:
            ValueError: `at` is no instant. Nothing has changed.
        """
        at = instant("at", at)
        self._arbiter.end_claim_by(self.claim, at)

    def check(self) -> None:
        """Raise unless a write under this lease is legal now.

        Raises:
            LeaseLost: the right was taken away, the run has ended, or the block was left.
        """
        self.claim.check(self.path)

    async def append(self, record: Mapping[str, Any]) -> Position:
        """Append one record: whole, behind all others. A checkpoint.

        Returned, the record survives the death of this process, with `durability="sync"` a power cut too. Failed or
        cancelled, it is not in the file, unless `durability="sync"` was waiting for the disk: then it is.

        Raises:
            LeaseLost: as `check`.
            DeadlockError: under a turn, which takes a momentary write lease: the holder of that one waits for this
                task. Nothing was written.
            TranscriptError: the record would not come back equal (the message names the place), or the operating system
                refused; the file is as before, but for a sync that failed: the message says so.
        """
        return await self.append_many((record,))

    async def append_many(self, records: Iterable[Mapping[str, Any]]) -> Position:
        """Append several records in order, each whole or absent; returns the position behind the last. A checkpoint.

        A crash in the middle leaves some of the first ones; an error or a cancellation leaves none, unless it comes
        while `durability="sync"` waits for the disk: then they are all there.

        Raises:
            LeaseLost: as `check`.
            TranscriptError: as `append`.
        """
        claim, data = self.claim, encode_all(records, self.path)
        if self._right is Right.TURN:
            return await self._store.append(self.path, data, under=claim)
        await checkpoint()
        position = await self._store.written(claim, self.path, data, self.header)
        await self._store.synced(claim, self.path)
        return position

    def append_sync(self, record: Mapping[str, Any]) -> Position:
        """As `append`, from a worker thread of the block that holds this lease. Blocks that thread only.

        Raises what `append` raises.
        """
        claim, data = self.claim, encode_all((record,), self.path)
        if self._right is Right.TURN:
            return self._store.append_sync(self.path, data, under=claim)
        position = self._store.write(claim, self.path, data, self.header)
        self._store.synced_now(claim, self.path)
        return position

    async def read(self, *, last: int | None = None, on_error: OnError = "skip") -> Records:
        """Read the transcript's records: a whole prefix of them, never a torn one. A checkpoint.

        Raises:
            TranscriptError: it cannot be read, or with `on_error="raise"` has a broken line.
        """
        records = await self._store.read(self.path, last=last, on_error=on_error, header=self.header)
        self._read_to = records.position or self._read_to
        return records

    async def replace(self, records: Iterable[Mapping[str, Any]], *, through: Position | None = None) -> Position:
        """Put these records in the place of what the session has up to `through`; what came later is kept.

        That is compaction: summarise without any lease, however long it takes, then replace what was summarised. A
        header stays the first line, and so does what may be one of another program. Broken lines, which were not read,
        stay behind the records, as they are. The new file is written aside, synced and renamed into place, so a crash
        or a cancellation at any step leaves the old file or the new one, whole. While another process conducts the
        session, this waits for the end of that turn, up to the lease's deadline, and lets it append meanwhile. A
        checkpoint.

        Args:
            records: what the file is to begin with.
            through: the `position` of what was read. Without it, what was read last through this lease counts.

        Returns the position behind everything that the new file has.

        Raises:
            TranscriptError: without `through`, it grew since it was read, or was not read; it was replaced since; it
                has several names (hard links); the operating system refused. The old file stands.
            LeaseLost: as `check`.
            LeaseTimeout: the turn of another process lasted longer than this lease may, which is given back by then.
                The old file stands.
            DeadlockError: that turn cannot end, because an outer block of this run holds the lease as well. The old
                file stands.
        """
        instance_of("through", through, Position, none=True)
        claim, data, syncs = self.claim, encode_all(records, self.path), self._store.syncs
        if self._right is Right.TURN:
            self.check()
            async with Lease(
                self._arbiter,
                self._store,
                self.path,
                Right.WRITE,
                claim.given_holder,
                wait_timeout=None,
                max_hold=self._arbiter.max_hold,
                fence=claim.fence,
                header=self.header,
            ) as writing:
                self._read_to = await replace(self._arbiter, syncs, writing, data, through, self._read_to, under=claim)
        else:
            self._read_to = await replace(self._arbiter, syncs, self, data, through, self._read_to)
        return self._read_to
