"""Defects of `locks`, each a patch of one function. A defect counts how often it was reached: one that never is shows
nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from locks import LeaseLost, _os, claim, queue, registry, steward, waiting
from locks.engines.kernel import KernelLock
from locks.transcript import appending

reached: Counter[str] = Counter()


def plant(owner: Any, name: str, replacement: object) -> None:
    """Replace what must be there."""
    assert hasattr(owner, name), f"{owner!r} has no {name}: the defect is out of date"
    setattr(owner, name, replacement)


def no_tail_seal() -> None:
    """Appends behind a torn tail."""

    def seal(entry: Any, fd: int, size: int) -> int:
        reached["no_tail_seal"] += 1
        return size

    plant(appending, "seal", seal)


def no_roll_back() -> None:
    """Leaves what a failed write has written."""

    def ftruncate(fd: int, size: int) -> None:
        reached["no_roll_back"] += 1

    plant(_os, "ftruncate", ftruncate)


def no_release_on_cancel() -> None:
    """A waiter that is cancelled stays in the queue."""
    release = registry.LockRegistry.release

    def keep_waiting(self: registry.LockRegistry, one: claim.Claim) -> None:
        if one.waits():
            reached["no_release_on_cancel"] += 1
        else:
            release(self, one)

    plant(registry.LockRegistry, "release", keep_waiting)


def unchecked_write() -> None:
    """Writes without asking whether the claim and its run still may."""

    def check(self: claim.Claim, path: str) -> None:
        reached["unchecked_write"] += 1

    plant(claim.Claim, "check", check)


def ticket_ignored() -> None:
    """Takes whatever is free, whoever waited longer."""

    def nobody(*args: Any) -> None:
        reached["ticket_ignored"] += 1

    plant(KernelLock, "lowest_before", nobody)
    plant(KernelLock, "anyone_before", nobody)


def unchecked_identity() -> None:
    """The steward unlocks without looking whether the lease is still the one it means."""

    def take_away(self: queue.RightQueue, one: claim.Claim, error: LeaseLost, *args: Any, **kwargs: Any) -> bool:
        reached["unchecked_identity"] += 1
        one.state, one.lost = claim.ClaimState.LOST, error
        if self.lock is not None:
            self.lock.unlock()
        return True

    plant(queue.RightQueue, "take_away", take_away)


def no_unlock() -> None:
    """Forgets to give the right back to other processes."""

    def unlock(self: KernelLock) -> None:
        reached["no_unlock"] += 1

    plant(KernelLock, "unlock", unlock)


def no_lock() -> None:
    """Believes to have the right without asking the kernel."""

    def try_lock(self: KernelLock) -> bool:
        reached["no_lock"] += 1
        return True

    plant(KernelLock, "try_lock", try_lock)


def no_grace() -> None:
    """Takes the right away at the deadline."""
    start = claim.Claim.start

    def start_without(self: claim.Claim, grace: float) -> None:
        reached["no_grace"] += 1
        start(self, 0.0)

    plant(claim.Claim, "start", start_without)


def endless_grace() -> None:
    """Never takes the right away."""

    def look_at(self: steward.Steward, one: claim.Claim, now: float) -> float:
        reached["endless_grace"] += 1
        return float("inf")

    plant(steward.Steward, "_look_at", look_at)


def lost_wake_up() -> None:
    """Nobody takes over looking after the files of other processes."""
    update = waiting.WaitingRoom.update

    def update_without(self: waiting.WaitingRoom, entry: Any, one: queue.RightQueue) -> None:
        led = self._leader is not None
        leader = self._leader
        update(self, entry, one)
        if led and leader is not None and not leader.waits():
            reached["lost_wake_up"] += 1
            self._leader = leader  # as if it still looked after them

    plant(waiting.WaitingRoom, "update", update_without)


def constant_epoch() -> None:
    """Gives every lease the same epoch."""

    class Constant:
        def __next__(self) -> int:
            reached["constant_epoch"] += 1
            return 7

    plant(claim, "_epochs", Constant())


DEFECTS: dict[str, Callable[[], None]] = {
    defect.__name__: defect
    for defect in (
        no_tail_seal,
        no_roll_back,
        no_release_on_cancel,
        unchecked_write,
        ticket_ignored,
        unchecked_identity,
        no_unlock,
        no_lock,
        no_grace,
        endless_grace,
        lost_wake_up,
        constant_epoch,
    )
}
