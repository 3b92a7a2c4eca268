"""Beside a foreign gateway that takes its lock again at once: its rhythm is learnt, and we get our share of it."""

from __future__ import annotations

import os
from pathlib import Path

import anyio
import pytest
from anyio import create_task_group

from locks import LockRegistry, _os, process
from locks.sidecar import rhythm
from locks.sidecar.rhythm import POLL_S, TRIES, Rhythm
from tests.lock_files import foreign

pytestmark = pytest.mark.failure("Y9")

GAP_S = 0.0015
"""What a gateway needs between removing its file and taking it again."""


@pytest.fixture
def _few_tries(monkeypatch):
    """In virtual time nothing changes between two attempts without a pause, so they are not worth their real time."""
    monkeypatch.setattr(rhythm, "TRIES", 1)
    monkeypatch.setattr(rhythm, "_BURST", 1)


@pytest.fixture
def _wall(virtual, monkeypatch, tmp_path):
    """The wall clock goes with the virtual one, and the directory has always just been changed by it."""
    origin, stat = process.wall() - virtual.now(), _os.stat
    for name in ("wall", "carried_wall"):
        monkeypatch.setattr(process, name, lambda: origin + virtual.now())

    def just_changed(path):
        found = stat(path)
        if path != str(tmp_path):
            return found
        return os.stat_result((*found[:8], process.wall(), *found[9:10]))

    monkeypatch.setattr(_os, "stat", just_changed)


