"""What a body is given: its run, its sessions, and what it needs to end well."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio

from locks import InvalidSession, _clock

from .run import Run
from .session import Session

if TYPE_CHECKING:
    from .execution import Execution

_CLEANUP_SHARE = 0.95  # of the grace; the rest lets a body whose clean-up was cut off still end by itself


class RunContext:
    """The first argument of every body. `run` and `services` are for reading; the rest acts for this run only."""

    __slots__ = ("_execution", "_session", "run", "services")

    def __init__(self, execution: Execution, services: Mapping[str, Any]) -> None:
        self._execution = execution
        self._session: Session | None = None
        self.run: Run = execution.run
        self.services = services
        """What the supervisor's service factories have made, by name."""

    def __repr__(self) -> str:
        return f"<RunContext of {self.run!r}>"

    @property
    def session(self) -> Session:
        """The session that the run names.

        Raises:
            InvalidSession: it names none.
        """
        if self._session is None:
            if self.run.session is None:
                raise InvalidSession(
                    f"run {self.run.id} on lane {self.run.lane} names no session; submit it with session="
                )
            self._session = self.session_of(self.run.session)
        return self._session

    def session_of(self, key: str) -> Session:
        """Another session, to read and to append announcements to; conducting it needs a run of its own.

        Raises:
            InvalidSession: the key cannot name a session.
        """
        return self._execution.session(key)

    @property
    def cancelled(self) -> bool:
        """Whether the run was asked to end. For loops in worker threads, which no cancellation reaches."""
        return self._execution.ending or self.run.outcome is not None

    def emit(self, event: Any) -> None:
        """Hand something to whoever iterates `run.events()`. Never waits; after the end it is dropped and counted."""
        self.run._emit(event)

    def progress(self) -> None:
        """Say that the run gets on: starts its `idle_timeout` anew, within its hard `timeout`. On the loop's thread."""
        self._execution.progress()

    @asynccontextmanager
    async def cleanup(self) -> AsyncIterator[None]:
        """A block that the run's cancellation does not interrupt, bounded by the grace, in which it may still write.

        What is not done by then is cut off; code behind the block sees the cancellation again.
        """
        now = _clock.clock.now()
        with anyio.CancelScope(shield=True) as scope:
            remaining = self._execution.grace_left() * _CLEANUP_SHARE
            scope.deadline = anyio.current_time() + remaining if now < self._execution.fence.end_at else -float("inf")
            yield
