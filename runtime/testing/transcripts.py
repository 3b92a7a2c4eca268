"""Comparing the records of a session with what a test expects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import EllipsisType
from typing import Any

Expected = Sequence[Mapping[str, Any] | EllipsisType]


def assert_transcript(records: Sequence[Mapping[str, Any]], expected: Expected) -> None:
    """Raise unless the records are those that are expected, in order.

    Args:
        records: of a session, such as `await sup.transcript("ann")` or `handled.records`.
        expected: for each record the fields that matter; others may be there. `...` stands for any number of records.

    Raises:
        AssertionError: naming the first record that differs, the fields, and all records.
    """
    rest, at = list(expected), 0
    while rest and rest[0] is not ...:
        _compare(records, at, rest.pop(0))
        at += 1
    if not rest:
        if len(records) > at:
            raise AssertionError(f"{len(records) - at} records more than expected, from {at + 1}{_all(records)}")
        return
    parts: list[list[Mapping[str, Any]]] = []
    for one in rest:
        if isinstance(one, EllipsisType):
            parts.append([])
        else:
            parts[-1].append(one)
    *middle, last = parts
    for part in middle:
        at = _find(records, part, at)
    if last:
        if len(records) - len(last) < at:
            raise AssertionError(f"the last {len(last)} records are not there{_all(records)}")
        for number, one in enumerate(last, len(records) - len(last)):
            _compare(records, number, one)


def _find(records: Sequence[Mapping[str, Any]], part: list[Mapping[str, Any]], at: int) -> int:
    """The number of the record behind the first place, from `at` on, where all of `part` stands."""
    for start in range(at, len(records) - len(part) + 1):
        if not any(_differences(records[start + n], one) for n, one in enumerate(part)):
            return start + len(part)
    raise AssertionError(f"nowhere from record {at + 1} on: {part}{_all(records)}")


def _compare(records: Sequence[Mapping[str, Any]], at: int, expected: Any) -> None:
    if not isinstance(expected, Mapping):
        raise TypeError(f"expected record {at + 1}: {expected!r:.80}; allowed: a mapping of fields, or ...")
    if at >= len(records):
        raise AssertionError(f"there is no record {at + 1}; expected: {dict(expected)}{_all(records)}")
    if found := _differences(records[at], expected):
        raise AssertionError(f"record {at + 1} differs: {'; '.join(found)}{_all(records)}")


def _differences(record: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} is {record[name]!r}, expected: {value!r}" if name in record else f"{name} is missing: {value!r}"
        for name, value in expected.items()
        if name not in record or record[name] != value
    ]


def _all(records: Sequence[Mapping[str, Any]]) -> str:
    lines = [f"\n  {number}: {dict(record)}" for number, record in enumerate(records, 1)]
    return f"\nall {len(records)} records:{''.join(lines)}" if lines else "\nthere are no records"
