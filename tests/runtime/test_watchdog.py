"""The watchdog: it reports a blocked loop from outside, tells late from blocked, and knows whose code it was."""

from __future__ import annotations

import asyncio
import contextvars
import faulthandler
import os
import select
import sys
import sysconfig
import threading
import time
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from structlog.testing import capture_logs

from lanes import LaneSpec
from lanes.queues.throttle import Throttle
from locks import _clock
from runtime import Limits, Supervisor
from runtime.testing.clock import VirtualAlarm
from runtime.watch import watchdog as module
from runtime.watch.frames import frame_of, is_idle, name_of, place_of, run_of, source_of, stack_text
from runtime.watch.limits import Keeper
from runtime.watch.watchdog import Watchdog
from tests.poll import eventually, eventually_sync


def block(seconds):
    """Keep the loop's thread, in a call that the tests' watch over blocking calls does not know."""
    select.select([], [], [], seconds)  # the guilty line


GUILTY = f"test_watchdog.py:{block.__code__.co_firstlineno + 2} in block"


def named(logs, event):
    return [entry for entry in logs if entry["event"] == event]


class Observer:
    """Looks at the loop from a thread of its own while the loop is blocked, and keeps what it saw."""

    def __init__(self, sup):
        self.seen = []
        self._sup, self._over = sup, threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self):
        while not self._over.wait(0.01):
            found = self._sup.watchdog.blocked()
            if found is not None:
                self.seen.append((time.monotonic(), found))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._over.set()
        self._thread.join()


# A loop that is blocked


@pytest.mark.failure("F6")
async def test_a_loop_blocked_for_three_seconds_is_reported_meanwhile_with_its_line_and_its_run(tmp_path):
    async def body(ctx):
        began = time.monotonic()
        block(3.0)
        return began, time.monotonic()

    with capture_logs() as logs:
        async with Supervisor(tmp_path) as sup:
            with Observer(sup) as observer:
                began, ended = await sup.run("main", body)
            await eventually(lambda: named(logs, "loop_unblocked"))
            assert sup.watchdog.blocked() is None
            assert sup.watchdog.quantiles().max >= 2.5
    (told,) = named(logs, "loop_blocked")
    assert (told["place"], told["run"]) == (GUILTY, "run 1 on lane main")
    assert "select.select([], [], [], seconds)  # the guilty line" in told["stack"]
    assert 0.5 <= told["blocked_s"] < ended - began, "told while it is blocked"
    at, first = observer.seen[0]
    assert began < at < ended
    assert (first.place, first.run) == (GUILTY, "run 1 on lane main")
    (over,) = named(logs, "loop_unblocked")
    assert over["blocked_s"] >= 2.5


@pytest.mark.failure("F6")
@pytest.mark.parametrize("who", ["child task", "nobody"])
async def test_it_is_told_whose_code_blocks(tmp_path, who):
    async def child():
        block(0.8)

    async def body(ctx):
        async with anyio.create_task_group() as group:
            group.start_soon(child)

    with capture_logs() as logs:
        async with Supervisor(tmp_path) as sup:
            await (sup.run("main", body) if who == "child task" else child())
            await eventually(lambda: named(logs, "loop_unblocked"))
    (told,) = named(logs, "loop_blocked")
    assert (told["place"], told["run"]) == (GUILTY, "run 1 on lane main" if who == "child task" else "")


# Whose code a frame is


async def in_all_places(sup):
    """What `run_of` says for a body, a task of it, and threads that it started."""
    said = {}

    def look(where):
        said[where] = name_of(run_of(sys._getframe()))

    async def task():
        look("task")

    async def body(ctx):
        look("body")
        async with anyio.create_task_group() as group:
            group.start_soon(task)
        await anyio.to_thread.run_sync(look, "thread")
        if sys.modules["asyncio"]._get_running_loop() is not None:
            await asyncio.to_thread(look, "thread of asyncio")

    await sup.run("main", body)
    look("nobody")
    await anyio.to_thread.run_sync(look, "thread of nobody")
    return said


async def test_bodies_their_tasks_and_threads_belong_to_their_run_and_others_to_nobody(tmp_path):
    async with Supervisor(tmp_path) as sup:
        said = await in_all_places(sup)
    assert said.pop("nobody") == said.pop("thread of nobody") == ""
    assert len(said) >= 3
    assert set(said.values()) == {"run 1 on lane main"}, said


