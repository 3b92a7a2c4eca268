"""Defects of `locks`, each a patch of one function. A defect counts how often it was reached: one that never is shows
nothing."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

from locks import LeaseLost, _os
from locks._os import FileId
from locks.engines.kernel import KernelLock
from locks.lowlevel import FileClaim
from locks.rights import arbiter, claim, deadlock, hold_time, open_file, queue, steward, waiting
from locks.sidecar import guards, lockfile
from locks.sidecar import staleness as judging
from locks.transcript import appending, replacing, syncing

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
    release = arbiter.Arbiter.release

    def keep_waiting(self: arbiter.Arbiter, one: FileClaim, asked: FileClaim | None = None) -> None:
        if one.waits():
            reached["no_release_on_cancel"] += 1
        else:
            release(self, one, asked)

    plant(arbiter.Arbiter, "release", keep_waiting)


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
    start = hold_time.HoldTime.start

    def start_without(self: hold_time.HoldTime, grace: float) -> None:
        reached["no_grace"] += 1
        start(self, 0.0)

    plant(hold_time.HoldTime, "start", start_without)


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


def reclaimed_unseen() -> None:
    """Removes a lock file that was judged stale without looking at it again."""

    def reclaim(session_path: str, found: lockfile.Found) -> None:
        reached["reclaimed_unseen"] += 1
        _os.unlink(found.path)

    plant(lockfile, "_reclaim", reclaim)


def foreign_robbed() -> None:
    """Takes every lock file for stale."""
    judge = judging.judge

    def stale(*args: Any, **kwargs: Any) -> judging.Verdict:
        reached["foreign_robbed"] += 1
        return dataclasses.replace(judge(*args, **kwargs), stale=True)

    plant(lockfile, "judge", stale)


def lock_file_left() -> None:
    """Forgets to remove its lock file."""

    def leave(self: guards.LockFile) -> None:
        reached["lock_file_left"] += 1
        self.abandon()

    plant(guards.LockFile, "leave", leave)


def no_sync() -> None:
    """Does not wait for the disk."""

    async def sync(self: syncing.GroupSync, one: open_file.Entry, path: str) -> None:
        reached["no_sync"] += 1

    plant(syncing.GroupSync, "sync", sync)


def failed_sync_trusted() -> None:
    """Takes a sync that failed for one that did not."""
    flush = syncing._flush

    def flush_and_forget(owned: list[int], one: open_file.Entry, *args: Any, **kwargs: Any) -> None:
        flush(owned, one, *args, **kwargs)
        reached["failed_sync_trusted"] += bool(one.poisoned)
        one.poisoned = ""

    plant(syncing, "_flush", flush_and_forget)


def renamed_unlocked() -> None:
    """Gives the new file its name before anybody has locked it."""

    def follow(self: KernelLock, fd: int, file_id: FileId) -> KernelLock:
        reached["renamed_unlocked"] += 1
        return KernelLock(fd, file_id, self._right)

    plant(KernelLock, "follow", follow)


def later_records_lost() -> None:
    """Keeps nothing of what came after the position."""

    def keep_from(one: open_file.Entry, path: str, fd: int, size: int, *args: Any) -> int:
        reached["later_records_lost"] += 1
        return size

    plant(replacing, "_keep_from", keep_from)


def deadlock_unseen() -> None:
    """Waits for what waits for it."""

    def ring(self: deadlock.WaitGraph, *args: Any) -> None:
        reached["deadlock_unseen"] += 1

    plant(deadlock.WaitGraph, "_ring", ring)


def superseded_unlocked() -> None:
    """Gives the lock back between the loser and the winner."""
    take_away = queue.RightQueue.take_away

    def take_away_and_unlock(self: queue.RightQueue, *args: Any, keep: bool = False) -> bool:
        reached["superseded_unlocked"] += keep
        return take_away(self, *args)

    plant(queue.RightQueue, "take_away", take_away_and_unlock)


def suspended_revoked() -> None:
    """Revokes when the process goes on, as if it had been there all the time."""

    def restart_grace(self: hold_time.HoldTime, now: float) -> None:
        reached["suspended_revoked"] += 1

    plant(hold_time.HoldTime, "restart_grace", restart_grace)


def idle_beyond_max_hold() -> None:
    """Lets progress renew a lease for ever."""
    limit = hold_time.HoldTime._limit

    def without_max_hold(self: hold_time.HoldTime, now: float) -> None:
        reached["idle_beyond_max_hold"] += 1
        max_hold = self.max_hold
        self.max_hold = max_hold if self.idle is None else math.inf
        limit(self, now)
        self.max_hold = max_hold

    plant(hold_time.HoldTime, "_limit", without_max_hold)


def note_unread() -> None:
    """Nobody finishes the revocation that found a write under way."""

    def forgotten(self: claim.Claim, error: LeaseLost) -> None:
        reached["note_unread"] += 1

    plant(claim.Claim, "revoke_pending", property(lambda self: None, forgotten))


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
        reclaimed_unseen,
        foreign_robbed,
        lock_file_left,
        no_sync,
        failed_sync_trusted,
        renamed_unlocked,
        later_records_lost,
        deadlock_unseen,
        superseded_unlocked,
        suspended_revoked,
        idle_beyond_max_hold,
        note_unread,
    )
}
