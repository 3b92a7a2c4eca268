"""The virtual clock moves both event loops, and nothing else does."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time

import anyio
import pytest
import trio
from anyio import from_thread, to_thread

from lanes import InvalidLane
from locks import _clock
from runtime.testing.clock import START
from runtime.testing.errors import Stuck
from runtime.testing.virtual import VirtualClock, virtual_time


def stuck_with(text: str) -> pytest.RaisesGroup[Stuck]:
    return pytest.RaisesGroup(pytest.RaisesExc(Stuck, match=text), allow_unwrapped=True, flatten_subgroups=True)


@pytest.fixture(params=["asyncio", "trio"])
def backend(request) -> str:
    """For tests that run a loop themselves, because it fails."""
    return request.param


async def test_a_day_of_sleeps_takes_no_time(virtual):
    began = time.perf_counter()

    async def sleep_on(step: float) -> None:
        while virtual.now() < START + 86_400:
            await anyio.sleep(step)

    async with anyio.create_task_group() as group:
        for lane in range(50):
            group.start_soon(sleep_on, 60.0 + lane)
    assert START + 86_400 <= virtual.now() < START + 86_400 + 110
    assert time.perf_counter() - began < 3600  # not a day; how fast it is depends on what else runs


async def test_loop_and_clock_show_the_same_instant(virtual):
    assert _clock.clock is virtual
    assert virtual.now() == anyio.current_time() == START
    for seconds in (0.1, 1e-6, 90_000.0, 0.3):  # a day and more: asyncio sleeps at most a day at a time
        due = virtual.now() + seconds
        with anyio.CancelScope(deadline=due):
            await anyio.sleep_forever()
        assert virtual.now() == anyio.current_time() == due


@pytest.mark.parametrize("seconds", [-1, math.nan, math.inf, "1"])
async def test_only_a_duration_can_pass(virtual, seconds):
    with pytest.raises(InvalidLane, match=r"^seconds: .* is no duration; allowed: seconds from 0 to "):
        virtual.advance(seconds)
    assert virtual.now() == START


async def test_time_stands_still_while_somebody_runs(virtual):
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep, 1)
        for _ in range(1000):
            await anyio.lowlevel.checkpoint()
        assert virtual.now() == START
    assert virtual.now() == START + 1


async def test_alarms_ring_at_their_instants_in_order_between_timers(virtual):
    heard: list[tuple[str, float]] = []

    def alarm(name: str) -> _clock.Alarm:
        def ring(now: float) -> float:
            assert now == virtual.now() == anyio.current_time()
            heard.append((name, now - START))
            return math.inf

        return virtual.alarm(ring)

    async def timer(seconds: float) -> None:
        await anyio.sleep(seconds)
        heard.append(("timer", virtual.now() - START))

    alarms = [alarm("a"), alarm("b"), alarm("c"), alarm("never")]
    for one, seconds in zip(alarms, (7.25, 2.0, 5.0), strict=False):
        one.ring_by(START + seconds)
    async with anyio.create_task_group() as group:
        for seconds in (1.0, 5.0, 6.0, 8.0):
            group.start_soon(timer, seconds)
    assert heard == [
        ("timer", 1.0),
        ("b", 2.0),
        ("c", 5.0),  # before the timer of the same instant
        ("timer", 5.0),
        ("timer", 6.0),
        ("a", 7.25),
        ("timer", 8.0),
    ]


async def test_an_alarm_rings_again_when_its_callback_says_so(virtual):
    heard: list[float] = []

    def ring(now: float) -> float:
        heard.append(now - START)
        return now + 10 if len(heard) < 3 else math.inf

    alarm = virtual.alarm(ring)
    alarm.ring_by(START + 30)
    alarm.ring_by(START + 5)
    alarm.ring_by(START + 40)  # later than what is due: nothing
    await anyio.sleep(100)
    assert heard == [5, 15, 25]


async def test_an_alarm_that_is_set_again_to_the_instant_it_has_just_rung_at_rings_once_more(virtual):
    heard: list[float] = []

    def ring(now: float) -> float:
        heard.append(now - START)
        return now if len(heard) == 1 else math.inf

    alarm = virtual.alarm(ring)
    alarm.ring_by(START + 9)
    alarm.ring_by(START + 5)
    await anyio.sleep(20)
    assert heard == [5, 5]


async def test_an_alarm_that_nobody_refers_to_is_silent(virtual):
    heard: list[float] = []

    def ring(now: float) -> float:
        heard.append(now)
        return math.inf

    virtual.alarm(ring).ring_by(START + 1)
    await anyio.sleep(2)
    assert heard == []


async def test_an_alarm_wakes_a_task(virtual):
    event = anyio.Event()

    def ring(now: float) -> float:
        event.set()
        return math.inf

    alarm = virtual.alarm(ring)
    alarm.ring_by(START + 3)
    await event.wait()
    assert virtual.now() == START + 3


async def test_an_alarm_set_to_the_past_rings_at_this_instant(virtual):
    heard: list[float] = []

    def ring(now: float) -> float:
        heard.append(now)
        return math.inf

    alarm = virtual.alarm(ring)
    alarm.ring_by(START - 10)
    assert heard == []  # not inside `ring_by`, whose caller may hold a mutex
    await anyio.lowlevel.checkpoint()
    await anyio.lowlevel.checkpoint()
    assert heard == [START]


async def test_whoever_blocks_the_loop_hears_alarms_and_no_timers(virtual):
    heard: list[tuple[str, float]] = []

    def ring(now: float) -> float:
        heard.append(("alarm", now - START))
        return math.inf

    async def timer() -> None:
        await anyio.sleep(1)
        heard.append(("timer", virtual.now() - START))

    alarm = virtual.alarm(ring)
    alarm.ring_by(START + 2)
    async with anyio.create_task_group() as group:
        group.start_soon(timer)
        await virtual.settle()
        virtual.advance(5)
        heard.append(("free again", virtual.now() - START))
    assert heard == [("alarm", 2), ("free again", 5), ("timer", 5)]


async def test_settling_waits_for_everybody_and_takes_no_time(virtual):
    steps: list[int] = []

    async def work() -> None:
        for step in range(20):
            await anyio.lowlevel.checkpoint()
            steps.append(step)
        await anyio.sleep(1)
        steps.append(-1)

    async with anyio.create_task_group() as group:
        group.start_soon(work)
        await virtual.settle()
        assert steps == list(range(20))
        assert virtual.now() == START


async def test_a_body_that_spins_meets_its_deadline(virtual):
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep, 5)
        while virtual.now() < START + 5:
            await anyio.lowlevel.checkpoint()


async def test_a_body_that_swallows_its_cancellation_lets_time_pass_and_never_gets_its_sleep(virtual):
    stop: list[float] = []

    async def stop_after(seconds: float) -> None:
        await anyio.sleep(seconds)
        stop.append(virtual.now() - START)

    async def swallow() -> None:
        while not stop:
            with contextlib.suppress(anyio.get_cancelled_exc_class()):
                await anyio.sleep(0.5)
                raise AssertionError("slept although cancelled")

    async with anyio.create_task_group() as group:
        group.start_soon(stop_after, 7)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await swallow()
    assert stop == [7]


async def test_worker_threads_hold_time_still(virtual):
    def work() -> float:
        time.sleep(0.05)
        return virtual.now()

    with anyio.fail_after(300):
        assert await to_thread.run_sync(work) == START
        if asyncio._get_running_loop() is not None:
            assert await asyncio.to_thread(work) == START


async def test_a_thread_that_waits_for_the_loop_lets_time_pass(virtual):
    def work() -> float:
        from_thread.run(anyio.sleep, 7)
        return virtual.now()

    assert await to_thread.run_sync(work) == START + 7


async def test_a_thread_may_hang_on_purpose(virtual):
    virtual.threads_hold = False
    let_go = threading.Event()

    async def hang() -> None:
        await to_thread.run_sync(let_go.wait)

    async with anyio.create_task_group() as group:
        group.start_soon(hang)
        await anyio.sleep(60)
        assert virtual.now() == START + 60  # time has passed beside the thread
        let_go.set()
        virtual.threads_hold = True


async def test_time_is_held_for_threads_it_does_not_know(virtual):
    loop = asyncio._get_running_loop()
    post = loop.call_soon_threadsafe if loop is not None else trio.lowlevel.current_trio_token().run_sync_soon
    event = anyio.Event()

    def work() -> None:
        time.sleep(0.05)
        post(event.set)

    thread = threading.Thread(target=work)
    with anyio.fail_after(5), virtual.held():
        thread.start()
        await event.wait()
    thread.join()
    assert virtual.now() == START


def test_waiting_for_ever_fails_and_says_who_waits(backend):
    async def wait_in_vain() -> None:
        await anyio.Event().wait()

    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep, 5)
            group.start_soon(wait_in_vain)

    with virtual_time() as virtual, stuck_with("(?s)everything waits for ever.*wait_in_vain.*test_virtual"):
        virtual.run(backend, main)


def test_silence_while_time_is_held_fails(backend):
    async def main(virtual: VirtualClock) -> None:
        virtual.patience = 0.05
        with virtual.held():
            await anyio.sleep(1)

    with virtual_time() as virtual, stuck_with("1 blocks of held"):
        virtual.run(backend, main, virtual)


def test_an_alarm_that_always_rings_fails(backend):
    async def main(virtual: VirtualClock) -> None:
        alarm = virtual.alarm(lambda now: now)
        alarm.ring_by(START + 1)
        await anyio.sleep(2)

    with virtual_time() as virtual, stuck_with("rings for ever"):
        virtual.run(backend, main, virtual)


def test_what_a_callback_raises_is_not_lost(backend):
    def ring(now: float) -> float:
        raise ZeroDivisionError

    async def main(virtual: VirtualClock) -> None:
        alarm = virtual.alarm(ring)
        alarm.ring_by(START + 1)
        await anyio.sleep(2)

    with virtual_time() as virtual, pytest.raises(ZeroDivisionError):
        virtual.run(backend, main, virtual)


def test_what_a_late_alarm_raises_is_not_lost(backend):
    def ring(now: float) -> float:
        raise ZeroDivisionError

    async def main(virtual: VirtualClock) -> None:
        alarm = virtual.alarm(ring)
        alarm.ring_by(START - 1)
        await anyio.sleep(2)

    with virtual_time() as virtual, pytest.raises(ZeroDivisionError):
        virtual.run(backend, main, virtual)


def test_time_passes_without_a_loop(virtual):
    heard: list[float] = []

    def ring(now: float) -> float:
        heard.append(now)
        return now + 1

    alarm = virtual.alarm(ring)
    alarm.ring_by(START + 1)
    virtual.advance(3.5)
    assert heard == [START + 1, START + 2, START + 3]
    assert virtual.now() == START + 3.5


def test_the_system_clock_is_back_afterwards():
    with virtual_time() as virtual:
        assert virtual.now() == _clock.clock.now() == START
    assert isinstance(_clock.clock, _clock.SystemClock)
