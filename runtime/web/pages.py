"""What each page shows: a template, and the values that stand in it. Made from answers alone, an old one too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..status import protocol, words
from . import timeline

MOST_ROWS = 30
"""Of each table of *Now*."""
_MOST_ABANDONED = 5
"""On *Now*: nothing can be done about them, and what else is stuck should not stand below them. All have a page."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of the process, and from when."""

    picture: protocol.Picture | None = None
    """The last one that it gave."""
    frozen: protocol.Frozen | None = None
    """Set while its event loop does not answer."""
    gone: str = ""
    """Why it does not answer at all; empty while it does."""
    silent_s: float = 0.0
    """Since when there was no picture."""

    @property
    def is_live(self) -> bool:
        """Whether the picture is one of now."""
        return self.picture is not None and self.frozen is None and not self.gone


@dataclass(frozen=True, slots=True)
class Page:
    """A page, before it is text."""

    template: str
    title: str
    values: Mapping[str, Any]
    seen: Seen = Seen()
    """What it was made from."""
    status: int = 200


def now(seen: Seen, trends: protocol.TrendsPart | None) -> Page:
    """What runs, what waits and for whom; problems first."""
    picture = seen.picture
    values: dict[str, Any] = {"picture": picture, "sparks": _sparks(trends)}
    if picture is not None:
        stuck, healthy, waiting = words.by_state(picture)
        counts = picture.counts
        values |= {
            "stuck": stuck,
            "abandoned": picture.abandoned[:_MOST_ABANDONED],
            "abandoned_left_out": picture.abandoned_left_out + len(picture.abandoned[_MOST_ABANDONED:]),
            "running": healthy[:MOST_ROWS],
            "running_left_out": max(0, counts.get("running", 0) - len(stuck) - len(healthy[:MOST_ROWS])),
            "waiting": waiting[:MOST_ROWS],
            "waiting_left_out": max(0, counts.get("queued", 0) - len(waiting[:MOST_ROWS])),
            "held_up": words.held_up(picture.runs),
            "lanes": picture.lanes[:MOST_ROWS],
            "lanes_left_out": picture.lanes_left_out + len(picture.lanes[MOST_ROWS:]),
            "turns": [lease for lease in picture.leases if lease.right == "turn"][:MOST_ROWS],
            "counts": _counts(picture),
        }
    return Page("now.html", "Now", values, seen)


def _counts(picture: protocol.Picture) -> list[tuple[str, str]]:
    """The figures at the top of the page."""
    lag, abandoned = picture.loop_lag, len(picture.abandoned) + picture.abandoned_left_out
    return [
        ("running", str(picture.counts.get("running", 0))),
        ("waiting", str(picture.counts.get("queued", 0))),
        ("done", str(picture.counts.get("done", 0))),
        ("failed", str(picture.counts.get("failed", 0))),
        ("timed out", str(picture.counts.get("timed_out", 0))),
        ("abandoned now", str(abandoned)),
        ("parked", str(picture.parked)),
        ("loop lag p99", f"{lag.p99 * 1000:.1f} ms"),
    ]


def run(seen: Seen, number: int, stood: protocol.Stood | None, life: protocol.LifePart | None, error: str) -> Page:
    """One run: its head, its life and what belongs to it, and where it stands line by line."""
    rows = seen.picture.runs if seen.picture is not None else []
    row = next((one for one in rows if one.id == number), None)
    text = stood.text if stood is not None else ""
    head, _, rest = text.partition("\n")
    bars = [] if life is None else [bar for bar in (life.parent, life.bar, *life.children) if bar is not None]
    window = max((bar.submitted for bar in bars), default=1.0) or 1.0
    marks = [timeline.mark_of(bar, 0, window) for bar in bars]
    values = {
        "life": life,
        "marks": marks,
        "window": window,
        "number": number,
        "row": row,
        "head": head,
        "stack": rest,
        "error": error,
    }
    return Page("run.html", f"Run {number}", values, seen, 404 if error and seen.is_live else 200)


def refusal(title: str, message: str, status: int) -> Page:
    """A page that says why there is no other."""
    return Page("refusal.html", title, {"message": message}, status=status)


@dataclass(frozen=True, slots=True)
class Spark:
    """A small curve."""

    name: str
    text: str
    points: str
    """In a picture of 100 by 24."""


def _sparks(trends: protocol.TrendsPart | None) -> list[Spark]:
    if trends is None:
        return []
    lag = [one * 1000 for one in trends.lag_s]
    return [
        _spark("Loop lag, last minute", lag, lambda value: f"{value:.1f} ms"),
        _spark("Memory, last hour", trends.memory, size),
        _spark("Descriptors, last hour", trends.descriptors, lambda value: f"{value:.0f}"),
    ]


def _spark(name: str, values: Sequence[float], shown: Callable[[float], str]) -> Spark:
    if not values:
        return Spark(name, "nothing yet", "")
    top, step = max(values) or 1.0, 100 / max(1, len(values) - 1)
    points = " ".join(f"{i * step:.1f},{23 - 22 * value / top:.1f}" for i, value in enumerate(values))
    return Spark(name, f"{shown(values[-1])} now, at most {shown(max(values))}", points)


def size(number: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB"):
        if abs(number) < 1000:
            return f"{number:.0f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"
