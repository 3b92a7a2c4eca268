"""What became of a story's work: read from the session file and the lifelines, in the same way for both sides."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from .journal import Lifeline
from .story import Story

LOST = "messages lost"
STUCK = "seconds stuck"
LATE = "late writes"
MEMORY = "memory grown (MB)"

Spans = list[tuple[float, float]]


def judge(story: Story, lifelines: Sequence[Lifeline], session: Path) -> dict[str, float]:
    """The figures of a side, by name, at the end of its story. Seconds are those of production.

    - Lost is work that is over, and of which the session has no record: its sender has an error, if anything.
    - Stuck is the longest time in which work waited and no run was under way within its timeout.
    - A write is late when its lane had ended the run before.
    """
    recorded = {json.loads(line).get("work") for line in session.read_bytes().splitlines()}
    end = story.ends_at_s
    waits = [(line.sent_s, min(_or(line.begun_s, end), _or(line.over_s, end))) for line in lifelines]
    runs = [
        (line.begun_s, min(_or(line.over_s, end), line.begun_s + story.timeout_s))
        for line in lifelines
        if line.begun_s is not None and line.asks
    ]
    return {
        LOST: len([line for line in lifelines if line.over_s is not None and line.name not in recorded]),
        STUCK: round(max((end - start for start, end in without(union(waits), union(runs))), default=0.0), 1),
        LATE: len([line for line in lifelines if line.late_s is not None]),
    }


def union(spans: Iterable[tuple[float, float]]) -> Spans:
    """The spans that cover the same instants and do not touch each other, in order."""
    found: Spans = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def without(spans: Spans, others: Spans) -> Spans:
    """What is left of spans in order when others, in order too, are taken away."""
    found: Spans = []
    for start, end in spans:
        at = start
        for begins, ends in others:
            if ends > at and begins < end:
                found.append((at, begins))
                at = ends
        found.append((at, end))
    return [(start, end) for start, end in found if start < end]


def _or(instant: float | None, end: float) -> float:
    return end if instant is None else instant
