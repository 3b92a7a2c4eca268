"""Counts what a registry holds at an instant, from the state itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from .. import _clock
from ..engines.interface import Right
from ..statistics import HeldRight, RegistryStatistics, WaitingClaim
from .grants import Grants
from .open_files import OpenFiles


def count(grants: Grants, appended: int) -> RegistryStatistics:
    """Count what a registry holds now, beside its totals."""
    files = grants.files
    queues = [queue for entry in files for queue in entry.queues.values()]
    return RegistryStatistics(
        sessions=len(files),
        held=sum(queue.holder is not None for queue in queues),
        waiting=sum(len(queue.waiting) for queue in queues),
        competing=len(grants.room.competing),
        granted=grants.granted,
        revoked=grants.steward.revoked,
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
            held_s=now - claim.time.acquired_at,
            remaining_s=claim.time.remaining(),
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
