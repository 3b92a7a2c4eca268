"""What a result says in one line per question: this project, the best of the others, and the floor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from .results import Answer, Result, Row
from .text import number

OWN = "lanes"
"""The peer that is this project's as shipped; variants of it are called `lanes-…`."""


class Line(NamedTuple):
    """One metric of a question, at one size, on one event loop."""

    question: str
    subject: str
    own: Row
    measured: str
    best: str
    """The best peer that is neither this project's nor the floor, with its figure; empty where there is none."""
    floor: str
    faster: bool
    """Whether that peer is better than this project."""


def lines(result: Result, also: Callable[[str, Row], bool] | None = None) -> Iterator[Line]:
    """The lines, in the order of the questions. Of a growth the largest size, and those that `also` wants."""
    for name, answer in result.questions.items():
        sizes = {row.x for row in answer.rows if row.peer == OWN and row.x is not None and row.samples}
        for own in answer.rows:
            if own.peer != OWN or not own.samples:
                continue
            if own.x is None or own.x == max(sizes) or (also is not None and also(name, own)):
                yield _line(name, answer, own)


def _line(name: str, answer: Answer, own: Row) -> Line:
    rows = [row for row in answer.rows if (row.metric, row.x) == (own.metric, own.x) and row.samples]
    usable = [row for row in rows if row.backend in (own.backend, "blocking")]
    best = _best(answer, [row for row in usable if row.peer.partition("-")[0] != OWN and row.peer != answer.floor])
    floor = answer.floor_of(own)
    size = [] if own.x is None else [f"{own.x:,.0f} {answer.x}"]
    return Line(
        name,
        ", ".join([own.metric, *size, own.backend]),
        own,
        _with_ratio(answer, own),
        "" if best is None else f"{best.peer}: {_with_ratio(answer, best)}",
        "" if floor is None or not floor.samples else f"{floor.peer}: {_quantity(answer, floor)}",
        best is not None and _best(answer, [own, best]) is best,
    )


def _best(answer: Answer, rows: Sequence[Row]) -> Row | None:
    return (min if answer.better == "lower" else max)(rows, key=lambda row: row.median or 0.0, default=None)


def _with_ratio(answer: Answer, row: Row) -> str:
    ratio = answer.ratio(row)
    return _quantity(answer, row) + ("" if ratio is None else f", {number(ratio)} ×")


def _quantity(answer: Answer, row: Row) -> str:
    unit = "" if answer.unit.startswith("as ") else f" {answer.unit}"
    return number(row.median or 0.0) + unit
