"""Which run of a lane's queue was submitted first: looked up without looking at all of them, and never wrong."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest

from lanes import LaneSpec
from lanes.queues.lane import Lane


@dataclass
class Submitted:
    enqueued_at: float


@dataclass(eq=False)
class Waiting:
    """As much of a waiter as a queue looks at."""

    run: Submitted
    rank: int
    joined: int = field(default=0)

    def __lt__(self, other: Waiting) -> bool:
        return self.run.enqueued_at < other.run.enqueued_at


class Walk:
    """A lane to which runs come, come back, and leave, from whatever place."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.lane: Lane[Any] = Lane("one", LaneSpec("one", capacity=1000))
        self.away: list[Waiting] = []
        self.now = 0

    def step(self) -> None:
        lane, chance = self.lane, self.chance
        match chance.choice(("come", "come", "ready", "take", "put back", "leave", "retry", "come back")):
            case "come":
                self.now += chance.choice((0, 1))
                lane.enqueue(Waiting(Submitted(self.now), self.now))
            case "ready" if lane.queued:
                lane.make_ready(chance.choice(list(lane.queued)))
            case "take" if lane.next() is not None:
                lane.take()
            case "put back" if lane.running:
                lane.put_back(chance.choice(list(lane.running)))
            case "leave" if lane.queued:
                self.away.append(chance.choice(list(lane.queued)))
                lane.forget(self.away[-1])
            case "retry" if self.away:
                lane.enqueue_first(self.away.pop(chance.randrange(len(self.away))))
            case "come back" if self.away:
                lane.enqueue(self.away.pop(chance.randrange(len(self.away))))


@pytest.mark.parametrize("seed", range(20))
def test_the_oldest_is_the_oldest_whatever_came_back_or_left(seed):
    walk = Walk(seed)
    for _ in range(300):
        walk.step()
        oldest, ages = walk.lane.oldest(), [one.run.enqueued_at for one in walk.lane.queued]
        assert (None if oldest is None else oldest.run.enqueued_at) == min(ages, default=None)
        assert oldest is None or oldest in walk.lane.queued


def test_a_long_queue_is_not_looked_through():
    class Counted(Submitted):
        looks = 0

        def __getattribute__(self, name):
            Counted.looks += 1
            return super().__getattribute__(name)

    lane: Lane[Any] = Lane("one", LaneSpec("one"))
    for number in range(1000):
        lane.enqueue(Waiting(Counted(number), number))
    Counted.looks = 0
    oldest = lane.oldest()
    assert oldest is not None and oldest.run.enqueued_at == 0
    assert Counted.looks < 10
