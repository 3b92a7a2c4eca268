"""The result of a benchmark as a file: every sample, the machine, the versions, and what was left out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Literal

import msgspec

from ..usage_error import UsageError
from .stories.journal import Played

SCHEMA = "lanes-bench/1"


class Row(msgspec.Struct):
    """The samples of one peer, on one event loop, at one size, of one metric."""

    peer: str
    backend: str
    metric: str
    x: float | None = None
    samples: list[float] = []
    """One per round. Empty if it was never reached; then `note` says why."""
    violations: int = 0
    note: str = ""

    @property
    def median(self) -> float | None:
        """The median of its samples."""
        return median(self.samples) if self.samples else None


class Answer(msgspec.Struct):
    """The rows of one question."""

    title: str
    unit: str
    better: Literal["lower", "higher"]
    floor: str | None = None
    """The peer that the others are compared with."""
    x: str | None = None
    """What grows from row to row, such as "waiters"."""
    rows: list[Row] = []
    played: dict[str, Played] = {}
    """Of a story: how each peer played it, the last time."""

    def floor_of(self, row: Row) -> Row | None:
        """The floor's row for the same size and metric; on the same event loop, if the floor has one there."""
        found = [one for one in self.rows if (one.peer, one.x, one.metric) == (self.floor, row.x, row.metric)]
        return next((one for one in found if one.backend == row.backend), found[0] if found else None)

    def ratio(self, row: Row) -> float | None:
        """Row / floor: the median of the rounds' ratios; `None` without a floor."""
        floor = self.floor_of(row)
        if floor is None or not row.samples or not all(floor.samples) or not floor.samples:
            return None
        if len(floor.samples) == len(row.samples):
            return median(a / b for a, b in zip(row.samples, floor.samples, strict=True))
        return median(row.samples) / median(floor.samples)


class LeftOut(msgspec.Struct):
    """What was asked for and not measured."""

    question: str
    peer: str
    why: str


class Result(msgspec.Struct, kw_only=True):
    """One run of the suite."""

    schema: str = SCHEMA
    started: str
    """When, in UTC (ISO 8601)."""
    machine: dict[str, str | int | float]
    versions: dict[str, str]
    argv: list[str] = []
    budget_s: float
    questions: dict[str, Answer] = {}
    left_out: list[LeftOut] = []

    def rows(self) -> Iterator[tuple[str, Answer, Row]]:
        """All rows, with their questions."""
        for name, answer in self.questions.items():
            for row in answer.rows:
                yield name, answer, row


def encode(result: Result) -> bytes:
    """The file's bytes."""
    return msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n"


def load(path: str) -> Result:
    """Read a file of an earlier run.

    Raises:
        UsageError: it cannot be read, or is none.
    """
    try:
        result = msgspec.json.decode(Path(path).read_bytes(), type=Result)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, ValueError) as error:
        raise UsageError(f"{path}: is no result of `lanes bench --json`: {error}") from None
    if result.schema != SCHEMA:
        raise UsageError(f"{path}: schema {result.schema!r} is not allowed; allowed: {SCHEMA!r}")
    return result