@pytest.mark.backends("asyncio", "trio")
async def test_what_a_program_calls_its_variables_is_not_asked_and_harms_nobody(tmp_path):
    class Strange:
        def __getattr__(self, name):
            raise SystemExit(f"nobody may ask for {name}")

        def __bool__(self):
            raise SystemExit("nor for this")

    async def body(ctx):
        return contextvars.copy_context()

    async with Supervisor(tmp_path) as sup:
        context = await sup.run("main", body)  # a run's, kept by code that is nobody's
        self = task = Strange()
        assert run_of(sys._getframe()) is None
        del context, self, task


def test_a_thread_that_is_gone_is_nobodys():
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
    assert frame_of(-1) is None
    assert (run_of(None), place_of(None), stack_text(None)) == (None, "", "")


@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "trio"])
def test_a_loop_that_waits_is_idle(loop):
    """Run as a program does it: the test runner is the host of a trio that is its guest, and waits elsewhere."""
    me = threading.get_ident()

    async def main():
        return await anyio.to_thread.run_sync(lambda: eventually_sync(lambda: is_idle(frame_of(me)), within=60))

    options = {"use_uvloop": True} if loop == "uvloop" else {}
    assert anyio.run(main, backend="trio" if loop == "trio" else "asyncio", backend_options=options)


def test_an_idle_uvloop_is_told_from_a_blocked_one_whoever_runs_it():
    import uvloop

    loop = uvloop.new_event_loop()
    me = threading.get_ident()

    async def main():
        def looks():
            return eventually_sync(lambda: is_idle(frame_of(me)), within=60)

        return await loop.run_in_executor(None, looks)

    try:
        assert loop.run_until_complete(main())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()


# Late is not blocked; in virtual time


class Watched:
    """A watchdog by itself, whose thread comes when the test says so."""

    def __init__(self, **options):
        self.left: list[int] = []
        self.fed: list[float] = []
        self.asked: list[str] = []
        self.limits = options.pop("limits", Limits())
        self.throttle = Throttle()
        self.dog = Watchdog(
            Keeper(self.limits, self.throttle, self.asked.append),
            look=options.pop("look", list),
            abandoned=lambda: 0,
            alive=lambda: self.fed.append(_clock.clock.now()),
            leave=self.left.append,
            **options,
        )

    def __enter__(self):
        self.dog.start()
        return self

    def __exit__(self, *error):
        self.dog.stop()

    def stand_still(self, virtual, seconds):
        """Nobody gets on, this thread included; then its tick comes."""
        alarm = self.dog._alarm
        assert isinstance(alarm, VirtualAlarm)
        alarm.due = float("inf")
        virtual.advance(seconds)
        alarm.ring_by(virtual.now())


@pytest.fixture
def no_last_resort(monkeypatch):
    """The real one is the process's only one, and belongs to the test runner."""
    armed: list[Any] = []
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda seconds, **how: armed.append((seconds, how)))
    monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", lambda: armed.append("cancelled"))
    monkeypatch.setattr(faulthandler, "dump_traceback", lambda **_: None)
    return armed


async def test_the_lag_of_a_loop_that_gets_on_is_nothing(virtual):
    with Watched() as watched:
        await anyio.sleep(10.0)
        assert len(watched.dog.samples) >= 190
        assert max(watched.dog.samples) <= 0.051
        assert list(watched.dog.stalls) == []


@pytest.mark.failure("C5")
async def test_a_process_that_stood_still_is_said_to_have_and_is_not_blocked(virtual):
    with Watched() as watched, capture_logs() as logs:
        await anyio.sleep(2.0)
        began = virtual.now()
        watched.stand_still(virtual, 30.0)
        assert watched.dog.why_late(began + 10.0, virtual.now()).startswith("the process was stopped")
        await anyio.sleep(1.0)
        (told,) = named(logs, "process_stood_still")
        assert told["late_s"] == pytest.approx(30.0, abs=0.1)
        assert named(logs, "loop_blocked") == [] and watched.dog.blocked() is None
        assert max(watched.dog.samples) < 0.3, "nobody could have answered"
        assert watched.throttle.why == ""
        assert watched.dog.stood_still_s(began, virtual.now()) == pytest.approx(30.0, abs=0.2)
        assert watched.dog.stood_still_s(virtual.now() - 0.5, virtual.now()) == 0.0


