"""Messages to send: one line of a traffic file, and the file as a whole, checked before anything is started."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import msgspec

from lanes import InvalidLane, LaneError, SessionLayout
from lanes.spec import WhenBusy
from lanes.spec_table import SpecTable
from locks import InvalidSession
from locks.transcript.lines import LONGEST_LINE, NoObject, NoRecord, decode

from ..usage_error import UsageError
from .validation import explain

Behaviour = Literal["ok", "flaky", "raise", "hang", "block", "swallow", "ask"]
BEHAVIOURS: tuple[Behaviour, ...] = ("ok", "flaky", "raise", "hang", "block", "swallow", "ask")
"""From the best to the worst: a call that several messages share ends in the worst of theirs."""
_SESSION_PREFIX = "session:"
_LONGEST_S = 1e8
_MOST_CONTEXT_MB = 1000.0


class Line(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One message: when it arrives, on which lane, and what answering it is like. All times are seconds, unscaled."""

    lane: str
    at: float = 0.0
    """Since the start."""
    session: str | None = None
    """The session that the run conducts; a `session:` lane's own by default."""
    text: str = ""
    think: float = 0.0
    """How long the model call takes."""
    behave: Behaviour = "ok"
    """What the call ends in: an answer, an exception in the first attempts, an exception, waiting for ever, a worker
    thread that blocks and hears of no cancellation, a body that catches it and goes on, a question to a person."""
    fails: int = 1
    """How many attempts of a `flaky` one raise."""
    hold: float | None = None
    """How long `hang`, `block` and `swallow` last, by default until everything else is over; after how long a question
    of `ask` expires, by default never."""
    turn: bool = True
    """`false` appends to the session without conducting it."""
    context_mb: float = 0.0
    """Memory that the run needs while it lasts."""
    again: int = 0
    """How many times it is posted again when it was not answered."""
    route: str | None = None
    """Where the answer goes; messages of different routes are never answered together."""
    dedupe: str | None = None
    """The sender's name for it: sent again under the same name, it is one message."""
    when_busy: WhenBusy | None = None
    """What to do when its session is busy, instead of the lane's policy."""

    @property
    def conducted(self) -> str | None:
        """The session's key."""
        if self.session is None and self.lane.startswith(_SESSION_PREFIX):
            return self.lane[len(_SESSION_PREFIX) :]
        return self.session


def check(line: Line, specs: SpecTable, layout: SessionLayout) -> None:
    """See that a message can be sent.

    Raises:
        InvalidLane, InvalidSession: it cannot; nothing was created.
    """
    for field, value in (("at", line.at), ("think", line.think), ("hold", line.hold), ("context_mb", line.context_mb)):
        most = _MOST_CONTEXT_MB if field == "context_mb" else _LONGEST_S
        if value is not None and not 0 <= value <= most:
            raise InvalidLane(f"{field}: {value!r} is not allowed; allowed: 0 to {most:g}")
    for field, number in (("again", line.again), ("fails", line.fails)):
        if number < 0:
            raise InvalidLane(f"{field}: {number!r} is not allowed; allowed: a whole number from 0")
    for field in ("route", "dedupe", "when_busy"):
        if getattr(line, field) is not None and not line.turn:
            raise InvalidLane(f"{field}: is for messages, and turn = false makes it a note; allowed: one of the two")
    if line.dedupe == "":
        raise InvalidLane("dedupe: '' is not allowed; allowed: 1 to 1024 characters of text")
    specs.find(line.lane)
    key = line.conducted
    if key is not None:
        layout.file_of(key)
        if line.lane.startswith(_SESSION_PREFIX) and line.lane != _SESSION_PREFIX + key:
            raise InvalidLane(
                f"session: {key!r:.80} is not the one of lane {line.lane!r:.80}; allowed: its own, or none"
            )


def read(path: Path, specs: SpecTable, layout: SessionLayout) -> list[Line]:
    """All messages of a traffic file, by time; blank lines are skipped.

    Raises:
        UsageError: the file cannot be read, or a line cannot be sent: its number and why.
    """
    found: list[Line] = []
    try:
        with path.open("rb") as file:
            # No more of a line is read than a line may have: a longer one is refused in any case.
            for number, raw in enumerate(iter(lambda: file.readline(LONGEST_LINE + 2), b""), 1):
                line = _parse(raw.removesuffix(b"\n"), f"{path}, line {number}", specs, layout)
                if line is not None:
                    found.append(line)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not found:
        raise UsageError(f"{path}: has no messages; allowed: one JSON object a line")
    return in_order(found)


def in_order(lines: Iterable[Line]) -> list[Line]:
    """By time; those of one instant stay as they are."""
    return sorted(lines, key=lambda line: line.at)


def _parse(raw: bytes, where: str, specs: SpecTable, layout: SessionLayout) -> Line | None:
    data: Any
    try:
        data = decode(raw)
    except NoObject as error:
        data = error.value
    except NoRecord as error:
        raise UsageError(f"{where}: not JSON: {error}") from error
    else:
        if data is None:
            return None
    try:
        line = msgspec.convert(data, Line)
        check(line, specs, layout)
    except msgspec.ValidationError as error:
        raise UsageError(f"{where}: {explain(error, data, Line)}") from error
    except (LaneError, InvalidSession) as error:
        raise UsageError(f"{where}: {error}") from error
    return line
