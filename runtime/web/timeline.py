"""What ran when, as rows of bars: a row for each lane, with lines in it where its runs overlap."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..status.protocol import TimelinePart
from ..status.rows import Bar

WINDOWS = (30.0, 60.0, 300.0, 900.0, 3600.0)
MOST_LANES = 60
MOST_LINES = 12
_WIDTH = 1000.0


@dataclass(frozen=True, slots=True)
class Mark:
    """A bar in a picture that is 1000 wide."""

    bar: Bar
    line: int
    x: float
    waits: float
    """How wide the time is in which it waited; before `x`."""
    width: float


@dataclass(slots=True)
class Row:
    """A lane."""

    lane: str
    marks: list[Mark] = field(default_factory=list)
    lines: list[float] = field(default_factory=list)
    """Where each line is free from, in seconds before now."""
    left_out: int = 0


def window_of(text: str) -> float:
    """Seconds that a timeline shows; what is no such number is five minutes."""
    return float(text) if text.isascii() and text.isdigit() and float(text) in WINDOWS else 300.0


def zoom(window: float) -> tuple[float | None, float | None]:
    """The next shorter and the next longer one."""
    at = WINDOWS.index(window)
    return (WINDOWS[at - 1] if at else None), (WINDOWS[at + 1] if at + 1 < len(WINDOWS) else None)


def rows_of(part: TimelinePart) -> list[Row]:
    """The rows, those that were busy last first."""
    rows: dict[str, Row] = {}
    for bar in sorted(part.bars, key=lambda bar: -bar.submitted):
        row = rows.get(bar.lane) or rows.setdefault(bar.lane, Row(bar.lane))
        began = min(bar.submitted, part.window_s)
        ended = bar.ended or 0.0
        line = next((line for line, free in enumerate(row.lines) if free >= began), len(row.lines))
        if line >= MOST_LINES:
            row.left_out += 1
            continue
        if line == len(row.lines):
            row.lines.append(0.0)
        row.lines[line] = ended if bar.ended is not None else -1.0
        row.marks.append(mark_of(bar, line, part.window_s))
    return sorted(rows.values(), key=lambda row: min((mark.bar.ended or 0.0 for mark in row.marks), default=0.0))[
        :MOST_LANES
    ]


def mark_of(bar: Bar, line: int, window: float) -> Mark:
    """A bar where it belongs in a picture of so many seconds."""

    def at(ago: float) -> float:
        return round(_WIDTH * (1 - min(max(ago, 0.0), window) / window), 1)

    ended = at(bar.ended) if bar.ended is not None else _WIDTH
    started = at(bar.started) if bar.started is not None else ended
    width = 0.0 if bar.started is None else max(2.0, round(ended - started, 1))
    return Mark(bar, line, started, round(started - at(bar.submitted), 1), width)