@pytest.mark.failure("C5")
async def test_a_suspended_machine_is_recognised_by_its_clock(virtual, monkeypatch):
    asleep = [0.0]
    monkeypatch.setattr(module, "_asleep_s", lambda: asleep[0])
    with Watched() as watched, capture_logs() as logs:
        await anyio.sleep(2.0)
        asleep[0] += 3600.0
        await anyio.sleep(1.0)
        (told,) = named(logs, "process_stood_still")
        assert (told["late_s"], told["reason"]) == (3600.0, "the machine was suspended")
        assert watched.dog.stood_still_s(0.0, virtual.now()) == 0.0, "by the clock that all goes by"


@pytest.mark.failure("C5")
async def test_time_in_which_the_process_stands_still_does_not_count_towards_its_end(virtual):
    with Watched() as watched:
        await anyio.sleep(1.0)
        watched.dog.exit_by(virtual.now() + 10.0, 75, "the restart did not end in time")
        watched.stand_still(virtual, 60.0)
        await anyio.sleep(5.0)
        assert watched.left == []
        with capture_logs() as logs:
            await anyio.sleep(6.0)
        assert watched.left == [75]
        assert [entry["reason"] for entry in named(logs, "process_exits")] == ["the restart did not end in time"]


async def test_an_end_that_was_taken_back_never_comes(virtual):
    with Watched() as watched:
        watched.dog.exit_by(virtual.now() + 1.0, 75, "too long")
        watched.dog.exit_by(float("inf"), 0, "")
        await anyio.sleep(10.0)
        assert watched.left == []


async def test_a_blocked_loop_in_virtual_time_is_blocked_until_it_answers(virtual):
    with Watched() as watched, capture_logs() as logs:
        await anyio.sleep(1.0)
        virtual.advance(5.0)  # the guilty line here
        blocked = watched.dog.blocked()
        assert blocked is not None and 4.9 <= blocked.for_s <= 5.0
        assert "virtual.advance(5.0)  # the guilty line here" in blocked.stack
        await anyio.sleep(1.0)
        assert watched.dog.blocked() is None
        (over,) = named(logs, "loop_unblocked")
        assert over["blocked_s"] == pytest.approx(5.0, abs=0.1)


# The end of a dead loop, and the last resort


async def test_a_dead_loop_ends_the_process(virtual, no_last_resort):
    with Watched(dead_s=60.0) as watched, capture_logs() as logs:
        await anyio.sleep(1.0)
        virtual.advance(59.0)
        assert watched.left == []
        virtual.advance(1.2)
        assert watched.left and set(watched.left) == {75}
    assert "the event loop was blocked for 60 s at test_watchdog.py:" in named(logs, "process_exits")[0]["reason"]


async def test_without_it_a_dead_loop_is_only_reported(virtual, no_last_resort):
    with Watched(dead_s=None) as watched:
        virtual.advance(1000.0)
        assert watched.left == []
    assert no_last_resort == []


async def test_the_last_resort_is_armed_again_each_second_and_not_after_the_end(virtual, no_last_resort):
    with Watched(dead_s=60.0) as watched:
        await anyio.sleep(10.0)
        assert 9 <= len(no_last_resort) <= 10
        assert no_last_resort[-1] == (70.0, {"exit": True})
    assert no_last_resort[-1] == "cancelled"
    watched.dog._arm_last_resort()  # its thread was in the middle of a tick
    await anyio.sleep(5.0)
    assert no_last_resort[-1] == "cancelled"


@pytest.mark.parametrize("on_zombie, arms", [("raise", False), ("exit", True)])
async def test_the_last_resort_is_for_who_gave_the_process_away(virtual, tmp_path, no_last_resort, on_zombie, arms):
    async with Supervisor(tmp_path, on_zombie=on_zombie):
        await anyio.sleep(5.0)
    assert bool(no_last_resort) == arms


# Who is fed, and who looks


async def test_the_service_manager_is_told_that_it_lives_only_while_the_loop_gets_on(virtual):
    with Watched() as watched:
        await anyio.sleep(10.0)
        fed = len(watched.fed)
        assert 9 <= fed <= 10
        virtual.advance(10.0)
        assert len(watched.fed) - fed <= 2, "for two seconds at most"
        fed = len(watched.fed)
        await anyio.sleep(5.0)
        assert len(watched.fed) > fed + 3


async def test_the_service_manager_is_not_told_so_while_something_is_wrong(virtual):
    wrong = ["a lane is stuck"]
    with Watched(look=lambda: list(wrong)) as watched:
        await anyio.sleep(10.0)
        fed = len(watched.fed)
        assert fed <= 1
        wrong.clear()
        await anyio.sleep(5.0)
        assert len(watched.fed) > fed + 2