class Gateway:
    """A foreign gateway: it polls every 50 ms, has no queue, and takes its file again after `gap_s`."""

    def __init__(self, path: str, pid: int, holds_s: list[float], gap_s: float = GAP_S) -> None:
        self._lock, self._pid, self._holds_s, self._gap_s = Path(path + ".lock"), pid, holds_s, gap_s
        self.holds = 0

    async def run(self, seconds: float) -> None:
        with anyio.move_on_after(seconds):
            while True:
                try:
                    fd = os.open(self._lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
                except FileExistsError:
                    await anyio.sleep(POLL_S)
                    continue
                os.write(fd, foreign(self._pid, maxHoldMs=1_020_000))
                os.close(fd)
                try:
                    await anyio.sleep(self._holds_s[self.holds % len(self._holds_s)])
                finally:
                    self._lock.unlink()
                self.holds += 1
                await anyio.sleep(self._gap_s)


async def compete(virtual, registries, path, gateway, hold_s, seconds=2.5):
    """How often each of ours had it, and the longest wait."""
    counts, longest, end = dict.fromkeys(range(len(registries)), 0), 0.0, virtual.now() + seconds

    async def work(number):
        nonlocal longest
        while (asked := virtual.now()) < end:
            async with registries[number].lease(path):
                longest = max(longest, virtual.now() - asked)
                counts[number] += 1
                await anyio.sleep(hold_s)

    async with create_task_group() as group:
        group.start_soon(gateway.run, seconds)
        await virtual.settle()
        for number in counts:
            group.start_soon(work, number)
    return list(counts.values()), longest


@pytest.mark.usefixtures("_few_tries", "_wall")
@pytest.mark.parametrize("ours", [1, 2])
@pytest.mark.parametrize("hold_s", [0.02, 0.1])
async def test_beside_a_greedy_gateway_we_get_a_fourth_at_least_and_it_gets_a_fourth(
    virtual, path, other, hold_s, ours
):
    gateway = Gateway(path, other.pid, [hold_s])
    counts, longest = await compete(virtual, [LockRegistry() for _ in range(ours)], path, gateway, hold_s)
    assert sum(counts) >= gateway.holds / 4
    assert gateway.holds >= sum(counts) / 4
    assert max(counts) - min(counts) <= 2
    assert longest < 2.0


@pytest.mark.usefixtures("_few_tries", "_wall")
async def test_holds_that_differ_are_no_reason_to_starve(virtual, path, other):
    gateway = Gateway(path, other.pid, [0.08, 0.21, 0.13, 0.05, 0.33, 0.1], gap_s=0.003)
    counts, _ = await compete(virtual, [LockRegistry()], path, gateway, 0.1)
    assert counts[0] >= gateway.holds / 4


@pytest.mark.usefixtures("_few_tries", "_wall")
async def test_what_was_learnt_outlives_the_lease_and_is_kept_for_few_paths(virtual, path, other, tmp_path):
    registry, gateway = LockRegistry(), Gateway(path, other.pid, [0.1])
    await compete(virtual, [registry], path, gateway, 0.1, seconds=2.0)
    policy = registry._policy
    assert policy is not None
    known = policy._rhythms
    assert list(known) == [path]
    for number in range(70):
        policy.rhythm(str(number))
    assert len(known) == 64 and path not in known


async def test_an_owner_that_is_not_followed_by_another_costs_a_look_every_50_ms(
    virtual, path, lock, other, monkeypatch
):
    lock.write_bytes(foreign(other.pid))
    looks, original = [], _os.open

    def open_(name, flags, *mode):
        if str(name).endswith(".lock") and flags & os.O_CREAT:
            looks.append(virtual.now())
        return original(name, flags, *mode)

    monkeypatch.setattr(_os, "open", open_)
    with anyio.move_on_after(2.02):
        async with LockRegistry().lease(path):
            raise AssertionError("robbed")
    assert len(looks) == 41


async def test_time_that_stands_still_is_not_looked_away(virtual, path, lock, other, monkeypatch):
    """The looks without a pause are bounded: a clock that does not move must not make them a loop without an end."""
    registry, looks, original = LockRegistry(), [], _os.open
    assert registry._policy is not None
    known = registry._policy.rhythm(path)
    now = virtual.now()
    for number in range(4):
        known.saw(((0, number), b""), 0.0, now + number * 0.1 - 0.5)
        known.saw(((0, number), b""), 0.0, now + number * 0.1 - 0.402)
    lock.write_bytes(foreign(other.pid, created_at=-0.1))

    def open_(name, flags, *mode):
        if str(name).endswith(".lock") and flags & os.O_CREAT:
            looks.append(virtual.now())
        return original(name, flags, *mode)

    monkeypatch.setattr(_os, "open", open_)
    with anyio.move_on_after(0.5):
        async with registry.lease(path):
            raise AssertionError("robbed")
    assert TRIES < max(looks.count(at) for at in looks) <= 60 * TRIES


# The rhythm itself


def overtaken(*began: float, seen_until: float = 0.001) -> Rhythm:
    """One that has seen holds begin at these instants, each until shortly before the next began."""
    found = Rhythm()
    for number, at in enumerate(began):
        found.saw(((0, number), b""), 0.0, at)
        if number + 1 < len(began):
            found.saw(((0, number), b""), 0.0, began[number + 1] - seen_until)
    return found


def test_nothing_is_known_of_a_first_hold():
    known = Rhythm()
    known.saw(((0, 1), b""), 3.0, 100.0)
    assert known.next_look(100.0) == (100.05, 1)


def test_once_overtaken_a_hold_is_measured():
    known = overtaken(100.0, 100.1, seen_until=0.06)  # too long ago to tell that there was nothing in between
    assert known.next_look(100.101) == (100.102, 1)
    assert known.next_look(100.2) == pytest.approx((100.205, 1))
    assert known.next_look(110.0) == (110.05, 1)


def test_what_is_known_is_slept_through_and_looked_at_closely_at_its_end():
    known = overtaken(100.0, 100.02, 100.04)
    assert known.next_look(100.041) == pytest.approx((100.0575, 1))
    assert known.next_look(100.058) == (100.058, TRIES)
    assert known.next_look(100.063) == pytest.approx((100.064, 1))
    assert known.next_look(100.5)[0] == pytest.approx(100.5219, abs=0.001)


def test_an_early_end_is_noticed_within_50_ms():
    known = overtaken(100.0, 110.0, 120.0)
    assert known.next_look(121.0) == (121.05, 1)


def test_the_age_that_a_clock_of_another_machine_makes_up_does_not_count():
    known = overtaken(100.0, 100.1)
    known.saw(((0, 7), b""), 3600.0, 100.2)
    assert known.next_look(100.25)[0] == pytest.approx(100.1 - 0.001 + 0.1 - 0.0025, abs=0.15)


def test_a_hold_of_ours_follows_another_for_two_that_overtook_us():
    known = overtaken(*(100 + number * 0.1 for number in range(6)))
    assert [known.may_follow() for _ in range(4)] == [True, True, False, False]
    known = overtaken(*(100 + number * 0.1 for number in range(100)))
    assert sum(known.may_follow() for _ in range(100)) == 16


def test_a_wait_that_has_ended_is_not_overtaken_by_what_comes_next():
    known = overtaken(100.0, 100.1)
    known.ended()
    known.saw(((0, 9), b""), 0.0, 107.0)
    assert not known.may_follow()
    assert known.next_look(107.0)[0] <= 107.1  # what was measured is still known
