"""The legacy lock: a file beside the session, made with O_EXCL, looked for again and again, removed by its owner.

A model of what OpenClaw 2026.5.22 did, written from its behaviour (its figures stand in `Times`), faults included:

- A waiter looks every 50 ms. There is no queue: whoever looks first after the removal has the lock.
- A waiter gives up after 60 s, a holder may hold for 17 minutes. So a waiter can never outlast a slow holder.
- A lock is stale when its owner is dead, or when it is 30 minutes old. An owner that is alive is believed, and the
  owner of a leaked lock is the gateway itself.
- A watchdog looks once a minute and removes the files that this process has held for longer than they may. It does not
  tell the holder, which writes on: there is no fence.
- Nothing ties the lock to the task that took it: `release` must be called.

Rejected: a model that is worse than the original (no watchdog, a lock that is never freed) or better (a release in
`finally`). Either would make the comparison worthless.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio

from locks import _clock, process


@dataclass(frozen=True, slots=True)
class Times:
    """The times of the legacy lock, in seconds."""

    poll_s: float = 0.05
    wait_s: float = 60.0
    hold_s: float = 1020.0
    watch_s: float = 60.0
    stale_s: float = 1800.0
    half_written_s: float = 5.0
    """How old a file without a readable owner must be to count as stale."""

    def scaled(self, scale: float) -> Times:
        """The same times, so many times shorter. No waiter looks more often than every 2 ms: it would burn a core."""
        return Times(
            poll_s=max(self.poll_s / scale, 0.002),
            wait_s=self.wait_s / scale,
            hold_s=self.hold_s / scale,
            watch_s=self.watch_s / scale,
            stale_s=self.stale_s / scale,
            half_written_s=self.half_written_s / scale,
        )


class LegacyLockTimeout(Exception):
    """A waiter gave up. Nothing was taken."""


@dataclass(frozen=True, slots=True)
class Held:
    """A lock that this process has, and what its file must still be for a release to remove it."""

    lock_file: Path
    data: bytes
    since: float
    kept: Any
    """What the lock's registry keeps alive as long as it believes the lock to be held."""


class LegacyLock:
    """The legacy locks of one process. To be used on one event loop's thread."""

    def __init__(self, times: Times) -> None:
        self._times = times
        self.held: dict[Path, Held] = {}
        self.removed_by_watchdog = 0

    async def acquire(self, session: Path, kept: Any = None) -> Held:
        """Wait for the lock of a session file. A checkpoint; cancelled, it has taken nothing.

        Raises:
            LegacyLockTimeout: it was not free in any of the moments at which this waiter looked.
        """
        lock_file = session.with_name(session.name + ".lock")
        give_up_at = _clock.clock.now() + self._times.wait_s
        await anyio.lowlevel.checkpoint()
        while (held := self._take(lock_file, kept)) is None:
            if _clock.clock.now() >= give_up_at:
                raise LegacyLockTimeout(f"session file locked (timeout {self._times.wait_s * 1e3:.0f} ms): {lock_file}")
            await anyio.sleep(self._times.poll_s)
        return held

    def release(self, held: Held) -> bool:
        """Remove the file, if it is still the one that was written, and say whether it was."""
        if self.held.get(held.lock_file) is held:
            del self.held[held.lock_file]
        with suppress(FileNotFoundError):
            if held.lock_file.read_bytes() == held.data:
                held.lock_file.unlink()
                return True
        return False

    async def watch(self) -> None:
        """Remove the files that are held for too long. Runs until it is cancelled."""
        while True:
            await anyio.sleep(self._times.watch_s)
            for held in [*self.held.values()]:
                if _clock.clock.now() - held.since > self._times.hold_s:
                    self.removed_by_watchdog += self.release(held)

    def sweep(self, directory: Path) -> int:
        """Remove the stale lock files of a directory, as a start and a restart do; how many there were."""
        stale = [path for path in directory.glob("*.lock") if self._is_stale(path)]
        for path in stale:
            path.unlink(missing_ok=True)
        return len(stale)

    def _take(self, lock_file: Path, kept: Any) -> Held | None:
        try:
            fd = os.open(lock_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            # First looked at, then removed: a successor's fresh file may be removed instead, as it was then.
            if self._is_stale(lock_file):
                lock_file.unlink(missing_ok=True)
            return None
        try:
            data = self._payload()
            os.write(fd, data)
        finally:
            os.close(fd)
        held = self.held[lock_file] = Held(lock_file, data, _clock.clock.now(), kept)
        return held

    def _payload(self) -> bytes:
        me = process.me()
        now = datetime.now(UTC).isoformat(timespec="microseconds")
        owner = {"pid": me.pid, "createdAt": now, "maxHoldMs": round(self._times.hold_s * 1e3)}
        if me.starttime is not None:
            owner["starttime"] = me.starttime
        return json.dumps(owner, indent=2).encode() + b"\n"

    def _is_stale(self, lock_file: Path) -> bool:
        try:
            owner = json.loads(lock_file.read_bytes())
            pid, starttime = int(owner["pid"]), owner.get("starttime")
            age_s = (datetime.now(UTC) - datetime.fromisoformat(owner["createdAt"])).total_seconds()
        except FileNotFoundError:
            return False
        except (ValueError, TypeError, KeyError, AttributeError):
            with suppress(FileNotFoundError):
                return time.time() - lock_file.stat().st_mtime > self._times.half_written_s
            return False
        if not process.is_alive(pid) or age_s > self._times.stale_s:
            return True
        if starttime is not None and process.starttime(pid) not in (None, starttime):
            return True  # the number of a dead owner, used again
        return pid == process.me().pid and lock_file not in self.held  # an orphan with our own number