@pytest.mark.failure("F4")
async def test_after_a_stall_the_loop_looks_around_once_however_long_it_was(virtual):
    looks: list[float] = []

    def look():
        looks.append(virtual.now())
        return []

    with Watched(look=look) as watched:
        await anyio.sleep(3.0)
        virtual.advance(60.0)
        await anyio.sleep(5.0)
        assert watched.dog.problems == []
    gaps = [after - before for before, after in pairwise(looks)]
    assert len(looks) >= 6 and min(gaps) >= 0.9


async def test_what_the_look_raises_ends_neither_the_loop_nor_the_watch(virtual):
    def fails():
        raise LookupError("no such lane")

    with Watched(look=fails) as watched, capture_logs() as logs:
        await anyio.sleep(5.0)
        assert len(watched.fed) >= 4
    assert {entry["error"] for entry in named(logs, "watchdog_failed")} == {"LookupError: no such lane"}


async def test_what_its_thread_raises_is_logged_and_it_goes_on(virtual):
    watched = Watched()
    watched.dog.alive = lambda: 1 / 0
    with watched, capture_logs() as logs:
        await anyio.sleep(5.0)
        assert len(watched.dog.samples) > 80
    assert len(named(logs, "watchdog_failed")) >= 4


async def test_stopped_it_says_and_does_nothing_more(virtual):
    looks: list[float] = []

    def look():
        looks.append(virtual.now())
        return []

    with Watched(look=look) as watched:
        await anyio.sleep(3.0)
    count, samples = len(looks), len(watched.dog.samples)
    watched.dog.exit_by(virtual.now() + 1.0, 75, "too late")
    await anyio.sleep(10.0)
    assert (len(looks), len(watched.dog.samples), watched.left) == (count, samples, [])
    assert watched.dog.why_late(virtual.now() - 1.0, virtual.now()) == ""


async def test_a_stall_that_is_noted_meanwhile_does_not_disturb_who_asks_why(virtual):
    """The watchdog's thread notes one while the loop's thread looks through them."""
    with Watched() as watched:
        dog = watched.dog
        noted: list[bool] = []

        class Noting(module.Stall):
            @property
            def ended(self):
                if not noted:
                    noted.append(True)
                    dog.stalls.append(module.Stall(0.0, 1.0, "noted meanwhile"))
                return 1.0

            @ended.setter
            def ended(self, value):
                pass

        for _ in range(3):
            stall = object.__new__(Noting)
            object.__setattr__(stall, "began", 0.0)
            object.__setattr__(stall, "why", "long ago")
            dog.stalls.append(stall)
        assert dog.why_late(0.5, virtual.now()) == "long ago"
        assert dog.stood_still_s(0.0, 1.0) == 1.0
        assert noted


@pytest.mark.failure("F3")
async def test_a_body_that_blocks_once_is_not_a_reason_to_be_unwell_for_ever(virtual, tmp_path):
    async def body(ctx):
        virtual.advance(3.0)
        await anyio.sleep(5.0)
        return sup.statistics()

    async with Supervisor(tmp_path, lanes=[LaneSpec("work", timeout=60.0)]) as sup:
        now = await sup.run("work", body)
        assert now.healthy and now.admission_slowed == ""
        assert now.loop_lag.max >= 2.9


def test_the_guilty_line_of_a_program_that_is_installed_is_its_own_not_that_of_the_standard_library():
    installed = os.path.join(sysconfig.get_path("purelib"), "gateway", "tool.py")
    space: dict[str, Any] = {"frames": []}
    source = "import json\ndef look(_):\n    import sys\n    frames.append(sys._getframe())\ndef load():\n"
    exec(compile(source + "    json.loads('{}', object_hook=look)\n", installed, "exec"), space)
    thread = threading.Thread(target=space["load"])  # with nobody's code further out
    thread.start()
    thread.join()
    (frame,) = space["frames"]
    assert frame.f_back.f_code.co_filename != installed
    assert place_of(frame.f_back) == "tool.py:6 in load"


def test_a_frame_that_stands_between_two_lines_has_a_place():
    """The watchdog looks at frames of other threads; Python says `None` of a line there, and the look must not end."""
    frame: Any = SimpleNamespace(f_code=waits_code(), f_lineno=None, f_globals={}, f_back=None)
    assert place_of(frame).endswith(":0 in waits_code") and source_of(frame) == place_of(frame)
    assert "line 0, in waits_code" in stack_text(frame)


def waits_code():
    return waits_code.__code__
