"""What a body's context needs of the scheduler, stated from the side of the body."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from locks import Fence

from ..run import Body, Run
from .inbox import Inbox
from .session import Session


class Permit(Protocol):
    """One attempt at a run, as its body may use it. Each further attempt has another one."""

    run: Run
    fence: Fence
    """Its permission to write."""
    killers: set[Callable[[], None]] | None
    """What ends the processes that it runs."""

    @property
    def inbox(self) -> Inbox:
        """What is said to it while it runs."""

    @property
    def ending(self) -> bool:
        """Whether it was asked to end."""

    def is_over(self) -> bool:
        """Whether it has an outcome, or another attempt has taken its place."""

    def grace_left(self) -> float:
        """Seconds that a clean-up may take from now."""

    def progress(self) -> None:
        """Start the idle budget again, within the hard deadline."""

    def emit(self, event: Any) -> None:
        """Hand an event to the readers of the run.

        Raises:
            WrongThread: on another thread than the event loop's.
        """

    def session(self, key: str) -> Session:
        """A session that it may read and append to.

        Raises:
            InvalidSession: the key cannot name a session.
        """

    def submit(
        self,
        lane: str,
        fn: Body,
        args: tuple[Any, ...],
        *,
        detached: bool,
        session: str | None,
        turn: bool,
        timeout: float | None,
        priority: str | None,
    ) -> Run:
        """Queue a child of its run, or a run that goes on by itself. Raises as `RunContext.submit`."""
