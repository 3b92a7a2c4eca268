"""Limits of the process: a warning near one, slow admission past it, then a restart; and back when all is well."""

from __future__ import annotations

import anyio
import pytest
from structlog.testing import capture_logs

from lanes import InvalidLane, LaneSpec
from lanes.queues.throttle import Throttle
from runtime import Limits, Supervisor
from runtime.watch.limits import Keeper
from runtime.watch.resources import Resources, Usage

MB = 1_000_000


def named(logs, event):
    return [entry for entry in logs if entry["event"] == event]


class Kept:
    """A keeper, what it has asked for, and a look at figures a second after the last one."""

    def __init__(self, **limits):
        self.asked: list[str] = []
        self.throttle, self.now = Throttle(), 0.0
        self.keeper = Keeper(Limits(**limits), self.throttle, self.asked.append)

    def look(self, memory=0, descriptors=0, threads=0, abandoned=0, lag_s=0.0):
        self.now += 1.0
        self.keeper.look(self.now, Usage(memory, descriptors, threads), abandoned, lag_s)


@pytest.mark.parametrize("name", ["memory", "descriptors", "threads"])
def test_near_a_limit_it_is_warned_of_once_and_again_only_after_it_was_far(name):
    kept = Kept(**{name: 100})
    with capture_logs() as logs:
        for figure in (70, 79, 80, 95, 100, 75, 85):
            kept.look(**{name: figure})
        assert [entry["limit"] for entry in named(logs, "limit_near")] == [name]
        kept.look(**{name: 69})
        kept.look(**{name: 90})
        assert len(named(logs, "limit_near")) == 2
    assert kept.throttle.why == ""


@pytest.mark.parametrize(
    "name, figure, limit, told",
    [
        ("memory", 600 * MB, 512 * MB, "600 MB are resident; allowed: 512 MB"),
        ("descriptors", 101, 100, "101 descriptors are open; allowed: 100"),
        ("threads", 101, 100, "101 threads exist; allowed: 100"),
    ],
)
def test_past_a_limit_admission_is_slow_and_at_full_speed_again_when_it_is_kept(name, figure, limit, told):
    kept = Kept(**{name: limit})
    with capture_logs() as logs:
        kept.look(**{name: limit})
        assert kept.throttle.why == "", "the limit itself is allowed"
        for _ in range(3):
            kept.look(**{name: figure})
        assert kept.throttle.why == told
        assert [entry["reason"] for entry in named(logs, "limit_passed")] == [told]
        kept.look(**{name: limit})
        assert kept.throttle.why == ""
    assert kept.asked == []


def test_a_limit_that_stays_passed_asks_for_one_restart_and_one_that_comes_back_starts_anew():
    kept = Kept(threads=10, restart_after_s=3.0)
    for _ in range(3):
        kept.look(threads=11)
    assert kept.asked == []
    for _ in range(5):
        kept.look(threads=11)
    assert kept.asked == ["11 threads exist; allowed: 10"]
    kept.look(threads=10)
    for _ in range(3):
        kept.look(threads=12)
    assert len(kept.asked) == 1, "its time starts anew"
    kept.look(threads=12)
    assert kept.asked[1:] == ["12 threads exist; allowed: 10"]


def test_abandoned_bodies_count_where_a_restart_is_wanted():
    for wanted, asked in ((None, []), (0.0, ["11 bodies are abandoned; allowed: 10"])):
        kept = Kept(restart_after_s=wanted)
        kept.look(abandoned=10)
        kept.look(abandoned=11)
        assert kept.asked == asked


def test_a_late_loop_is_slowed_down_until_it_is_well_within_its_limit():
    kept = Kept(lag_s=1.0)
    assert not kept.keeper.late(1.0)
    assert kept.throttle.why == ""
    assert kept.keeper.late(1.5)
    assert kept.throttle.why == "the event loop was 1.50 s late; allowed: 1 s"
    kept.look(lag_s=0.6)
    assert kept.throttle.why
    kept.look(lag_s=0.5)
    assert kept.throttle.why == ""


@pytest.mark.parametrize("name", ["lag_s", "dead_s"])
@pytest.mark.parametrize("wrong", [0, -1.0, "1", None, True, float("nan")], ids=repr)
def test_a_bad_time_is_refused_by_name(name, wrong):
    with pytest.raises(InvalidLane, match=rf"^limits\.{name}: "):
        Limits(**{name: wrong})


@pytest.mark.parametrize("name", ["memory", "descriptors", "threads"])
@pytest.mark.parametrize("wrong", [0, -1, 1.5, "1", True], ids=repr)
def test_a_bad_number_is_refused_by_name(name, wrong):
    with pytest.raises(InvalidLane, match=rf"^limits\.{name}: "):
        Limits(**{name: wrong})


def test_looking_at_the_process_never_raises_and_knows_its_growth():
    resources = Resources()
    usage = resources.look(0.0)
    assert usage.memory > MB and usage.descriptors > 0 and usage.threads > 0
    resources._count = lambda: (_ for _ in ()).throw(OSError("no descriptor is left"))
    assert resources.look(1.0).descriptors == 0
    for n in range(100):
        resources._process = FakeProcess(MB * n)
        resources.look(10.0 * n)
    assert resources.statistics().memory_per_hour == pytest.approx(360 * MB)
    assert resources.statistics().threads_per_hour == pytest.approx(0.0, abs=1e-6)


class FakeProcess:
    """A process whose memory is known."""

    def __init__(self, memory):
        self.rss = memory

    def memory_info(self):
        return self

    def num_threads(self):
        return 7


# In a supervisor


class Using(Resources):
    """Resources that say what the test wants."""

    def __init__(self, threads):
        super().__init__()
        self.threads = threads

    def look(self, now):
        self.now = Usage(0, 0, self.threads)
        return self.now


@pytest.mark.parametrize("late", [False, True], ids=["calm", "late all the time"])
async def test_a_process_that_keeps_using_too_much_is_restarted(virtual, tmp_path, late):
    """Also while its loop is late again and again: that is what too much memory does."""
    sup = Supervisor(tmp_path, lanes=[LaneSpec("work", timeout=100.0)], limits=Limits(threads=10, restart_after_s=5.0))
    sup.watchdog._resources = using = Using(threads=11)
    with capture_logs() as logs:
        async with sup:
            for _ in range(40):
                if late:
                    virtual.advance(1.2)
                await anyio.sleep(0.25)
            assert sup.generation == 2
            using.threads = 5
            await anyio.sleep(5.0)
            assert sup.statistics().admission_slowed == ""
            assert sup.generation == 2
    assert [entry["reason"] for entry in named(logs, "restart_requested")] == ["11 threads exist; allowed: 10"]


@pytest.mark.backends("asyncio", "uvloop", "trio")
async def test_the_restart_begins_from_the_watchdogs_thread_in_real_time_too(tmp_path):
    from tests.poll import eventually

    sup = Supervisor(tmp_path, limits=Limits(threads=1, restart_after_s=0.0))
    sup.watchdog._resources = Using(threads=2)
    async with sup:
        await eventually(lambda: sup.generation == 2, within=60)
