"""The write lease of a session in the database."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import anyio

from locks import (
    Fence,
    Holder,
    Lease,
    LeaseExpired,
    LeaseLost,
    LeaseTimeout,
    Position,
    Records,
    TranscriptError,
    _clock,
)
from locks.checks import instant
from locks.lowlevel import OnError, encode_all

BUSY_S = 0.05
"""How often what another run's write lease stands in the way of is tried again."""


class Leased(Protocol):
    """The transcripts that a write lease is on."""

    def check(self, path: str, fence: Fence | None) -> None:
        """Raise unless a write is legal, as far as this process knows."""

    async def take_lease(self, path: str, nonce: int, seconds: float) -> bool:
        """Have the lease, unless another run does; returns whether it has. A checkpoint; cancelled, it may have it."""

    def leave_lease(self, path: str, nonce: int) -> None:
        """Give the lease back, if it is had. Never blocks."""

    async def append(self, path: str, data: bytes, *, under: Fence, writer: int) -> Position:
        """Append whole lines under the lease."""

    def append_sync(self, path: str, data: bytes, *, under: Fence, writer: int) -> Position:
        """As `append`, from a worker thread."""

    async def read(self, path: str, *, last: int | None, on_error: OnError) -> Records:
        """Read the records."""

    async def replace(
        self, path: str, records: Iterable[Mapping[str, Any]], through: Position, under: Fence, writer: int
    ) -> Position:
        """Put records in the place of what there is up to a position."""


class StoreLease(Lease):
    """The write lease of a session in the database: nothing comes in between. See `locks.Lease`.

    It is a number in the session's row, which each append of others asks, and the server's clock ends at `max_hold`, so
    that the end of a process does.
    """

    # A lease to its users; it shares no state with those on files, whose constructor it does not call.
    def __init__(
        self, transcripts: Leased, fence: Fence, path: str, wait_timeout: float | None, max_hold: float
    ) -> None:
        self.path = path
        self._transcripts, self._run, self._wait_timeout, self._max_hold = transcripts, fence, wait_timeout, max_hold
        self._nonce = secrets.randbits(62) + 1
        self._read_to: Position | None = None
        self._scope: anyio.CancelScope | None = None
        self._acquired_at = self._deadline = 0.0
        self._expires = False
        self._entered = False

    def __repr__(self) -> str:
        return f"<StoreLease on {self.path}: {'held' if self._entered else 'not held'}>"

    @property
    def holder(self) -> Holder:
        """The holder's name."""
        return self._run.holder

    @property
    def epoch(self) -> int:
        """A number of its own; it does not rise."""
        return self._nonce

    @property
    def acquired_at(self) -> float:
        """When it was granted (`time.monotonic`)."""
        return self._acquired_at

    def progress(self) -> bool:
        """There is no idle limit here to start again."""
        return False

    def end_by(self, at: float) -> None:
        """Cancel the block now; what it may still write ends at `at` (`time.monotonic`), if not earlier anyway."""
        self._deadline, self._expires = min(self._deadline, instant("at", at)), True
        if self._scope is not None:
            self._scope.cancel()

    @property
    def deadline(self) -> float:
        """When the block is cancelled (`time.monotonic`)."""
        return self._deadline

    @property
    def lost(self) -> LeaseLost | None:
        """Why the right was taken away, if it was."""
        try:
            self.check()
        except LeaseLost as error:
            return error
        return None

    def check(self) -> None:
        """Raise unless a write under this lease is legal now."""
        if not self._entered:
            raise LeaseLost(f"the block of the lease on {self.path} was left", path=self.path)
        if self._expires and _clock.clock.now() >= self._deadline:
            raise LeaseLost(f"the lease on {self.path} has passed its deadline", path=self.path)
        self._transcripts.check(self.path, self._run)

    async def __aenter__(self) -> Self:
        if self._scope is not None:
            raise RuntimeError(f"the lease on {self.path} was entered already; ask the session for another one")
        transcripts, began = self._transcripts, _clock.clock.now()
        transcripts.check(self.path, self._run)
        while True:
            asked = _clock.clock.now()
            if await self._set(self._max_hold):
                break
            waited = _clock.clock.now() - began
            if self._wait_timeout is not None and waited >= self._wait_timeout:
                raise LeaseTimeout(
                    f"the write lease on {self.path} was not free within {waited:.3f} s",
                    path=self.path,
                    waited_s=waited,
                )
            await anyio.sleep(BUSY_S)
            transcripts.check(self.path, self._run)
        self._entered, self._acquired_at = True, _clock.clock.now()
        self._expires = asked + self._max_hold < self._run.deadline  # else its run ends, and what it writes with it
        self._deadline = asked + self._max_hold if self._expires else self._run.deadline
        left = self._deadline - _clock.clock.now() if self._expires else math.inf
        self._scope = anyio.CancelScope(deadline=anyio.current_time() + left)
        self._scope.__enter__()
        return self

    async def _set(self, seconds: float) -> bool:
        try:
            return await self._transcripts.take_lease(self.path, self._nonce, seconds)
        except anyio.get_cancelled_exc_class():
            self._transcripts.leave_lease(self.path, self._nonce)  # it may have been granted
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Literal[False]:
        scope, lost = self._scope, self.lost
        assert scope is not None
        late = _clock.clock.now() - self._deadline
        self._transcripts.leave_lease(self.path, self._nonce)
        self._entered = False
        # Whether the cancellation is this lease's own. (trio's scopes also say True when nothing was raised.)
        ours = bool(scope.__exit__(kind, error, traceback)) and error is not None
        if error is not None and not ours:
            return False
        if ours or (self._expires and late >= 0):
            late = max(0.0, late)
            message = f"{self.holder} left the lease on {self.path} {late:.3f} s past its deadline"
            raise LeaseExpired(message, path=self.path, holder=self.holder, overstayed_s=late)
        if lost is not None:
            raise lost
        return False

    async def append(self, record: Mapping[str, Any]) -> Position:
        """Append one record."""
        return await self.append_many((record,))

    async def append_many(self, records: Iterable[Mapping[str, Any]]) -> Position:
        """Append several records: all of them, or none."""
        self.check()
        data = encode_all(records, self.path)
        return await self._transcripts.append(self.path, data, under=self._run, writer=self._nonce)

    def append_sync(self, record: Mapping[str, Any]) -> Position:
        """As `append`, from a worker thread."""
        self.check()
        data = encode_all((record,), self.path)
        return self._transcripts.append_sync(self.path, data, under=self._run, writer=self._nonce)

    async def read(self, *, last: int | None = None, on_error: OnError = "skip") -> Records:
        """Read the records."""
        records = await self._transcripts.read(self.path, last=last, on_error=on_error)
        self._read_to = records.position or self._read_to
        return records

    async def replace(self, records: Iterable[Mapping[str, Any]], *, through: Position | None = None) -> Position:
        """Put these records in the place of what the session has up to `through`."""
        self.check()
        end = through or self._read_to
        if end is None:
            raise TranscriptError(f"{self.path} was not read through this lease; allowed: `through`", path=self.path)
        self._read_to = await self._transcripts.replace(self.path, records, end, self._run, self._nonce)
        return self._read_to
