"""The job of a supervised process, and its reports: JSON, one object a line, over its standard input and output.

The input stays open for as long as the parent lives. The process reports everything at once, before it goes on: a
report is known also when the process is killed in the next moment.
"""

from __future__ import annotations

import msgspec

from .ledger import Told
from .options import Options


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done, on one line."""

    options: Options
    service: str
    """Begins the name of each message, so that an answer is not taken for one of another time."""
    todo: list[int]
    """The messages of the plan, by number, that have no outcome yet."""
    elapsed_s: float
    """Since the first process took work."""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """It takes work and hears signals."""


class Posted(msgspec.Struct, frozen=True, tag=True):
    """A message was taken, or refused."""

    name: str


class Outcome(msgspec.Struct, frozen=True, tag=True):
    """The sender of a message has its outcome."""

    name: str
    told: Told
    state: str


class Kept(msgspec.Struct, frozen=True, tag=True):
    """`accept` has returned."""

    name: str
    message: int
    """Its id in the inbox."""
    state: str


class Begun(msgspec.Struct, frozen=True, tag=True):
    """A body has begun, and has done something that cannot be taken back."""

    messages: list[int]


class Asked(msgspec.Struct, frozen=True, tag=True):
    """`ctx.ask` has returned."""

    ask: str
    name: str


class Answered(msgspec.Struct, frozen=True, tag=True):
    """`answer` has returned."""

    ask: str
    value: str


class Promised(msgspec.Struct, frozen=True, tag=True):
    """An append has returned."""

    key: str
    path: str
    fingerprint: bytes


class Probed(msgspec.Struct, frozen=True, tag=True):
    """A health check was answered."""

    took_s: float
    answer: str


class Restarted(msgspec.Struct, frozen=True, tag=True):
    """There is a new generation in the process."""

    took_s: float


class Ended(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Its own account, its last report; the names are those of the result."""

    lags_s: list[float]
    waits_s: list[float]
    recoveries_s: list[float]
    stuck: list[str]
    unanswered: list[str]
    dead_writes: int
    late_writes_refused: int
    failure: str | None
    not_started: list[str]
    abandoned: list[str]
    policies: dict[str, int]
    shared: dict[str, int]
    rss_mb: float
    peak_rss_mb: float
    overlaps: int
    old_uses: int


Event = Ready | Posted | Outcome | Kept | Begun | Asked | Answered | Promised | Probed | Restarted | Ended


def line_of(what: Job | Event) -> bytes:
    """As it stands on the wire."""
    return msgspec.json.encode(what) + b"\n"


def name_of(service: str, number: int) -> str:
    """Of a message of the plan."""
    return f"{service}-m{number}"
