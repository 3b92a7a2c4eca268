"""What a registry holds at an instant, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .holder import Holder


@dataclass(frozen=True, slots=True)
class HeldRight:
    """One right that is held in this process, for status displays."""

    path: str
    right: Literal["turn", "write"]
    holder: Holder
    epoch: int
    held_s: float
    remaining_s: float | None
    """Until it is taken away at the latest, grace included; `None` without a limit."""
    waiting: int
    """Claims of this process that queue behind it."""


@dataclass(frozen=True, slots=True)
class WaitingClaim:
    """One claim of this process that waits for a right, for status displays."""

    path: str
    right: Literal["turn", "write"]
    holder: Holder
    """The waiter's name."""
    waited_s: float
    behind: Holder | None
    """The holder of the right, in this process or as a foreign lock file says; `None` when that is not known."""


@dataclass(frozen=True, slots=True)
class RegistryStatistics:
    """What a registry holds at this instant, counted now, and its totals since it was made."""

    sessions: int
    """Files that are held or waited for."""
    held: int
    """Rights held."""
    waiting: int
    """Claims that wait."""
    competing: int
    """Rights for which the first that waits here waits for another process."""
    granted: int
    """Total of rights granted."""
    revoked: int
    """Total of rights taken away."""
    appended: int
    """Total of acknowledged writes."""
    holders: tuple[HeldRight, ...]
    """Every right that is held in this process."""
    waiters: tuple[WaitingClaim, ...]
    """Every claim that waits, by file and right, in the order in which they go on."""
