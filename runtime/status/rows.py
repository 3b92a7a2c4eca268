"""The rows of those answers of a status socket that are about more than the instant: bounded, like the picture."""

from __future__ import annotations

import msgspec

MOST_ROWS = 100
MOST_BARS = 600
MOST_RECORDS = 20
LONGEST_CONTENT = 2000
"""Characters of a record, a message or a question."""


class TrendsPart(msgspec.Struct, frozen=True, kw_only=True):
    """The past of three figures, oldest first."""

    lag_s: list[float]
    """The longest lag of the loop in each second of the last minute."""
    memory: list[int]
    """Bytes that were resident, every ten seconds of the last hour; like the next one."""
    descriptors: list[int]


class Bar(msgspec.Struct, frozen=True, kw_only=True):
    """A run on a timeline; seconds before now."""

    run: int
    lane: str
    session: str | None
    state: str
    reason: str
    submitted: float
    started: float | None
    """`None` for one that has not started."""
    ended: float | None
    """`None` for one that has not ended."""


class TimelinePart(msgspec.Struct, frozen=True, kw_only=True):
    """What ran when: the runs that are live, and those that have ended and are kept (`keep_outcomes`)."""

    window_s: float
    bars: list[Bar]
    """The latest ones, by when they began."""
    left_out: int


class Right(msgspec.Struct, frozen=True, kw_only=True):
    """A right on a session that a run holds."""

    path: str
    right: str
    held_s: float
    remaining_s: float | None
    waiting: int


class LifePart(msgspec.Struct, frozen=True, kw_only=True):
    """One run, and what belongs to it."""

    bar: Bar
    parent: Bar | None
    """The run that submitted it, as long as that is known."""
    children: list[Bar]
    """Those that it has submitted, the latest first."""
    rights: list[Right]
    events: list[str]
    """What it has emitted last, as text or JSON; empty unless content was asked for."""
    emitted: int
    """How much it has emitted since somebody looks."""
    missed: int
    """How much of that came too fast to be kept."""


class Waiter(msgspec.Struct, frozen=True, kw_only=True):
    """A run in the queue of a session."""

    run: int
    lane: str
    state: str
    for_s: float
    """Since when it runs, or waits."""


class SessionPart(msgspec.Struct, frozen=True, kw_only=True):
    """A session."""

    key: str
    place: str
    """Its file, or its place in a store."""
    runs: list[Waiter]
    """In order; the first one conducts it, or will next."""
    runs_left_out: int
    holder: str
    """Who holds its turn, in words; empty for nobody in this process."""
    held_s: float
    remaining_s: float | None
    records: list[str]
    """The last ones, as JSON; empty unless content was asked for."""
    error: str
    """Why they cannot be read; empty if they can."""
    put_aside: list[str] = []
    """The names of the files that resets have put aside, the latest first; none on a store, which keeps records."""


class ParkedRow(msgspec.Struct, frozen=True, kw_only=True):
    """A run that has failed for the last time."""

    run: int
    lane: str
    session: str | None
    reason: str
    attempts: int
    parked_for_s: float
    bodies: list[str]
    """Its messages, as JSON or text; empty unless content was asked for."""


class AskRow(msgspec.Struct, frozen=True, kw_only=True):
    """A question that waits for a person."""

    id: str
    lane: str
    session: str | None
    asked_for_s: float
    expires_in_s: float | None
    question: str
    """Text, or JSON; empty unless content was asked for, like the options."""
    options: list[str] | None
    """As JSON; `None` where anything may be answered."""


class MessageRow(msgspec.Struct, frozen=True, kw_only=True):
    """A message of the inbox."""

    id: int
    lane: str
    session: str | None
    state: str
    attempt: int
    accepted_for_s: float
    reason: str
    body: str
    """As JSON; empty unless content was asked for."""
