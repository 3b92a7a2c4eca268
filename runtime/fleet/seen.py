"""What is seen of several processes together, wherever they are, and what asks them."""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

from ..status import protocol
from ..status.figures import Figures

MOST_SESSIONS = 500


class FleetError(Exception):
    """The processes cannot be looked at, or the one that was asked does not answer. The message is one line."""


class ProcessSeen(msgspec.Struct, frozen=True, kw_only=True):
    """A process of a fleet."""

    key: str
    """What `Fleet.ask` calls it."""
    name: str
    host: str
    pid: int
    place: str
    """The directory or the store whose sessions it serves; empty where it does not say so."""
    state: Literal["alive", "frozen", "silent", "late", "dead"]
    """`frozen`: its event loop is blocked. `silent`: it is there and does not answer. On a store, `late`: silent for so
    long that it has given itself up; `dead`: others take over what it had."""
    silent_s: float
    """How long ago it was heard of."""
    sessions: int
    """Those that it conducts; of a process on a directory, those that its runs name."""
    open: int
    """Messages that wait or are answered; of a process on a directory, its runs that wait or run."""
    figures: Figures | None
    """`None` while it has not reported any."""
    why: str = ""
    """Why there are no figures, or old ones only."""


class SessionSeen(msgspec.Struct, frozen=True, kw_only=True):
    """A session that one of them conducts, or that waits for one."""

    session: str
    process: str | None
    """The name of the process that conducts it."""
    open: int
    """Messages, or runs, that wait or are answered."""
    oldest_s: float | None
    """How long ago the oldest of them came."""
    wanted: bool = False
    """Whether another process waits for it."""


class FleetSeen(msgspec.Struct, frozen=True, kw_only=True):
    """All processes of a fleet at an instant, by name."""

    processes: list[ProcessSeen]
    sessions: int
    """Sessions that there are."""
    conducted: int
    unowned: int
    """Sessions with open messages that wait for a process."""


class Fleet(Protocol):
    """Several processes. All are checkpoints, for one task at a time or several."""

    name: str
    """What they have in common, to be put behind "3 processes"."""

    async def look(self) -> FleetSeen:
        """All processes, as they are or as they have last reported.

        Raises:
            FleetError: they cannot be looked at.
        """

    async def sessions(self, *, process: str | None = None, at_most: int = MOST_SESSIONS) -> list[SessionSeen]:
        """Sessions with something open, the one that has waited longest first.

        Args:
            process: only those that processes of this name conduct.

        Raises:
            FleetError: they cannot be looked at.
        """

    async def ask(self, key: str, question: protocol.Question, by: str) -> protocol.Answer:
        """What one process answers to a question of the status socket. Bounded; cancelled, it may have done it.

        Args:
            by: who asks, for its log.

        Raises:
            FleetError: it has gone, or does not answer in time; what was asked for may be done.
        """

    async def aclose(self) -> None:
        """Let go of what it holds."""
