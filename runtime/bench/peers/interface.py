"""What a peer is. A new peer is one entry in the tuple of its kind (`inside`, `between`, `jobs`, `gateways`)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, Protocol

Kind = Literal["inside", "between", "jobs", "gateway"]
"""Locks of one process; locks between processes; what runs jobs (task groups, schedulers, lanes); whole gateways."""
Backend = Literal["asyncio", "trio", "blocking"]
"""The event loop, or none: a blocking peer stops its thread while it waits."""


class Locks(Protocol):
    """Locks by key, as one process on one event loop uses them."""

    def hold(self, key: str) -> AbstractAsyncContextManager[Any]:
        """Wait for the lock of `key`, then hold it for the block.

        Every key is the path of a file in a directory that is there: locks on files need it, and ours makes its file
        even when it excludes tasks of one process only.
        """


class BlockingLocks(Protocol):
    """As `Locks`, for a peer that blocks its thread."""

    def hold(self, key: str) -> AbstractContextManager[Any]:
        """As `Locks.hold`."""


Job = Callable[[], Awaitable[None]]
Append = Callable[[dict[str, str]], Awaitable[object]]
Answer = Callable[[Append], Awaitable[None]]
"""What answers a message: it appends to the session's file."""


class Jobs(Protocol):
    """What runs jobs."""

    async def run(self, job: Job) -> None:
        """Start one job, and wait until it has ended."""

    async def message(self, session: str, answer: Answer) -> None:
        """Answer one message of a session, with no other answer of that session at the same time; wait for its end."""

    async def backlog(self, job: Job, count: int) -> None:
        """Submit `count` jobs that run one at a time, and wait until all have ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A lock or task group of a library.

    Invariant: `make` imports the library, so that a missing one is missed by its own peers only.
    """

    name: str
    kind: Kind
    make: Callable[[], Any]
    """Makes `Locks`, `BlockingLocks` (backend "blocking"), an async context manager of `Jobs`, or a story's `Side`."""
    backends: tuple[Backend, ...]
    about: str
    """One line for people: how it waits, or what it promises beyond the others."""
    limited: Callable[[float, float], Any] | None = None
    """Makes `Locks` that take the lock away from a holder after so many seconds and a grace, if the peer has that."""
    appends: bool = False
    """Whether what `hold` gives has `append(record)`, which writes a line of JSON."""
    needs: str | None = None
    """The distribution that it belongs to, if it is not one that is always there."""

    @property
    def missing(self) -> bool:
        """Whether its distribution is not installed."""
        if self.needs is None:
            return False
        try:
            version(self.needs)
        except PackageNotFoundError:
            return True
        return False
