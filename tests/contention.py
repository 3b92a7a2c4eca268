"""Processes that hold one file by turns, and the sweep of their holds for an overlap."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from itertools import pairwise

from tests.peers import Peer, peer
from tests.poll import eventually_sync

LONG = bool(os.environ.get("LANES_LONG"))
PROCESSES = 8
BACKENDS = ("asyncio", "trio")
Interval = tuple[int, int, int]


def overlaps(intervals: list[Interval]) -> list[tuple[Interval, Interval]]:
    """Pairs of holds that overlap."""
    in_order = sorted(intervals)
    return [(one, other) for one, other in pairwise(in_order) if other[0] < one[1]]


def compete(stack: ExitStack, path, *, holds: int, seconds: float, gap: float = 0.0) -> list[Peer]:
    """Start all processes at once."""
    args = (holds, seconds, gap)
    peers = [stack.enter_context(peer("contender", path, BACKENDS[number % 2], *args)) for number in range(PROCESSES)]
    for one in peers:
        eventually_sync(lambda: one.said("ready"), within=60)  # noqa: B023 -- awaited in this round
    for one in peers:
        one.tell("go")
    return peers


def result(one: Peer) -> list[Interval]:
    eventually_sync(lambda: [one.lines, one.ended()][1], within=1200 if LONG else 240)
    assert one.exit_code == 0
    return [(entered, left, epoch) for entered, left, epoch in json.loads(one.lines[1])]


def check(results: list[list[Interval]]) -> None:
    assert overlaps([interval for intervals in results for interval in intervals]) == []
    for intervals in results:
        epochs = [epoch for _, _, epoch in intervals]
        assert epochs == sorted(set(epochs))
