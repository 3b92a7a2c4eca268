"""What there is to say about a session: what `inspection` finds, and `mending` does about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from ..sidecar.lockfile import Found
from ..transcript.records import BrokenLine

MOST_BROKEN = 5
"""Broken lines that are named; the rest is counted."""
MOST_WAITING = 20
"""Waiting processes that are counted."""


class State(StrEnum):
    """Whether a right is held."""

    FREE = "free"
    HELD = "held"
    UNKNOWN = "unknown"
    """Only a try would show it, because this system has no kernel locks; or the session cannot be opened."""


class Kind(StrEnum):
    """What there is to say about a session."""

    HELD = "held"
    LIVE_LOCK = "live_lock"
    STALE_LOCK = "stale_lock"
    STALE_TURN = "stale_turn"
    NO_LOCK_FILE = "no_lock_file"
    """Something else stands where a lock file or a note belongs."""
    LEFT_OVER = "left_over"
    """A new file that a compaction has not put into its place."""
    TAIL = "tail"
    BROKEN = "broken"
    UNREADABLE = "unreadable"
    NO_FILE = "no_file"
    """A directory, a FIFO or the like under a session's name."""
    SYMLINK = "symlink"
    HARD_LINKS = "hard_links"
    TORN = "torn"
    """Torn tails that were moved aside."""
    NETWORK_FS = "network_fs"
    """A directory further down that locks of this host do not exclude other hosts from."""
    ORPHAN = "orphan"
    """Something that belongs to a session which is not there."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to say about a session."""

    kind: Kind
    text: str
    """In words for an operator. Names are as the file system has them: not safe to print."""
    wrong: bool = False
    """Whether something should be done about it; not so where the next lease or turn does it by itself."""
    mendable: bool = False
    """Whether `mend` can do something about it, if no other process comes in between."""


@dataclass(frozen=True, slots=True)
class Standing:
    """One right of a session."""

    state: State = State.UNKNOWN
    holder: Found | None = None
    """Its holder, according to the file that names it."""
    waiting: int = 0
    """Processes that wait for it, counted up to `MOST_WAITING`."""


@dataclass(frozen=True, slots=True)
class Tail:
    """What stands behind the last newline of a session."""

    size: int
    whole: bool
    """An object that only lacks its newline."""


@dataclass(slots=True)
class Inspection:
    """What is known about one session."""

    path: str
    exists: bool = True
    """Whether there is a session; if not, only what belongs to one."""
    size: int = 0
    records: int = 0
    key: str | None = None
    """The session's key, where the first line names it."""
    broken: tuple[BrokenLine, ...] = ()
    """The first `MOST_BROKEN`."""
    broken_count: int = 0
    tail: Tail | None = None
    turn: Standing = field(default_factory=Standing)
    write: Standing = field(default_factory=Standing)
    lock: Found | None = None
    """The lock file."""
    links: int = 1
    """Names that the file has."""
    target: str | None = None
    """Where a symbolic link leads."""
    findings: list[Finding] = field(default_factory=list)

    @property
    def wrong(self) -> bool:
        """Whether something should be done."""
        return any(one.wrong for one in self.findings)

    @property
    def mendable(self) -> bool:
        """Whether there is something that `mend` can do."""
        return any(one.mendable for one in self.findings)

    @property
    def ails(self) -> bool:
        """Whether there is something that is wrong and that `mend` can do something about."""
        return any(one.wrong and one.mendable for one in self.findings)

    @property
    def held(self) -> bool:
        """Whether a process works with the session now."""
        return any(one.kind in (Kind.HELD, Kind.LIVE_LOCK) for one in self.findings)

    def say(self, kind: Kind, text: str, *, wrong: bool = False, mendable: bool = False) -> None:
        """Add a finding."""
        self.findings.append(Finding(kind, text, wrong, mendable))


@dataclass(slots=True)
class Mended:
    """What `mend` did, and what it left and why, in words."""

    done: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
