"""Suite X1: eight processes, half of them on asyncio and half on trio, hold one file by turns.

`LANES_LONG=1` runs 8 x 5,000 holds instead of 8 x 200. The suite's own check is itself checked: `overlaps` must find
what was planted.
"""

from __future__ import annotations

import random
import signal
import time
from contextlib import ExitStack

import pytest

from tests.contention import LONG, PROCESSES, check, compete, overlaps, result


@pytest.mark.suite("X1")
def test_the_sweep_finds_a_planted_overlap():
    assert overlaps([(1, 3, 1), (3, 5, 1), (9, 10, 1), (6, 8, 1)]) == []
    assert overlaps([(1, 3, 1), (6, 8, 1), (2, 4, 1)]) == [((1, 3, 1), (2, 4, 1))]
    assert overlaps([(1, 9, 1), (3, 4, 1)]) == [((1, 9, 1), (3, 4, 1))]


@pytest.mark.suite("X1")
def test_the_holds_of_all_processes_never_overlap_and_every_process_finishes(tmp_path):
    holds = 5_000 if LONG else 200
    with ExitStack() as stack:
        peers = compete(stack, tmp_path / "session.jsonl", holds=holds, seconds=0)
        results = [result(one) for one in peers]
    assert [len(intervals) for intervals in results] == [holds] * PROCESSES
    check(results)


@pytest.mark.suite("X1")
@pytest.mark.failure("D7")
def test_the_holds_never_overlap_while_waiters_are_stopped_at_random(tmp_path):
    choice = random.Random(86014)
    stops = 0
    with ExitStack() as stack:
        peers = compete(stack, tmp_path / "session.jsonl", holds=2_000 if LONG else 200, seconds=0, gap=0.002)
        while not all(one.ended() for one in peers):
            victim = choice.choice(peers)
            victim.signal(signal.SIGSTOP)
            stops += not victim.ended()
            time.sleep(choice.uniform(0, 0.03))  # how long it is stopped: the fault, not a wait for something
            victim.signal(signal.SIGCONT)
            time.sleep(choice.uniform(0, 0.02))
            for one in peers:
                assert one.lines is not None  # keeps their pipes empty
        results = [result(one) for one in peers]
    assert stops >= 10
    check(results)


@pytest.mark.suite("X1")
@pytest.mark.failure("D1")
def test_greedy_processes_without_a_gap_get_equal_shares(tmp_path):
    shares = [0]
    for seconds in (30,) if LONG else (4, 20, 60):  # until there is enough to compare, on a busy machine
        with ExitStack() as stack:
            peers = compete(stack, tmp_path / f"{seconds}.jsonl", holds=0, seconds=seconds)
            results = [result(one) for one in peers]
        check(results)
        # Counted while all of them compete: they neither begin nor end in the same instant.
        begin = max(intervals[0][0] for intervals in results)
        end = min(intervals[-1][1] for intervals in results)
        shares = [sum(begin <= entered and left <= end for entered, left, _ in intervals) for intervals in results]
        if min(shares) > 20:
            break
    assert min(shares) > 20
    assert max(shares) / min(shares) <= 1.5
