"""The order of a pool and its limits, as a structure without an event loop, against what is counted afterwards.

Each load is drawn, played by an agenda of instants, and then judged by the instants at which grants began, ended and
were settled: by other means than the pool keeps them.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lanes import PoolSpec, Run
from lanes.checks import Priority
from lanes.queues.pool import Claim, Pool
from tests.supervised import TICK

RETRY_AFTER = 5.0


def waiter(session: str) -> Any:
    """Of an attempt at a run, what a pool looks at."""
    return SimpleNamespace(run=Run(1, "main", session, True, None, 0.0))


@dataclass
class Call:
    """One call of a load, and what became of it."""

    asked: float
    session: str
    tokens: int
    lasts: float
    used: int
    urgency: Priority
    refused: bool = False
    began: float = math.inf
    ended: float = math.inf


class Play:
    """A load, played on a pool."""

    def __init__(self, spec: PoolSpec, calls: list[Call]) -> None:
        self.pool: Pool[Any] = Pool(spec)
        self.now = 0.0
        self._of: dict[Claim[Any], Call] = {}
        self._number = count()
        self._agenda: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        for call in calls:
            self._at(call.asked, self._ask, call)
        while self._agenda:
            self.now, _, step, args = heapq.heappop(self._agenda)
            step(*args)

    def _at(self, when, step, *args):
        heapq.heappush(self._agenda, (when, next(self._number), step, args))

    def _ask(self, call):
        claim = Claim(self.pool, waiter(call.session), call.tokens)
        self._of[claim] = call
        if self.pool.ask(claim, self.now):
            self._began(claim)
        else:
            self.pool.wait(claim, call.urgency, self.now)
        self._look()

    def _began(self, claim):
        call = self._of[claim]
        call.began, call.ended = self.now, self.now + call.lasts
        self._at(call.ended, self._end, claim, call)

    def _end(self, claim, call):
        self.pool.settle(claim, call.used, self.now)
        if call.refused:
            self.pool.throttle(claim, RETRY_AFTER, self.now)
        self.pool.end(claim, self.now)
        self.pool.end(claim, self.now)  # repeatable
        self._look()

    def _look(self):
        while True:
            claim, at = self.pool.next(self.now)
            if claim is None:
                break
            self._began(claim)
        if at < math.inf:
            assert at > self.now
            self._at(at, self._look)


def longest_wait(spec, call, calls):
    """The bound of `docs/pools.md`."""
    held = max(one.lasts for one in calls)
    gap = max(held + (spec.tokens[1] if spec.tokens else 0.0), spec.rate[1] if spec.rate else 0.0)
    own = [one for one in calls if one.urgency is call.urgency]
    place = sum(one.session == call.session and one.asked <= call.asked <= one.began for one in own)
    handicap, one_of = {0: (0.0, 3), 1: (1.0, 5), 2: (5.0, 7)}[call.urgency]
    paused = sum(RETRY_AFTER for one in calls if one.refused)
    return handicap + one_of * place * len({one.session for one in own}) * gap + paused


def judged(spec, calls):
    """Each rule of the limits that a played load breaks."""
    wrong = [
        f"{call} waited for longer than {longest_wait(spec, call, calls)} s"
        for call in calls
        if call.began - call.asked > longest_wait(spec, call, calls) + TICK
    ]
    began = sorted(call.began for call in calls)
    if spec.slots is not None:
        for at in began:
            held = sum(call.began <= at < call.ended or call.began == call.ended == at for call in calls if call.lasts)
            if held > spec.slots:
                wrong.append(f"{held} are held at {at}")
    if spec.rate is not None:
        most, per = spec.rate
        wrong += [
            f"more than {most} begin within {per} s of {one}"
            for one, other in zip(began, began[most:], strict=False)
            if one + per > other
        ]
    if spec.tokens is not None:
        most, per = spec.tokens
        for at in began:  # whatever the provider counts in the stretch that ends now
            inside = [one for one in calls if one.began <= at and one.ended + per > at]
            if sum(one.used if one.ended <= at else one.tokens for one in inside) > most:
                wrong.append(f"more than {most} tokens in the {per} s before {at}")
    return wrong


CALLS = st.builds(
    Call,
    asked=st.sampled_from([0.0, 0.1, 3.0, 9.0, 33.0, 40.0, 80.0]),
    session=st.sampled_from("abc"),
    tokens=st.integers(0, 100),
    lasts=st.sampled_from([0.1, 1.0, 7.3, 40.0]),
    used=st.just(0),
    urgency=st.sampled_from(list(Priority)),
    refused=st.sampled_from([False] * 9 + [True]),
).flatmap(lambda call: st.integers(0, call.tokens).map(lambda used: Call(**{**vars(call), "used": used})))
SPECS = st.builds(
    PoolSpec,
    st.just("p"),
    slots=st.none() | st.integers(1, 4),
    rate=st.none() | st.tuples(st.integers(1, 4), st.sampled_from([1.0, 10.0, 33.3])),
    tokens=st.tuples(st.integers(100, 300), st.sampled_from([1.0, 20.0])),
    recovery=st.sampled_from([1.0, 50.0]),
)


@settings(max_examples=80, deadline=None)
@given(SPECS, st.lists(CALLS, min_size=6, max_size=25))
def test_no_limit_is_ever_exceeded_in_any_stretch_and_each_call_is_granted(spec, calls):
    play = Play(spec, calls)
    assert judged(spec, calls) == []
    assert (play.pool.held, play.pool.waiting, play.pool.allowance.held, play.pool.allowance.reserved) == ({}, 0, 0, 0)


@settings(max_examples=30, deadline=None)
@given(st.lists(CALLS, max_size=40))
def test_the_calls_of_a_session_and_class_are_granted_in_order(calls):
    Play(PoolSpec("p", slots=2, tokens=(100, 5.0)), calls)
    by_line: dict[Any, list[float]] = {}
    for call in sorted(calls, key=lambda call: call.asked):  # stable: as they were asked
        by_line.setdefault((call.session, call.urgency), []).append(call.began)
    assert all(line == sorted(line) for line in by_line.values())


def load(session, number, *, asked=0.0, tokens=0, lasts=1.0, urgency=Priority.FOREGROUND):
    """Calls of one session that are asked for at one instant."""
    return [Call(asked, session, tokens, lasts, tokens, urgency) for _ in range(number)]


@pytest.mark.failure("G27")
@pytest.mark.parametrize("sessions", [1, 5])
def test_a_call_waits_for_one_call_of_each_other_session(sessions):
    """The bound of `docs/pools.md`, and that it is reached."""
    hogs = [one for number in range(sessions) for one in load(f"hog {number}", 50)]
    late = Call(0.5, "late", 0, 1.0, 0, Priority.FOREGROUND)
    Play(PoolSpec("p", slots=1), [*hogs, late])
    before = sum(1.0 <= one.began < late.began for one in hogs)
    assert before == sessions


@pytest.mark.parametrize("urgency, handicap, of", [(0, 0.0, 2), (1, 1.0, 4), (2, 5.0, 6)])
def test_a_class_that_is_due_gets_its_share(urgency, handicap, of):
    """Of so many grants at least one: the bound of `docs/pools.md`."""
    mine = Priority(urgency)
    others = [one for other in Priority if other is not mine for one in load(f"of {other}", 200, urgency=other)]
    own = load("mine", 20, asked=0.5, urgency=mine)
    Play(PoolSpec("p", slots=1), [*others, *own])
    due = 1.0 + handicap
    assert [one.began for one in own] == sorted(one.began for one in own)
    assert all(one.began <= due + of * (number + 1) for number, one in enumerate(own))


def test_a_session_that_comes_back_does_not_get_what_it_did_not_ask_for():
    always, sometimes = load("always", 60), load("sometimes", 20, asked=30.0)
    Play(PoolSpec("p", slots=1), [*always, *sometimes])
    assert max(one.began for one in sometimes) > 65  # in turns from 30 s on; not the twenty at once


def test_claims_that_are_given_up_are_not_collected():
    pool: Pool[Any] = Pool(PoolSpec("p", slots=1))
    first: Claim[Any] = Claim(pool, waiter("a"), 0)
    assert pool.ask(first, 0.0)
    for number in range(100):
        claim: Claim[Any] = Claim(pool, waiter(f"b {number}"), 0)
        assert not pool.ask(claim, 0.0)
        pool.wait(claim, Priority.NORMAL, 0.0)
        pool.end(claim, 0.0)
    assert all(not line.order and not line._turns for line in pool._lines.values())


@pytest.mark.failure("G29")
def test_a_lowered_limit_comes_back_as_a_straight_line():
    pool: Pool[Any] = Pool(PoolSpec("p", slots=4, recovery=60.0))
    claim: Claim[Any] = Claim(pool, waiter("a"), 0)
    pool.ask(claim, 0.0)
    pool.throttle(claim, 10.0, 0.0)
    pool.throttle(claim, 4.0, 1.0)  # a call that had begun before: no lower, and the pause is not shortened
    assert [pool.allowance.share(at) for at in (5.0, 10.0, 25.0, 40.0, 99.0)] == [0.5, 0.5, 0.75, 1.0, 1.0]
    assert pool.allowance.paused_until == 10.0
