"""What a registry holds at an instant: frozen, counted afresh from the state itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from . import _clock
from .engines.interface import Right
from .holder import Holder
from .rights.open_files import OpenFiles


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
    """Who waits."""
    waited_s: float
    behind: Holder | None
    """Who has the right, in this process or as a foreign lock file says; `None` when that is not known."""


@dataclass(frozen=True, slots=True)
class RegistryStatistics:
    """What a registry holds at this instant, counted afresh, and its totals since it was made."""

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


def count(files: OpenFiles, *, competing: int, granted: int, revoked: int, appended: int) -> RegistryStatistics:
    """Count what a registry holds now, beside its totals."""
    queues = [queue for entry in files for queue in entry.queues.values()]
    return RegistryStatistics(
        sessions=len(files),
        held=sum(queue.holder is not None for queue in queues),
        waiting=sum(len(queue.waiting) for queue in queues),
        competing=competing,
        granted=granted,
        revoked=revoked,
        appended=appended,
        holders=tuple(held_rights(files)),
        waiters=tuple(_waiting(files)),
    )


def held_rights(files: OpenFiles) -> list[HeldRight]:
    """Every right that is held, with its holder."""
    now = _clock.clock.now()
    return [
        HeldRight(
            path=entry.path,
            right=_name(queue.right),
            holder=claim.holder,
            epoch=claim.epoch,
            held_s=now - claim.acquired_at,
            remaining_s=claim.remaining(),
            waiting=len(queue.waiting),
        )
        for entry in files
        for queue in entry.queues.values()
        if (claim := queue.holder) is not None
    ]


def _waiting(files: OpenFiles) -> Iterator[WaitingClaim]:
    now = _clock.clock.now()
    for entry in files:
        for queue in entry.queues.values():
            foreign = queue.guard.foreign_holder if queue.guard is not None else None
            behind = foreign if queue.holder is None else queue.holder.holder
            for claim in queue.waiting:
                yield WaitingClaim(claim.path, _name(queue.right), claim.holder, now - claim.arrived_at, behind)


def _name(right: Right) -> Literal["turn", "write"]:
    return "turn" if right is Right.TURN else "write"
