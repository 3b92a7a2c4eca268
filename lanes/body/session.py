"""A session's transcript as one run uses it: every write asks first whether the run may still write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

from locks import Fence, Lease, Position, Records
from locks.lowlevel import TranscriptStore, encode_all


class Sessions(Protocol):
    """Where transcripts are, and who may write: a lock registry, or a store that machines share."""

    @property
    def store(self) -> TranscriptStore:
        """Reads and writes transcripts."""

    def lease_for(
        self,
        fence: Fence,
        path: str,
        *,
        header: bytes | None = None,
        wait_timeout: float | None = None,
        max_hold: float | None = None,
    ) -> Lease:
        """The write lease of a session, for the run that `fence` belongs to."""


class Session:
    """A session, for one run. Made by the run's context.

    Appends take a momentary write lease, so others may append meanwhile; they raise `RunEnded` or `Superseded` once the
    run has ended, was superseded, or has passed the grace after its cancellation: a dead run never writes.
    """

    __slots__ = ("_fence", "_header", "_sessions", "key", "path")

    def __init__(self, key: str, path: str, header: bytes | None, sessions: Sessions, fence: Fence) -> None:
        self.key = key
        self.path = path
        self._header = header
        self._sessions = sessions
        self._fence = fence

    @property
    def fence(self) -> Fence:
        """The run's permission to write."""
        return self._fence

    def __repr__(self) -> str:
        return f"<Session {self.key!r} at {self.path}, {self._fence!r}>"

    async def read(self, *, last: int | None = None, on_error: Literal["skip", "raise"] = "skip") -> Records:
        """The session's records, oldest first: a whole prefix of them. A checkpoint; takes no lock.

        Args:
            last: only the last so many.
            on_error: leave a broken line out (it is listed in `.skipped`), or raise.

        Raises:
            TranscriptError: it cannot be read, or has a broken line.
        """
        return await self._sessions.store.read(self.path, last=last, on_error=on_error, header=self._header)

    async def append(self, record: Mapping[str, Any]) -> Position:
        """Append one record behind all others, whole. A checkpoint.

        It waits for others' write leases without a bound of its own; the run's deadline cancels it.

        Returned, the record survives the death of this process, with `durability="sync"` a power cut too. Failed or
        cancelled, it is not in the file, unless `durability="sync"` was waiting for the disk: then it is.

        Raises:
            LeaseLost: the run may not write any more (`RunEnded`, `Superseded`), or its momentary lease was taken away
                (`Revoked`, `Superseded`). Nothing was written.
            DeadlockError: the holder of the write lease waits, over any number of steps, for something that the calling
                task holds. Nothing was written.
            TranscriptError: the record would not come back equal (the message names the place), or the operating system
                refused; the file is as before, but for a sync that failed: the message says so.
        """
        data = encode_all((record,), self.path)
        return await self._sessions.store.append(self.path, data, under=self._fence, header=self._header)

    def append_sync(self, record: Mapping[str, Any]) -> Position:
        """As `append`, from a worker thread of the run; blocks that thread until the event loop has done it.

        No cancellation reaches a thread, so nothing bounds the wait but the end of the write lease that it waits for.

        Raises what `append` raises, and besides:
            RuntimeError: on the event loop's own thread. Nothing was written.
        """
        data = encode_all((record,), self.path)
        return self._sessions.store.append_sync(self.path, data, under=self._fence, header=self._header)

    def lease(self, *, wait_timeout: float | None = None, max_hold: float | None = None) -> Lease:
        """The session's write lease, to append several records with nothing in between: `async with session.lease()`.

        Others wait meanwhile, so never hold it over a model call. It ends with the run, whatever is shielded.
        """
        return self._sessions.lease_for(
            self._fence, self.path, header=self._header, wait_timeout=wait_timeout, max_hold=max_hold
        )
