"""Two results compared: what became faster or slower beyond the noise of both.

Ratios to the floor are compared, because the two runs may have met the machine at different speeds; without a floor,
the values themselves. A change counts when the ranges of the samples do not overlap.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .results import Answer, Result, Row
from .text import number


@dataclass(frozen=True, slots=True)
class Change:
    """One row that is in both results and differs beyond noise."""

    question: str
    row: Row
    old: float
    new: float
    unit: str
    better: bool

    def line(self) -> str:
        """For people."""
        at = "" if self.row.x is None else f" {self.row.x:,.0f}"
        subject = f"{self.question}{at}: {self.row.peer} ({self.row.backend}), {self.row.metric}"
        verdict = "better" if self.better else "WORSE"
        return f"  {verdict}  {subject}: {number(self.old)} → {number(self.new)} {self.unit}"


def changes(old: Result, new: Result) -> list[Change]:
    """All changes beyond noise, in the order of the new result."""
    before = {(name, *_key(row)): (answer, row) for name, answer, row in old.rows()}
    found = []
    for name, answer, row in new.rows():
        earlier = before.get((name, *_key(row)))
        if earlier is None:
            continue
        then, now = _range(*earlier), _range(answer, row)
        if then is None or now is None or not (now[0] > then[2] or now[2] < then[0]):
            continue
        better = (now[1] < then[1]) == (answer.better == "lower")
        found.append(Change(name, row, then[1], now[1], "× the floor" if answer.floor_of(row) else answer.unit, better))
    return found


def lines(old: Result, new: Result) -> Iterator[str]:
    """The comparison, for people."""
    found = changes(old, new)
    yield f"Against the run of {old.started}: {len(found)} changes beyond the noise of both runs."
    if old.machine.get("processor") != new.machine.get("processor") or old.machine.get("cores") != new.machine.get(
        "cores"
    ):
        yield f"  That was another machine: {old.machine.get('processor')}, {old.machine.get('cores')} cores."
    for change in sorted(found, key=lambda one: one.better):
        yield change.line()


def _key(row: Row) -> tuple[str, str, float | None, str]:
    return row.peer, row.backend, row.x, row.metric


def _range(answer: Answer, row: Row) -> tuple[float, float, float] | None:
    """The smallest, median and largest of a row's samples, as ratios to the floor if there is one."""
    if row.median is None:
        return None
    ratio = answer.ratio(row)
    by = 1.0 if ratio is None or row.median == 0 else ratio / row.median
    return min(row.samples) * by, row.median * by, max(row.samples) * by
