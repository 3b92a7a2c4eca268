"""The guards of a session's rights: files beside it, for foreign programs and people.

Sessions whose names no foreign program knows get no lock file (`ForeignPolicy.beside`); `lanes.layout` says which.

Our own processes exclude each other by the kernel lock alone. Only the process that has that lock enters or leaves a
guard, on the event loop's thread and outside the file's mutex, so its check-then-unlink races with no other process of
ours.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from .. import _clock, _os, process
from ..engines.interface import Right
from ..errors import TranscriptError
from ..holder import Holder
from ..rights.claim import Claim
from ..rights.guard import Beside, Change, Named
from . import turn_note
from .held import Written, change_of, release
from .lockfile import Found, find, is_left_over, path_of, take
from .payload import MAX_HOLD_MS, Terms
from .rhythm import POLL_S, Rhythm

FOREIGN_POLL_S = POLL_S
GAP_S = 0.06
"""What the other side needs to find the path free once, polling every 50 ms."""
REMEMBERED_S = 600.0
_RHYTHMS = 64
_LOOKS_AT_EACH, _LOOK_EVERY_S = 16, 0.0002
"""So many appends of a hold look each at what others have done to the lock file; after that, so often."""


class ForeignPolicy:
    """How the guards of one registry treat foreign programs.

    Args:
        yield_to_foreign: leave them a gap before each of our own locks; `None` does so once one was seen.
        auto: whether sessions that they do not know, by `leave_out`, have no lock files.
    """

    def __init__(self, yield_to_foreign: bool | None, *, auto: bool = False) -> None:
        self._leaves_gap = yield_to_foreign
        self._auto = auto
        self._own: dict[str, Callable[[str], bool]] = {}
        """By directory, which names in it no foreign program knows."""
        self._seen_at: float | None = None
        self._rhythms: dict[str, Rhythm] = {}
        """Of the paths that a foreign program was waited for last; an idle session keeps nothing else."""

    def leave_out(self, directory: str, is_own: Callable[[str], bool]) -> None:
        """See `LockRegistry.leave_out`."""
        self._own[directory] = is_own

    def beside(self, right: Right, path: str) -> Beside:
        """What there is beside the session at a path, for a right."""
        if right is Right.TURN:
            return _TURN
        if self._auto:
            directory, name = os.path.split(path)
            if directory in self._own and self._own[directory](name):
                return _OWN
        lock_file = LockFile(self)
        return Beside(lock_file, lock_file)

    def foreign_seen(self) -> None:
        """A foreign program was seen."""
        self._seen_at = _clock.clock.now()

    def rhythm(self, path: str) -> Rhythm:
        """What is known of the foreign holds of a path."""
        found = self._rhythms.pop(path, None) or Rhythm()
        while len(self._rhythms) >= _RHYTHMS:
            del self._rhythms[next(iter(self._rhythms))]
        self._rhythms[path] = found
        return found

    def may_follow(self, path: str) -> bool:
        """Whether no gap is due on a path, because foreign programs have had it often enough before us."""
        return path in self._rhythms and self._rhythms[path].may_follow()

    def leaves_gap(self) -> bool:
        """Whether a gap is due."""
        if self._leaves_gap is not None:
            return self._leaves_gap
        return self._seen_at is not None and _clock.clock.now() - self._seen_at < REMEMBERED_S


class LockFile:
    """The lock file of a session, `<file>.lock`, while a claim of this process has its write lease."""

    def __init__(self, policy: ForeignPolicy) -> None:
        self._policy = policy
        self._written: Written | None = None
        self._told = False
        """Whether it was said what others have done to it, since it was written."""
        self._looks = 0
        self._looked_at = 0.0
        self._free_since: float | None = None
        self._tries = 1
        self.next_try = 0.0
        self.other: Found | None = None

    def enter(self, claim: Claim, grace: float) -> bool:
        """Write it, unless a foreign program holds it or must be given the chance to."""
        now = _clock.clock.now()
        if now < self.next_try:
            return False
        if self.other is None and self._policy.leaves_gap() and not self._gap_is_over(claim.path, now):
            return False
        try:
            found = take(
                claim.path,
                _terms(claim, grace),
                self.other,
                we_hold_s=claim.time.may_last(grace),
                tries=self._tries,
            )
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
            self._policy.foreign_seen()
            rhythm, now = self._policy.rhythm(claim.path), _clock.clock.now()
            rhythm.saw((found.file_id, found.data), now - found.began_at, now)
            self.next_try, self._tries = rhythm.next_look(now)
            return False
        if self.other is not None:
            self._policy.rhythm(claim.path).ended()
        self._written, self._told, self._looks = found, False, 0
        self.forget()
        return True

    def leave(self) -> OSError | None:
        """Remove it, if it is still what was written."""
        trouble = None if self._written is None else release(self._written, told=self._told)
        self._written = None  # afterwards: called again after an exception came in the middle, it finishes
        return trouble

    @property
    def foreign_holder(self) -> Holder | None:
        """The holder that its file names."""
        return None if self.other is None else self.other.holder

    def holder_elsewhere(self, path: str, left_by: Claim | None = None) -> Named | None:
        """The holder that the lock file names, found for this or looked for now."""
        try:
            found = self.other or find(path)
        except (OSError, TranscriptError):
            return None
        if found is None or (
            found.payload is not None and _is_of(left_by, found.payload.instance, found.payload.epoch)
        ):
            return None
        words = f"{found.who} holds it, since {found.held_s:.3f} s, for at most {found.remaining_s:.3f} s more"
        return Named(found.holder, found.remaining_s, words)

    def disturbed(self) -> Change | None:
        """What has become of it, if it is not what was written any more; once."""
        written = self._written
        if written is None or self._told:
            return None
        if self._looks < _LOOKS_AT_EACH:
            self._looks += 1
        else:  # appends that follow each other closely: a look takes a twelfth of the time of each
            now = _clock.clock.now()
            if 0.0 < now - self._looked_at < _LOOK_EVERY_S:
                return None
            self._looked_at = now
        try:
            found = _os.fstat(written.fd)
            if found.st_ctime_ns == written.changed_ns and found.st_nlink == 1:
                return None
            change = change_of(written)
        except OSError:
            return None  # leaving reports it
        if change is None:
            # A backup has given it a second name, for one: no harm.
            self._written = written._replace(changed_ns=found.st_ctime_ns)
            return None
        self._told = True
        if change.foreign:
            self._policy.foreign_seen()
        return change

    def abandon(self) -> None:
        """Leave it to the process that has the lock now: it is recognised as ours, and reclaimed."""
        written, self._written = self._written, None
        if written is not None:
            with suppress(OSError):  # the kernel lets go of a descriptor in any case
                _os.close(written.fd)

    def forget(self) -> None:
        """What was seen before another process had the lock says nothing any more."""
        self.other = self._free_since = None
        self.next_try, self._tries = 0.0, 1

    def _gap_is_over(self, path: str, now: float) -> bool:
        """Whether the path was free for long enough, or nothing in the directory has changed for as long."""
        if self._free_since is None:
            if self._policy.may_follow(path):
                return True
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
    """The note `<file>.turn`, which names the conductor of a session: for people, no lock."""

    def clear(self, path: str) -> None:
        """Remove it, whoever has written it."""
        turn_note.remove(path)

    def write(self, claim: Claim, grace: float) -> None:
        """Write the name; a failure is no reason not to hold."""
        turn_note.write(claim.path, _terms(claim, grace))

    def remove(self, claim: Claim) -> None:
        """Remove it, unless it names another claim."""
        named = turn_note.read(claim.path)
        if named is None or _is_of(claim, named.instance, named.epoch):
            turn_note.remove(claim.path)

    def holder_elsewhere(self, path: str, left_by: Claim | None = None) -> Named | None:
        """The holder that the note names, unless a process has left it there by dying."""
        noted = _noted(path, left_by)
        return None if noted is None else Named(noted.holder, None, f"{noted.holder} holds it")


class Conducting(NamedTuple):
    """What the note says of a session that is conducted."""

    holder: Holder
    held_s: float
    """For how long, by the clocks of the wall; the note is written a moment after the turn was taken."""


def conductor_of(path: str) -> Conducting | None:
    """The conductor of a session that its note names, in whatever live process of this host. Never raises.

    A turn that is younger than some 50 ms has no note, and neither has one where none could be written.
    """
    return _noted(path)


def _noted(path: str, left_by: Claim | None = None) -> Conducting | None:
    """What the note says, unless a process has left it there by dying."""
    named = turn_note.read(path)
    if named is None or named.pid is None or _is_of(left_by, named.instance, named.epoch) or is_left_over(named):
        return None
    held_s = 0.0 if named.created_at is None else max(0.0, process.wall() - named.created_at)
    return Conducting(Holder(named.lane, named.run_id, named.pid), held_s)


class Conductor:
    """The name of a writer, where there is no lock file: most writes are those of the session's conductor."""

    def holder_elsewhere(self, path: str, left_by: Claim | None = None) -> Named | None:
        """The conductor that the note names: as the holder, if it is in another process."""
        named = _NOTE.holder_elsewhere(path, left_by)
        if named is None or named.holder is None:
            return None
        words = f"another process holds it, while {named.holder} conducts the session"
        return Named(None if named.holder.pid == process.me().pid else named.holder, None, words)


_NOTE = TurnNote()
_TURN, _OWN = Beside(_NOTE, note=_NOTE), Beside(Conductor())


def _is_of(claim: Claim | None, instance: str | None, epoch: int | None) -> bool:
    return claim is not None and instance == process.me().instance and epoch == claim.epoch


def _terms(claim: Claim, grace: float) -> Terms:
    named = claim.given_holder or claim.fence
    lane, run_id = (named.lane, named.run_id) if named is not None else (None, None)
    return Terms(lane, run_id, claim.take_epoch(), round(min(claim.time.at_most(grace) * 1000, MAX_HOLD_MS)))


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
