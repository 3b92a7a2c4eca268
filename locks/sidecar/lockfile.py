"""Taking, judging and removing the lock file `<file>.lock` of a session.

All of this is called on the event loop's thread while the kernel lock of the session file is held (only `find` may also
be called without it). That is what makes "check, then unlink" safe here: of all processes of ours, one at a time looks
at a lock file in order to remove it, so none removes what another has just created. A foreign program that reclaims in
the same instant can still be unlucky, as it can with its own kind; looking again right before the unlink makes that
window as small as it can be.

A lock file is never rewritten: it is created whole and removed. Device, inode and bytes say which one it is. The
descriptor stays open for as long as it is held, so its inode number cannot be given to another file, and the comparison
means what it says; that costs one descriptor per write lease, and those are held for moments. A session's path is not
resolved: the kernel finds the same directory for `dir/a.jsonl.lock` as for `dir/a.jsonl`, symlinks and all.

Nothing is synced: after a power cut no process is left to hold anything.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import partial

from .. import _clock, _os, process
from .._events import log
from .._os import FileId
from ..errors import TranscriptError
from ..holder import Holder
from .held import Written as Written
from .held import fill, remove
from .held import release as release
from .payload import Payload, Terms, encode, parse
from .seen import MARK, Seen, Stamp, see, stamp_of
from .seen import MOST_BYTES as MOST_BYTES
from .staleness import LONGEST_S, Here, Verdict, judge

_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | _os.O_CLOEXEC | _os.O_BINARY
_JUDGED_EVERY_S = 0.045  # a file that is looked at more often: whether its owner lives, and how old it is
_ROUNDS = 10  # of creating what was free and finding what was not

_warned = False


@dataclass(frozen=True, slots=True)
class Found:
    """A lock file that was found, and whether it is stale."""

    path: str
    file_id: FileId
    data: bytes
    payload: Payload | None
    """`None` when it is empty or cannot be parsed."""
    seen_at: float
    """When the very same file was first seen, on the clock of this package."""
    verdict: Verdict
    looked_at: float = 0.0
    """When it was judged, on the same clock."""
    stamp: Stamp | None = None
    """What `lstat` said then."""
    we_hold_s: float = LONGEST_S
    """How long the process that looked would have held it at most."""

    @property
    def foreign(self) -> bool:
        """Whether another program than lanes wrote it."""
        return self.payload is not None and self.payload.instance is None

    @property
    def holder(self) -> Holder:
        """Its writer, as far as it says; the number of a process that is not named is 0."""
        payload = self.payload or Payload()
        return Holder(payload.lane, payload.run_id, payload.pid or 0)

    @property
    def who(self) -> str:
        """Its writer, in words."""
        payload = self.payload
        if payload is None:
            return "an unreadable lock file"
        if self.foreign:
            what = "a foreign gateway"
        elif payload.run_id is not None:
            what = f"run {payload.run_id}" + ("" if payload.lane is None else f" on lane {payload.lane}")
        else:
            what = "lanes"
        where = "" if payload.host in (None, process.me().host) else f" on {payload.host}"
        return f"process {payload.pid or 'unknown'}{where} ({what})"

    @property
    def began_at(self) -> float:
        """When its hold began, as far as is known, on the clock of this package."""
        return self.looked_at - self.verdict.age_s

    @property
    def held_s(self) -> float:
        """For how long it had been held when it was found."""
        return self.verdict.age_s

    @property
    def remaining_s(self) -> float:
        """For how long it could be held from then on by its own word."""
        return max(0.0, self.verdict.limit_s - self.verdict.age_s)

    def __str__(self) -> str:
        return f"{self.who} since {self.held_s:.1f} s, for at most {self.remaining_s:.1f} s more"

    def is_same(self, other: Found | Seen) -> bool:
        """Whether that is the very same file, with the same content."""
        return self.file_id == other.file_id and self.data == other.data


def path_of(session_path: str) -> str:
    """The lock file of a session."""
    return session_path + ".lock"


def take(
    session_path: str,
    terms: Terms,
    before: Found | None = None,
    *,
    we_hold_s: float = LONGEST_S,
    tries: int = 1,
) -> Written | Found:
    """Create the lock file of a session, reclaiming a stale one; or find its owner.

    Args:
        before: what was found the last time, so that it is known for how long it has been there.
        we_hold_s: how long a hold of this kind may last at most.
        tries: how often to try at first, without a pause, whether it can be created.

    Called with the kernel lock held. Either the file is there, whole, and the caller owns it, or nothing of it is left.

    Raises:
        OSError: it could not be created and written, or a stale one could not be removed.
        TranscriptError: there is something that cannot be judged; see `find`.
    """
    path = path_of(session_path)
    for _ in range(_ROUNDS):
        data = encode(terms, process.wall())
        if (fd := _create(path, tries)) is not None:
            written = fill(path, fd, data)
            if written is not None:
                return written
            continue
        tries = 1
        if before is not None and _is_as_before(before):
            return before
        found = find(session_path, before, locked=True, we_hold_s=we_hold_s)
        if found is None:
            continue  # removed in between
        before = found
        if found.foreign:
            warn_once_about_robbery()
        if not found.verdict.stale:
            return found
        _reclaim(session_path, found)
    raise TranscriptError(
        f"{path} changed {_ROUNDS} times while it was being judged: something keeps creating and removing it", path=path
    )


def find(
    session_path: str, before: Found | None = None, *, locked: bool = False, we_hold_s: float = LONGEST_S
) -> Found | None:
    """Look at the lock file of a session and judge it; `None` when there is none.

    Args:
        before: what was found the last time.
        locked: whether the caller holds the kernel lock of the session.
        we_hold_s: how long the caller would hold it at most.

    Raises:
        TranscriptError: it is no small regular file, or cannot be read. It counts as held, never as free.
    """
    path = path_of(session_path)
    try:
        seen = see(path)
    except OSError as error:
        raise TranscriptError(
            f"cannot read the lock file {path}: {error.strerror or error}; until then it counts as held: "
            f"let this user read it, or use sidecar=False",
            path=path,
            errno=error.errno,
        ) from error
    if seen is None:
        return None
    now = _clock.clock.now()
    seen_at = before.seen_at if before is not None and before.is_same(seen) else now
    here = _here()
    payload = parse(seen.data)
    verdict = judge(
        payload,
        here=here,
        age_of_file_s=here.age_of(seen.changed_at),
        seen_for_s=now - seen_at,
        locked=locked,
        marked=seen.marked,
        we_hold_s=we_hold_s,
        is_open=partial(process.has_open, seen.file_id),
    )
    return Found(path, seen.file_id, seen.data, payload, seen_at, verdict, now, seen.stamp, we_hold_s)


def is_left_over(payload: Payload) -> bool:
    """Whether what a process of ours wrote was left by one that is gone, as far as shows without the kernel lock."""
    return judge(payload, here=_here(), age_of_file_s=0.0, seen_for_s=0.0).stale


def warn_once_about_robbery() -> None:
    """Say, once per process, how to keep a foreign gateway from taking our lock files for left-overs.

    It robs an owner whose command line has no bare argument `openclaw`.
    """
    global _warned  # noqa: PLW0603 -- once per process is the point
    if not _warned and "openclaw" not in sys.orig_argv:
        _warned = True
        log(
            "foreign_gateway_seen",
            level="warning",
            hint="it takes lock files of other programs for left-overs; start this one as: python -X openclaw -m …",
        )


# Internals


def _create(path: str, tries: int) -> int | None:
    """Create a lock file, still empty; `None` if there was one each time."""
    for _ in range(tries):
        try:
            return _os.open(path, _CREATE, 0o600 | MARK)
        except FileExistsError:
            continue
    return None


def _is_as_before(before: Found) -> bool:
    """Whether the very file that was found held a moment ago is still there; a judgement costs ten times as much."""
    if before.verdict.stale or _clock.clock.now() - before.looked_at >= min(_JUDGED_EVERY_S, before.remaining_s):
        return False
    try:
        return stamp_of(_os.lstat(before.path)) == before.stamp
    except OSError:
        return False


def _reclaim(session_path: str, found: Found) -> None:
    """Remove a stale lock file, if it is still the same and still stale.

    Raises:
        OSError: it cannot be removed.
    """
    # Looked at again: what was judged may have gone, and what is there now may be another program's fresh one.
    again = find(session_path, found, locked=True, we_hold_s=found.we_hold_s)
    if again is None or not again.is_same(found) or not again.verdict.stale:
        return
    if (error := remove(found.path)) is not None:
        raise error
    log("sidecar_reclaimed", path=found.path, holder=found.who, reason=again.verdict.reason)


def _here() -> Here:
    return Here(
        me=process.me(),
        my_age_s=process.age_s,
        wall=process.wall(),
        carried=process.carried_wall(),
        is_alive=process.is_alive,
        starttime=process.starttime,
    )
