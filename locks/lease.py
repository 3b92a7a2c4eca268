"""A lease: a right on one session file, bound to a block of code."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from anyio import CancelScope, current_effective_deadline, current_time
from anyio.lowlevel import checkpoint

from . import _clock
from .claim import Claim
from .engines.seam import Right
from .errors import LeaseExpired, LeaseLost
from .holder import Fence, Holder
from .transcript import OnError, Position, Records, encode_all

if TYPE_CHECKING:
    from .registry import LockRegistry


class Lease:
    """The exclusive right to write to a session file, or to conduct it, for as long as a block runs.

    Made by `LockRegistry.lease` and `LockRegistry.turn`; an async context manager for one task, once. The block runs in
    a cancel scope of the lease's own:

    - entering is a checkpoint, waits in order of arrival, and can be cancelled anywhere; cancelled, it holds nothing;
    - at `deadline` the block is cancelled; `grace` later the right is taken away (`lost`), also while the event loop is
      frozen, and later appends raise;
    - leaving releases synchronously; no cancellation can interrupt it. It raises `LeaseExpired` if `max_hold` has
      passed, or the `LeaseLost` if the right was taken away; an exception of the block itself goes first.

    Inside a run, or another lease of the same task on the same file, it shares what is already held, with that one's
    deadline: tasks of one run do not exclude each other.
    """

    __slots__ = (
        "_claim",
        "_fence",
        "_header",
        "_max_hold",
        "_registry",
        "_requested_holder",
        "_right",
        "_scope",
        "_wait_timeout",
        "path",
    )

    def __init__(
        self,
        registry: LockRegistry,
        path: str,
        right: Right,
        *,
        holder: Holder | None,
        wait_timeout: float | None,
        max_hold: float,
        fence: Fence | None = None,
        header: bytes | None = None,
    ) -> None:
        self.path = path
        self._fence = fence
        self._header = header
        self._registry = registry
        self._right = right
        self._requested_holder = holder
        self._wait_timeout = wait_timeout
        self._max_hold = max_hold
        self._claim: Claim | None = None
        self._scope: CancelScope | None = None

    def __repr__(self) -> str:
        return f"<Lease ({self._right.name.lower()}) on {self.path}: {self._claim or 'not entered'}>"

    async def __aenter__(self) -> Self:
        if self._claim is not None:
            raise RuntimeError(f"{self!r} was entered already; ask the registry for another one")
        registry = self._registry
        fence = self._fence
        if fence is not None:
            fence.check(self.path)  # before a file could be created for a run that is over
        bound = current_effective_deadline()
        if bound == -math.inf:
            await checkpoint()  # cancelled already: raises, before anything was taken
        if bound != math.inf:
            bound = _clock.clock.now() + (bound - current_time())
        claim = registry.new_claim(self._requested_holder, self._max_hold, fence=fence, bound=bound)
        self._claim = claim = await registry.acquire(self.path, self._right, claim, self._wait_timeout)
        self._scope = scope = registry.new_scope()
        scope.__enter__()
        claim.scopes += (scope,)
        if claim.lost is not None:
            scope.cancel()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        scope, claim = self._scope, self._held()
        assert scope is not None
        claim.scopes = () if claim.handles == 1 else tuple(other for other in claim.scopes if other is not scope)
        lost, late = claim.lost, _clock.clock.now() - claim.deadline
        try:
            self._registry.release(claim)
        finally:
            # Whether the cancellation came from this lease. (trio's scopes also say True when nothing was raised.)
            ours = bool(scope.__exit__(kind, error, traceback)) and error is not None
        if error is not None and not ours:
            return False
        if lost is not None:
            raise lost
        if ours or (late >= 0 and claim.expires):
            message = f"{claim.holder} left the lease on {self.path} {late:.3f} s past its deadline"
            raise LeaseExpired(message, path=self.path, holder=claim.holder, overstayed_s=late)
        return False

    def _held(self) -> Claim:
        if self._claim is None:
            raise RuntimeError(f"{self!r}: use it inside `async with`")
        return self._claim

    @property
    def epoch(self) -> int:
        """Rises with each lease of this process."""
        return self._held().epoch

    @property
    def holder(self) -> Holder:
        """Who holds it."""
        return self._held().holder

    @property
    def acquired_at(self) -> float:
        """When it was granted (`time.monotonic`)."""
        return self._held().acquired_at

    @property
    def deadline(self) -> float:
        """When the block is cancelled (`time.monotonic`): the earliest of its own limit, its run's and its scope's.

        It is taken when the lease is entered: moving an enclosing scope's deadline later does not move it.
        """
        return self._held().deadline if self._claim else math.inf

    @property
    def lost(self) -> LeaseLost | None:
        """Why the right was taken away, if it was."""
        return self._held().lost

    def check(self) -> None:
        """Raise unless a write under this lease is legal now.

        Raises:
            LeaseLost: the right was taken away, the run has ended, or the block was left.
        """
        self._held().check(self.path)

    async def append(self, record: Mapping[str, Any]) -> Position:
        """Append one record: whole, behind all others. A checkpoint.

        Cancelled or failed, the record is not in the file; returned, it survives the death of this process.

        Raises:
            LeaseLost: as `check`.
            TranscriptError: no JSON object, or the operating system refused; the file is as before.
        """
        return await self.append_many((record,))

    async def append_many(self, records: Iterable[Mapping[str, Any]]) -> Position:
        """Append several records in order, each whole or absent; returns the position behind the last. A checkpoint.

        A crash in the middle leaves some of the first ones; an error or a cancellation leaves none.

        Raises:
            LeaseLost: as `check`.
            TranscriptError: as `append`.
        """
        claim, data = self._held(), encode_all(records, self.path)
        if self._right is Right.TURN:
            return await self._registry.append_lines(self.path, data, under=claim)
        await checkpoint()
        return self._registry.write(claim, self.path, data, self._header)

    def append_sync(self, record: Mapping[str, Any]) -> Position:
        """As `append`, from a worker thread of the block that holds this lease. Blocks that thread only.

        Raises what `append` raises.
        """
        claim, data = self._held(), encode_all((record,), self.path)
        if self._right is Right.TURN:
            return self._registry.append_lines_sync(self.path, data, under=claim)
        return self._registry.write(claim, self.path, data, self._header)

    async def read(self, *, last: int | None = None, on_error: OnError = "skip") -> Records:
        """Read the transcript's records: a whole prefix of them, never a torn one. A checkpoint.

        Raises:
            TranscriptError: it cannot be read, or with `on_error="raise"` has a broken line.
        """
        return await self._registry.read(self.path, last=last, on_error=on_error)
