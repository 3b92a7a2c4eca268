"""What guards a right besides the lock of all processes: files beside the session, for foreign programs and people.

Our own processes exclude each other by the kernel lock alone. A guard is seen to by whoever has that lock, on the event
loop's thread and outside the file's mutex, so its check-then-unlink races with no other process of ours.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import Protocol

from . import _clock, _os, process
from .claim import Claim
from .engines.seam import Right
from .errors import TranscriptError
from .sidecar import note
from .sidecar.lockfile import Found, Written, path_of, release, take
from .sidecar.payload import MAX_HOLD_MS, Terms

FOREIGN_POLL_S = 0.05
"""How often a foreign lock file is looked at; the other side does the same."""
GAP_S = 0.06
"""What the other side needs to find the path free once, polling every 50 ms."""
REMEMBERED_S = 600.0


class Guard(Protocol):
    """One right's guard. Not entered, or entered for one claim."""

    next_try: float
    """When to ask again after a refusal."""
    other: Found | None
    """The foreign holder that refused it last."""

    def enter(self, claim: Claim, grace: float) -> bool:
        """Say that a claim holds the right; `False` when a foreign program does.

        Raises:
            TranscriptError: it cannot be said; nothing has changed.
        """

    def leave(self) -> OSError | None:
        """Say that nobody holds it any more; returns why that was not possible. Never raises."""

    def abandon(self) -> None:
        """Forget it, without touching the disk: the lock is another's now."""

    def forget(self) -> None:
        """Forget what was seen of others: the lock is not ours any more, and they may have come and gone since."""


class Manners:
    """How the guards of one registry treat foreign programs.

    Args:
        yield_to_foreign: leave them a gap before each of our own locks; `None` does so once one was seen.
    """

    def __init__(self, yield_to_foreign: bool | None) -> None:
        self._yields = yield_to_foreign
        self._seen_at: float | None = None

    def guard(self, right: Right) -> Guard:
        """The guard of a right."""
        return LockFile(self) if right is Right.WRITE else TurnNote()

    def met(self) -> None:
        """A foreign program was seen."""
        self._seen_at = _clock.clock.now()

    def yields(self) -> bool:
        """Whether a gap is due."""
        if self._yields is not None:
            return self._yields
        return self._seen_at is not None and _clock.clock.now() - self._seen_at < REMEMBERED_S


class LockFile:
    """The lock file of a session, `<file>.lock`, while somebody has its write lease."""

    def __init__(self, manners: Manners) -> None:
        self._manners = manners
        self._written: Written | None = None
        self._free_since: float | None = None
        self.next_try = 0.0
        self.other: Found | None = None

    def enter(self, claim: Claim, grace: float) -> bool:
        """Write it, unless a foreign program holds it or must be given the chance to."""
        now = _clock.clock.now()
        if now < self.next_try:
            return False
        if self.other is None and self._manners.yields() and not self._gap_is_over(claim.path, now):
            return False
        try:
            found = take(claim.path, _terms(claim, grace), self.other)
        except OSError as error:
            if claim.makes_room and error.errno in _os.NO_ROOM:
                # Our processes are kept out by the lock itself. A foreign program could come meanwhile only if it found
                # room for a lock file where we found none; one that had been there first was waited for.
                self.forget()
                return True
            claim.epoch = 0
            raise _cannot_take(claim.path, error) from error
        if isinstance(found, Found):
            claim.epoch = 0  # it gets a new one with the next try: other leases may begin before
            self.other = found
            self._free_since = None
            self._manners.met()
            self.next_try = now + FOREIGN_POLL_S
            return False
        self._written = found
        self.forget()
        return True

    def leave(self) -> OSError | None:
        """Remove it, if it is still what was written."""
        trouble = None if self._written is None else release(self._written)
        self._written = None  # afterwards: called again after an exception came in the middle, it finishes
        return trouble

    def abandon(self) -> None:
        """Leave it to whoever has the lock now: it is recognised as ours, and reclaimed."""
        written, self._written = self._written, None
        if written is not None:
            with suppress(OSError):  # the kernel lets go of a descriptor in any case
                _os.close(written.fd)

    def forget(self) -> None:
        """What was seen before somebody else had the lock says nothing any more."""
        self.other = self._free_since = None
        self.next_try = 0.0

    def _gap_is_over(self, path: str, now: float) -> bool:
        """Whether the path was free for long enough, or nothing in the directory has changed for as long."""
        if self._free_since is None:
            self._free_since = now
            try:
                quiet_s = process.wall() - _os.stat(os.path.dirname(path) or ".").st_mtime
            except OSError:
                quiet_s = 0.0
            if quiet_s >= GAP_S:
                return True
        self.next_try = self._free_since + GAP_S
        return now >= self.next_try


class TurnNote:
    """The note `<file>.turn`, which says who conducts a session: names for people, no lock."""

    def __init__(self) -> None:
        self.next_try = 0.0
        self.other: Found | None = None
        self._path: str | None = None

    def enter(self, claim: Claim, grace: float) -> bool:
        """Write the name; a failure is no reason not to hold."""
        note.write(claim.path, _terms(claim, grace))
        self._path = claim.path
        return True

    def leave(self) -> OSError | None:
        """Remove it."""
        if self._path is not None:
            note.remove(self._path)
        self._path = None  # afterwards, as above
        return None

    def abandon(self) -> None:
        """Leave it to the next holder, who overwrites it."""
        self._path = None

    def forget(self) -> None:
        """Nothing is remembered of others."""


def _terms(claim: Claim, grace: float) -> Terms:
    named = claim.given_holder or claim.fence
    lane, run_id = (named.lane, named.run_id) if named is not None else (None, None)
    return Terms(lane, run_id, claim.take_epoch(), round(min(claim.holds_at_most(grace) * 1000, MAX_HOLD_MS)))


def _cannot_take(session_path: str, error: OSError) -> TranscriptError:
    path = path_of(session_path)
    forbidden = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
    advice = "let this user create and remove files there, or use sidecar=False" if forbidden else "nothing was taken"
    if error.errno in _os.NO_ROOM:
        advice += "; deleting a session needs no room, and makes some"
    return TranscriptError(
        f"cannot create the lock file {path}, or replace what a dead process left there: "
        f"{error.strerror or error}; {advice}",
        path=path,
        errno=error.errno,
    )
