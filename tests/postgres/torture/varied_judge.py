"""What must hold of `varied`. As `judge`: SQL and arithmetic of its own.

- A message that is done was answered by exactly one record, and any other one by none. One that asked a person is done
  by the message that brings the answer.
- A question is answered by one message, or withdrawn; whoever was told the number of that message was told the same.
- What was cancelled or superseded has no answer; nothing waits for ever.
- The lines of a run are in one transcript: after a reset no older run writes.
- Each instant of a schedule has one message, and between the first and the last none is missing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

from .varied import EVERY_S, LANES, TICKS

Rows = Callable[[str], list[tuple[Any, ...]]]
MOST_TICKS_LEFT = 20
"""Those that come while the last processes end."""
ENDS = ("done", "unknown", "cancelled", "superseded")


class Asking(NamedTuple):
    """A message of these lanes."""

    id: int
    key: str
    lane: str
    state: str
    ask: str | None
    """The question that it answers."""
    asked: str | None
    """The question that its run has asked."""
    reason: str


def broken(rows: Rows, entries: dict[str, list[Any]], journals: list[Any]) -> Iterator[tuple[str, str]]:
    """What was broken: which rule, and what was found."""
    found = rows("select id, dedupe, lane, state, ask, asked, reason from {s}.message order by id")
    messages = {row[0]: Asking(*row) for row in found if row[2] in LANES}
    answers = defaultdict[int, int](int)
    transcripts = defaultdict[str, set[int]](set)
    for lines in entries.values():
        for one in lines:
            for message in one.line.get("messages", ()):
                answers[message] += 1
            if "run" in one.line:
                transcripts[one.line["run"]].add(one.incarnation)
    for run, which in transcripts.items():
        if len(which) > 1:
            yield "reset", f"run {run} writes in the transcripts {sorted(which)}"
    for row in messages.values():
        yield from _ended(row, answers[row.id])
    yield from _asked(rows, messages, journals)
    yield from _ticked([row for row in messages.values() if row.lane == TICKS])


def _ended(row: Asking, answers: int) -> Iterator[tuple[str, str]]:
    if row.lane == TICKS:
        if row.state not in ("done", "unknown", "accepted"):
            yield "tick", f"{row}"
        return
    if row.state not in ENDS:
        yield "stuck", f"{row}"
    expected = 1 if row.state == "done" and row.asked is None else 0
    if answers != expected:
        yield "final", f"{row} has {answers} answers"


def _asked(rows: Rows, messages: dict[int, Asking], journals: list[Any]) -> Iterator[tuple[str, str]]:
    told = defaultdict[str, set[int]](set)
    for row in messages.values():
        if row.ask is not None:
            told[row.ask].add(row.id)
    for event in journals:
        if event.kind == "answered":
            told[event.what[0]].add(event.what[1])
    for ask, state in rows("select id, state from {s}.ask"):
        if state not in ("answered", "withdrawn"):
            yield "stuck", f"question {ask} is {state}"
        if len(told[ask]) != (state == "answered"):
            yield "question", f"{ask} is {state}, by the messages {sorted(told[ask])}"


def _ticked(ticks: list[Asking]) -> Iterator[tuple[str, str]]:
    if len(waiting := [row.id for row in ticks if row.state == "accepted"]) > MOST_TICKS_LEFT:
        yield "stuck", f"ticks {waiting}"
    instants = sorted(float(row.key.rpartition(":")[2]) for row in ticks)
    for earlier, later in pairwise(instants):
        if round((later - earlier) / EVERY_S) != 1:
            yield "tick", f"{later} comes after {earlier}"
