"""What stands in a directory of sessions, and what is wrong with it.

Looking takes no lock, creates nothing and waits for nothing: the kernel says on a descriptor that may only be read
whether a right is held, and files beside the session say by whom. Such an answer is about an instant, and a writer may
come and go between two questions. So all that could be a writer's doing is looked at twice, around the question whether
the right is free. What stood there unchanged while it was free, a lock file or half a line, is no work in
progress. Where a right is held, nothing is called wrong but a broken line.

What a killed process left beside its session, and the next lease or turn clears away by itself, is reported and not
wrong.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress

from .. import _os, process
from ..engines.choose import kernel_locks_work
from ..engines.interface import Right
from ..engines.kernel import KernelLock
from ..errors import TranscriptError
from ..file_kinds import kind_of
from ..paths import in_full
from ..sidecar import lockfile, turn_note
from ..sidecar.lockfile import Found
from ..sidecar.payload import parse
from ..sidecar.seen import Seen, see
from ..sidecar.staleness import LONGEST_S, Verdict
from ..transcript.appending import tail_of
from ..transcript.header import first_line, key_in
from ..transcript.lines import Line
from ..transcript.reading import read, stream
from ..transcript.records import BrokenLine
from ..transcript.replacing import SUFFIX as NEW
from .findings import MOST_BROKEN, MOST_WAITING, Inspection, Kind, Standing, State, Tail

SESSION = ".jsonl"
TORN = ".torn"
FLOCKS = (".turn.flock", ".write.flock")
BESIDE = (".lock", ".turn", NEW, TORN, *FLOCKS)
"""What may stand beside a session, by the end of its name."""

_LOOKS = 3  # before a session counts as being written
_LOOK = os.O_RDONLY | _os.O_NONBLOCK | _os.O_NOCTTY | _os.O_CLOEXEC | _os.O_BINARY


def sessions_in(directory: str) -> list[str]:
    """The names of all sessions of a directory, and of those of which only something else is left; in order.

    Only names are kept, about 100 bytes each. Subdirectories are not looked into.

    Raises:
        OSError: it is no directory, or cannot be listed.
    """
    return sorted({session for name in _os.listdir(directory) if (session := session_of(name)) is not None})


def inspect(path: str) -> Inspection | None:
    """Look at one session and what stands beside it; `None` when there is nothing of it.

    Opens only regular files, only for reading; takes no lock, waits for nothing, keeps a block of the file in memory at
    a time. Reads the whole session, so it is for a worker thread where an event loop runs. What cannot be read is a
    finding. Callable from any thread. Never raises an `OSError`.
    """
    path = in_full("path", path)
    seen = Inspection(path)
    try:
        linked = stat.S_ISLNK(_os.lstat(path).st_mode)
    except FileNotFoundError:
        _look_at_orphans(seen)
        return seen if seen.findings else None
    except OSError as error:
        _unreadable(seen, error)
        return seen
    if linked:
        seen.target = _os.realpath(path)
        seen.say(Kind.SYMLINK, f"it is a symbolic link to {seen.target}, and would be mended there only")
    try:
        kind = stat.S_IFMT(_os.stat(path).st_mode)
        if kind != stat.S_IFREG:  # looked at before it is opened: opening some devices does something
            seen.say(Kind.NO_FILE, f"it is {kind_of(kind)}: a session needs a regular file", wrong=True)
            return seen
        fd = _os.open(path, _LOOK)
    except OSError as error:
        _unreadable(seen, error)
        return seen
    try:
        _look_at_records(seen, fd)
        _look_at_rights(seen, fd)
    except OSError as error:
        _unreadable(seen, error)
    except TranscriptError as error:
        seen.say(Kind.UNREADABLE, str(error), wrong=True)
    finally:
        with suppress(OSError):  # the kernel lets go of a descriptor in any case, and nothing was written
            _os.close(fd)
    return seen


def note_of(path: str) -> tuple[Found | None, str]:
    """The note on the holder of the turn, reported like a lock file; or why what stands there is none."""
    where = turn_note.path_of(path)
    try:
        there = see(where)
    except (OSError, TranscriptError) as error:
        return None, str(error)
    return (None, "") if there is None else (_as_found(where, there), "")


def kind_and_size(path: str) -> tuple[int, int]:
    """The kind of what stands at a path, symbolic links not followed, and its size; 0 when there is nothing."""
    try:
        found = _os.lstat(path)
    except OSError:
        return 0, 0
    return stat.S_IFMT(found.st_mode), found.st_size


# Internals


def _look_at_records(seen: Inspection, fd: int) -> None:
    seen.key = key_in(first_line(fd))
    broken: list[BrokenLine] = []
    end = 0
    for batch in stream(seen.path):
        seen.records += len(batch)
        seen.broken_count += len(batch.skipped)
        broken += batch.skipped[: MOST_BROKEN - len(broken)]
        assert batch.position is not None
        end = batch.position.offset
    seen.broken = tuple(broken)
    seen.size = _os.fstat(fd).st_size
    seen.tail = Tail(seen.size - end, False) if seen.size > end else None
    if broken:
        first, more = broken[0], ", …" if seen.broken_count > len(broken) else ""
        numbers = ", ".join(str(one.number) for one in broken) + more
        where = f"line {numbers}" if seen.broken_count == 1 else f"{seen.broken_count} lines ({numbers}), the first"
        seen.say(Kind.BROKEN, f"broken: {where} at byte {first.offset}: {first.reason}", wrong=True)


def _look_at_rights(seen: Inspection, fd: int) -> None:
    path, settled = seen.path, False
    size, lock, why_no_lock, named, why_no_note = seen.size, None, "", None, ""
    for _ in range(_LOOKS):
        lock, why_no_lock = _lock_of(path)
        named, why_no_note = note_of(path)
        size = _os.fstat(fd).st_size
        if seen.tail is not None:
            seen.tail = _tail_of(path, fd, size)
        seen.turn, seen.write = _standing(fd, Right.TURN, named), _standing(fd, Right.WRITE, lock or named)
        if lock is None and named is None and seen.tail is None:
            settled = True
            break
        # What was there before and after an instant at which the right was free belongs to no live process.
        free = seen.write.state is State.FREE
        again, note_again = _lock_of(path, lock, locked=free)[0], note_of(path)[0]
        settled = _is_same(lock, again) and _is_same(named, note_again) and _os.fstat(fd).st_size == size
        if settled:
            lock = again
            break
    seen.size, seen.lock, seen.links = size, lock, _os.fstat(fd).st_nlink
    idle = (
        settled
        and State.HELD not in (seen.turn.state, seen.write.state)
        and not why_no_lock
        and (lock is None or lock.verdict.stale)
    )
    _tell_who_holds(seen)
    _tell_of_lock_files(seen, why_no_lock, named, why_no_note, idle=idle)
    _tell_of_the_rest(seen, idle=idle)


def _standing(fd: int, right: Right, named: Found | None) -> Standing:
    if not kernel_locks_work():
        return Standing(holder=named)
    found = _os.fstat(fd)
    lock = KernelLock(fd, (found.st_dev, found.st_ino), right)
    tickets: set[int] = set()
    while len(tickets) < MOST_WAITING and (ticket := lock.lowest(tickets)) is not None:
        tickets.add(ticket)
    if lock.is_free():
        return Standing(State.FREE, waiting=len(tickets))
    return Standing(State.HELD, named, len(tickets))


def _lock_of(path: str, before: Found | None = None, *, locked: bool = False) -> tuple[Found | None, str]:
    """The lock file; or why what stands there is none."""
    try:
        return lockfile.find(path, before, locked=locked), ""
    except TranscriptError as error:
        return None, str(error)


def _as_found(where: str, there: Seen) -> Found:
    payload = parse(there.data)
    since = payload.created_at if payload is not None else None
    age_s = max(0.0, process.wall() - (there.changed_at if since is None else since))
    most_ms = payload.max_hold_ms if payload is not None else None
    verdict = Verdict(False, "it decides nothing", age_s, LONGEST_S if most_ms is None else most_ms / 1000)
    return Found(where, there.file_id, there.data, payload, 0.0, verdict)


def _is_same(one: Found | None, other: Found | None) -> bool:
    return one is other if one is None or other is None else one.is_same(other)


def _tail_of(path: str, fd: int, size: int) -> Tail | None:
    position = read(path, last=0).position
    start = position.offset if position is not None else 0
    if start >= size:
        return None
    kind = tail_of(fd, size)[1]
    return None if kind is Line.BLANK else Tail(size - start, kind is Line.RECORD)


def _tell_who_holds(seen: Inspection) -> None:
    for name, right in (("turn", seen.turn), ("write lease", seen.write)):
        waiting = f"{right.waiting}{' or more' if right.waiting == MOST_WAITING else ''} waiting"
        if right.state is State.HELD:
            who = str(right.holder) if right.holder is not None else "a process that is not named"
            seen.say(Kind.HELD, f"{name} held by {who}" + (f"; {waiting}" if right.waiting else ""))
        elif right.waiting:
            seen.say(Kind.HELD, f"{name} free, {waiting}")


def _tell_of_lock_files(
    seen: Inspection, why_no_lock: str, named: Found | None, why_no_note: str, *, idle: bool
) -> None:
    lock, mendable = seen.lock, idle and seen.target is None
    for why in (why_no_lock, why_no_note):
        if why:
            seen.say(Kind.NO_LOCK_FILE, why, wrong=True)
    if lock is not None and lock.verdict.stale:
        text = f"stale lock file of {lock.who}: {lock.verdict.reason}"
        seen.say(Kind.STALE_LOCK, text, wrong=idle and not seen.exists, mendable=mendable)
    elif lock is not None and (lock.foreign or lock.payload is None or seen.write.state is not State.HELD):
        what = "lock file" if lock.payload is None else f"lock file of {lock}"
        seen.say(Kind.LIVE_LOCK, f"{what}; it counts as held: {lock.verdict.reason}")
    if named is not None and idle and seen.turn.state is State.FREE:
        text = f"stale note of a turn of {named.who}: nobody has the turn"
        seen.say(Kind.STALE_TURN, text, mendable=mendable)


def _tell_of_the_rest(seen: Inspection, *, idle: bool) -> None:
    mendable = idle and seen.target is None
    if seen.tail is not None:
        what = "a record that lacks its newline" if seen.tail.whole else "torn"
        text = f"its last {seen.tail.size} bytes are {what}"
        seen.say(Kind.TAIL, text if idle else f"{text}, or just being written", wrong=idle, mendable=mendable)
    new = (seen.target or seen.path) + NEW
    kind, size = kind_and_size(new)
    if kind == stat.S_IFREG:
        text = f"{os.path.basename(new)} ({size} bytes) was left over by a compaction that did not end"
        seen.say(Kind.LEFT_OVER, text if idle else f"{text}, or is just being written", wrong=idle, mendable=mendable)
    elif kind:
        seen.say(Kind.NO_LOCK_FILE, f"{os.path.basename(new)} is {kind_of(kind)}: no compaction can end", wrong=True)
    if seen.links > 1:
        seen.say(Kind.HARD_LINKS, f"it has {seen.links} names (hard links), so it cannot be compacted")
    _tell_of_torn(seen)


def _tell_of_torn(seen: Inspection) -> None:
    kind, size = kind_and_size(seen.path + TORN)
    if kind == stat.S_IFREG:
        seen.say(Kind.TORN, f"{size} bytes of torn tails are kept in {os.path.basename(seen.path)}{TORN}")
    elif kind:
        text = f"{os.path.basename(seen.path)}{TORN} is {kind_of(kind)}: no torn tail can be moved there"
        seen.say(Kind.NO_LOCK_FILE, text, wrong=True)


def _look_at_orphans(seen: Inspection) -> None:
    """What is beside a session that is not there. No process has the turn of such a session."""
    path, seen.exists = seen.path, False
    seen.lock, why_no_lock = _lock_of(path)
    named, why_no_note = note_of(path)
    idle = not why_no_lock and (seen.lock is None or seen.lock.verdict.stale)
    _tell_of_lock_files(seen, why_no_lock, None, why_no_note, idle=idle)
    if named is not None:
        text = f"note of a turn of {named.who}, without its session"
        seen.say(Kind.STALE_TURN, text, wrong=idle, mendable=idle)
    kind, size = kind_and_size(path + NEW)
    if kind:
        text = f"{os.path.basename(path)}{NEW} ({size} bytes) is without its session, and may be all that is left of it"
        seen.say(Kind.ORPHAN, text, wrong=True)
    _tell_of_torn(seen)
    for flock in FLOCKS:
        if kind_and_size(path + flock)[0]:
            seen.say(Kind.ORPHAN, f"{os.path.basename(path)}{flock} is without its session, and harmless")


def _unreadable(seen: Inspection, error: OSError) -> None:
    seen.say(Kind.UNREADABLE, f"it cannot be read: {error.strerror or error}", wrong=True)


def session_of(name: str) -> str | None:
    """The name of the session that something in a directory is, or belongs to, by its name."""
    if name.endswith(SESSION):
        return name
    for end in BESIDE:
        if name.endswith(SESSION + end):
            return name.removesuffix(end)
    return None
