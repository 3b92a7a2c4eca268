"""Polling ends with what was awaited, or says that it did not come."""

from __future__ import annotations

import pytest

from tests.poll import eventually, eventually_sync


def after_looks(number: int):
    looks = iter(range(number + 1))
    return lambda: next(looks) == number and "here"


async def test_what_comes_is_returned():
    assert await eventually(after_looks(5)) == "here"


def test_what_comes_is_returned_to_a_thread():
    assert eventually_sync(after_looks(5)) == "here"


async def test_what_does_not_come_is_named():
    with pytest.raises(AssertionError, match=r"not within 0.02 s: the child's first line"):
        await eventually(lambda: False, within=0.02, awaited="the child's first line")


def test_what_does_not_come_is_quoted():
    nobody: list[str] = []
    with pytest.raises(AssertionError, match=r"test_poll.py:\d+: eventually_sync\(lambda: len\(nobody\)"):
        eventually_sync(lambda: len(nobody) > 1, within=0.02)


async def test_virtual_time_is_not_polled(virtual):
    with pytest.raises(AssertionError, match="settle"):
        await eventually(lambda: True)
