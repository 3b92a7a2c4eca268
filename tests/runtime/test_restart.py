"""A restart inside the process: its steps to the tick, whatever comes in between, and what it never leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import threading
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from structlog.testing import capture_logs

from lanes import Draining, LaneSpec, RetrySpec, Run, RunState
from locks import DeadlockError, RunEnded
from runtime import AbandonedBodies, Supervisor
from runtime.ending import Ending
from runtime.restart import Restarts
from runtime.services import ServicesStuck
from runtime.testing.suspensions import Suspensions, sweep
from tests.supervised import Shielded, about, assert_empty, gone, texts

GRACE = 2.0


async def handle(ctx, messages):
    await ctx.session.append({"text": " ".join(message.body for message in messages)})
    return ctx.services.get("db")


LANES = [
    LaneSpec("session:*", handler=handle, timeout=100.0, grace=GRACE),
    LaneSpec("side:*", timeout=100.0, grace=GRACE),
    LaneSpec("quiet:*", handler=handle, timeout=100.0, grace=GRACE, debounce=5.0),
    LaneSpec("stubborn:*", timeout=100.0, grace=GRACE, retry=RetrySpec(attempts=3, wait=20.0)),
]


class Service:
    """A service that counts its generations, and does in a step of the n-th one what it is told."""

    def __init__(self):
        self.heard: list[str] = []
        self.entering: dict[int, Callable[[], Awaitable[object]]] = {}
        self.leaving: dict[int, Callable[[], Awaitable[object]]] = {}
        self.count = 0

    @asynccontextmanager
    async def __call__(self):
        self.count += 1
        mine = self.count
        if mine in self.entering:
            await self.entering[mine]()
        self.heard.append(f"in {mine}")
        try:
            yield mine
        finally:
            self.heard.append(f"out {mine}")
            if mine in self.leaving:
                await self.leaving[mine]()

    @property
    def open(self):
        """The generations that are entered."""
        return [one for one in range(1, self.count + 1) if f"in {one}" in self.heard and f"out {one}" not in self.heard]


@pytest.fixture
def no_last_resort(monkeypatch):
    """The real one is the process's only one, and belongs to the test runner."""
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda *_, **__: None)
    monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", lambda: None)
    monkeypatch.setattr(faulthandler, "dump_traceback", lambda **_: None)


@pytest.fixture
def service():
    return Service()


@pytest.fixture
async def sup(virtual, tmp_path, service):
    virtual.busy_limit = 100
    sup = Supervisor(tmp_path, lanes=LANES, services={"db": service}, drain_timeout=10.0, services_timeout=5.0)
    await sup.start()
    yield sup
    await sup.stop(drain_timeout=0.0)
    assert_empty(sup)
    assert service.open == []


async def sleeps(ctx, seconds=float("inf")):
    await anyio.sleep(seconds)
    return ctx.services["db"]


async def cleans(ctx, seconds):
    """A body that takes so long to end when it is asked to."""
    try:
        await anyio.sleep_forever()
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(seconds)


async def works(sup, generation):
    """It takes work, of which that generation's services are part."""
    assert sup.state == "running"
    with anyio.fail_after(5):
        assert await sup.submit("main", sleeps, 0).result() == generation


def named(logs, event):
    return [entry for entry in logs if entry["event"] == event]


# Each step, to the tick


@pytest.mark.suite("R1")
@pytest.mark.parametrize("early_s, state", [(0.001, RunState.DONE), (-0.001, RunState.CANCELLED)])
async def test_a_run_that_ends_around_the_drain_limit_is_finished_or_cancelled(sup, virtual, early_s, state):
    run = sup.submit("side:a", sleeps, 10.0 - early_s)
    began = virtual.now()
    report = await sup.restart()
    assert (run.state, virtual.now()) == (state, about(began + min(10.0, 10.0 - early_s)))
    assert (report.finished, report.cancelled) == ((1, 0) if state is RunState.DONE else (0, 1))
    await works(sup, 2)


@pytest.mark.suite("R1")
async def test_a_run_that_ends_at_the_very_drain_limit_is_counted_once(sup):
    run = sup.submit("side:a", sleeps, 10.0)
    await anyio.lowlevel.checkpoint()
    report = await sup.restart()
    assert run.state in (RunState.DONE, RunState.CANCELLED)
    assert report.finished + report.cancelled == 1
    await works(sup, 2)


@pytest.mark.suite("R1")
@pytest.mark.parametrize("takes_s", [GRACE - 0.001, GRACE])
async def test_a_clean_up_that_takes_the_whole_grace_is_no_zombie_before_it_has_passed(sup, virtual, takes_s):
    run = sup.submit("side:a", cleans, takes_s)
    await virtual.settle()
    with contextlib.suppress(AbandonedBodies):  # in the very tick it may be either, and is called what it is
        assert (await sup.restart(drain_timeout=1.0)).cancelled == 1
    assert run.state is RunState.CANCELLED or takes_s == GRACE
    await works(sup, sup.generation)


@pytest.mark.suite("R1")
@pytest.mark.failure("G3")
async def test_a_clean_up_past_the_grace_is_a_zombie_and_admission_is_open_again(sup, virtual, service):
    run, began = sup.submit("side:a", cleans, GRACE + 0.001), virtual.now()
    await virtual.settle()
    with pytest.raises(AbandonedBodies) as caught:
        await sup.restart(drain_timeout=0.0)
    assert caught.value.runs == (run,) and virtual.now() == about(began + GRACE)
    await works(sup, 1)
    assert service.heard == ["in 1"]
    await gone(sup)


@pytest.mark.suite("R1")
@pytest.mark.parametrize("step, takes_s", [("entering", 5.0 - 0.001), ("leaving", 5.0)])
async def test_a_service_that_takes_all_of_its_time_is_in_time(sup, virtual, service, step, takes_s):
    getattr(service, step)[2 if step == "entering" else 1] = lambda: anyio.sleep(takes_s)
    began = virtual.now()
    await sup.restart()
    assert virtual.now() == about(began + takes_s)
    await works(sup, 2)


@pytest.mark.suite("R1")
async def test_a_service_that_leaves_only_when_it_is_cancelled_has_its_time_twice(sup, virtual, service):
    service.leaving[1] = anyio.sleep_forever
    began = virtual.now()
    with capture_logs() as logs:
        await sup.restart()
    assert virtual.now() == about(began + 5.0)
    assert service.heard == ["in 1", "out 1", "in 2"]
    assert named(logs, "services_stuck") == []
    await works(sup, 2)


@pytest.mark.suite("R1")
async def test_the_steps_stand_in_the_log_and_what_is_next_begins_after_what_was(sup, service):
    with capture_logs() as logs:
        sup.submit("side:a", sleeps)
        await sup.restart(drain_timeout=3.0)
    told = [entry["event"] for entry in logs if entry["event"].startswith(("restart", "admission"))]
    assert told == ["restart_started", "restart_finished"]
    (done,) = named(logs, "restart_finished")
    assert (done["generation"], done["took_s"], done["cancelled"], done["queued"]) == (2, 3.0, 1, 0)
    assert service.heard == ["in 1", "out 1", "in 2"]


# What is kept


@pytest.mark.on_store
@pytest.mark.suite("R1")
@pytest.mark.failure("G1")
async def test_queued_work_keeps_its_runs_their_order_and_their_keys_and_meets_the_new_services(sup, service):
    started = []

    async def notes(ctx):
        started.append(ctx.run.id)
        return ctx.services["db"]

    sup.submit("session:a", sleeps)
    waiting = [sup.submit("session:a", notes) for _ in range(3)]
    posted = sup.post("session:a", "hello", dedupe="key")
    report = await sup.restart(drain_timeout=1.0)
    assert report.unstarted == (*waiting, posted)
    assert sup.post("session:a", "hello", dedupe="key") is posted
    assert [await run.result() for run in (*waiting, posted)] == [2] * 4
    assert started == [run.id for run in waiting]


@pytest.mark.suite("R1")
async def test_what_is_debounced_collected_or_not_read_yet_is_kept(sup):
    async def listens(ctx):
        await anyio.sleep_forever()

    quiet = sup.post("quiet:x", "one", session="q")
    sup.submit("session:a", listens)
    steered = sup.post("session:a", "said to it", when_busy="steer")
    first = sup.post("session:a", "first", when_busy="collect")
    assert sup.post("session:a", "second", when_busy="collect") is first
    await sup.restart(drain_timeout=1.0)
    assert [await run.result() for run in (steered, first, quiet)] == [2] * 3
    assert texts(sup, "a") == ["said to it", "first second"]
    assert texts(sup, "q") == ["one"]


@pytest.mark.suite("R1")
@pytest.mark.parametrize("waits_s", [1.0, 15.0, 30.0], ids=["before its instant", "around it", "long after it"])
async def test_an_attempt_that_waits_for_its_instant_is_kept(sup, virtual, waits_s):
    async def fails(ctx):
        if ctx.run.attempt == 1:
            raise ConnectionError("no model")
        return virtual.now()

    run = sup.submit("stubborn:a", fails)
    await virtual.settle()
    due, ended = sup._scheduler.board.live[run.id].held_until, virtual.now() + waits_s
    sup.submit("side:a", sleeps)
    await sup.restart(drain_timeout=waits_s)
    assert await run.result() == about(max(due, ended))
    assert run.outcome.attempts == 2


@pytest.mark.suite("R1")
async def test_what_is_parked_stays_parked_and_can_be_submitted_again(sup):
    async def fails(ctx):
        if sup.generation == 1:
            raise ConnectionError("no model")
        return "well"

    run = sup.submit("stubborn:a", fails)
    await run.wait()
    await sup.restart()
    assert [one.run for one in sup.parked()] == [run]
    assert await sup.resubmit(run.id).result() == "well"


@pytest.mark.suite("R1")
@pytest.mark.failure("G5")
async def test_children_of_what_runs_start_during_the_drain_and_others_are_refused(sup):
    async def child(ctx):
        return "child"

    async def parent(ctx):
        await anyio.sleep(1.0)
        with pytest.raises(Draining):
            sup.submit("side:b", child)
        with pytest.raises(Draining):
            ctx.submit("side:b", child, detached=True)
        return await ctx.submit("side:b", child).result()

    run = sup.submit("side:a", parent)
    await anyio.sleep(0.5)
    assert (await sup.restart()).finished == 1
    assert await run.result() == "child"
    await works(sup, 2)


@pytest.mark.suite("R1")
@pytest.mark.failure("G5")
async def test_what_is_submitted_in_any_step_is_refused_or_kept(sup, service):
    """At each instant of a restart whose steps all take their time."""
    service.leaving[1] = service.entering[2] = lambda: anyio.sleep(1.0)
    taken, refused, states = [], 0, set()

    async def body(ctx):
        return ctx.services["db"]

    sup.submit("side:a", cleans, 1.0)
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: sup.restart(drain_timeout=1.0))
        for _ in range(50):
            await anyio.sleep(0.1)
            states.add(sup.state)
            try:
                taken.append(sup.submit("side:b", body))
            except Draining:
                refused += 1
    assert [await run.result() for run in taken] == [2] * len(taken)
    assert refused >= 35 and taken and states == {"restarting", "running"}


@pytest.mark.on_store
@pytest.mark.suite("R1")
@pytest.mark.failure("G2")
async def test_the_old_body_is_fenced_before_the_next_one_begins(sup):
    told = []

    async def old(ctx):
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await ctx.session.append({"text": "last words"})
                told.append("old ends")

    async def new(ctx):
        told.append("new begins")
        with pytest.raises(RunEnded):
            await kept[0].session.append({"text": "late"})
        await ctx.session.append({"text": "new"})

    kept = []

    async def keeps(ctx):
        kept.append(ctx)
        await old(ctx)

    sup.submit("session:a", keeps)
    run = sup.submit("session:a", new)
    before = sup.statistics().late_writes_refused
    await sup.restart(drain_timeout=1.0)
    await run.result()
    assert told == ["old ends", "new begins"]
    assert texts(sup, "a") == ["last words", "new"]
    assert sup.statistics().late_writes_refused == before + 1


@pytest.mark.failure("G1", "G2")
async def test_ten_restarts_in_the_middle_of_runs_leave_exact_counters_and_one_generation(sup, virtual, service):
    descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    tasks = len(anyio.get_running_tasks())
    epochs = []

    async def body(ctx):
        async with ctx.session.lease() as lease:
            epochs.append(lease.epoch)
        await anyio.sleep_forever()

    for generation in range(2, 12):
        running = [sup.submit("session:a", body), sup.submit("side:a", sleeps)]
        queued = sup.submit("session:a", sleeps, 0)
        await anyio.sleep(0.1)  # they start on a ramp
        report = await sup.restart(drain_timeout=0.5)
        assert (report.finished, report.cancelled, report.unstarted) == (0, 2, (queued,))
        assert await queued.result() == sup.generation == generation
        assert service.open == [generation]
        assert [run.state for run in running] == [RunState.CANCELLED] * 2
    runs = sup.statistics().runs
    assert (runs["done"], runs["cancelled"], runs["queued"], runs["running"]) == (10, 20, 0, 0)
    assert (runs["failed"], runs["timed_out"], runs["abandoned"]) == (0, 0, 0)
    assert epochs == sorted(set(epochs)), "epochs go on from one generation to the next"
    await virtual.settle()
    assert len(anyio.get_running_tasks()) == tasks
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == (descriptors, threads)


# Taken back, or done: never closed


async def test_cancelled_while_runs_finish_they_go_on_undisturbed(sup, virtual):
    run, queued = sup.submit("side:a", sleeps, 5.0), sup.submit("session:a", sleeps, 0)
    with capture_logs() as logs, anyio.move_on_after(2.0) as scope:
        await sup.restart()
    assert scope.cancelled_caught
    assert [entry["event"] for entry in logs if "admission" in entry["event"]] == ["admission_reopened"]
    await works(sup, 1)
    assert (await run.result(), await queued.result()) == (1, 1)
    assert run.outcome.ran_s == about(5.0)


@pytest.mark.suite("R1", "C1")
@pytest.mark.failure("G4")
async def test_cancelled_anywhere_it_is_as_before_or_restarted(sup, service):
    service.leaving = service.entering = dict.fromkeys(range(1000), lambda: anyio.sleep(0.1))
    runs: list[Run] = []
    before: list[int] = []

    async def prepare():
        before[:] = [sup.generation]
        runs[:] = [sup.submit("side:a", sleeps, 1.0), sup.submit("side:b", cleans, 0.5)]
        runs.append(sup.submit("side:b", sleeps, 0))
        await anyio.sleep(0.1)  # they start on a ramp

    async def check(k):
        assert sup.generation - before[0] in (0, 1)
        assert service.open == [sup.generation]
        await works(sup, sup.generation)
        if sup.generation == before[0]:
            assert runs[1].state is RunState.RUNNING, "not disturbed"
            runs[1].cancel()
        assert await runs[0].result() in before
        assert await runs[2].result() == sup.generation
        await runs[1].wait()

    assert await sweep(lambda: sup.restart(drain_timeout=2.0), check, prepare=prepare, least=2) >= 2


@pytest.mark.backends("asyncio")
@pytest.mark.failure("G4")
@pytest.mark.parametrize("after_s", [0.5, 1.5, 2.5, 3.5], ids=["drain", "grace", "leaving", "entering"])
async def test_a_native_cancellation_in_any_step_leaves_it_open(sup, service, after_s):
    service.leaving[1] = service.entering[2] = lambda: anyio.sleep(1.0)
    run = sup.submit("side:a", cleans, 1.0)
    await anyio.lowlevel.checkpoint()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(sup.restart(drain_timeout=1.0), after_s)
    await works(sup, 2 if after_s > 2.0 else 1)
    assert service.open == [sup.generation]
    run.cancel()
    await run.wait()


@pytest.mark.failure("G4")
@pytest.mark.suite("R1")
async def test_a_service_that_fails_on_leaving_is_told_and_the_next_generation_begins(sup, service):
    async def fails():
        raise ConnectionError("the line is cut")

    service.leaving[1] = fails
    with capture_logs() as logs:
        await sup.restart()
    assert [entry["error"] for entry in named(logs, "service_failed")] == ["ConnectionError: the line is cut"]
    await works(sup, 2)


async def raises():
    raise ConnectionError("no model")


@pytest.mark.failure("G4")
@pytest.mark.suite("R1")
@pytest.mark.parametrize(
    "step, what, error",
    [("entering", raises, ConnectionError), ("entering", anyio.sleep_forever, ServicesStuck), ("leaving", None, None)],
    ids=["entering raises", "entering hangs", "leaving hangs"],
)
async def test_a_step_that_fails_for_good_stops_all_and_everybody_is_told(
    virtual, tmp_path, service, step, what, error
):
    virtual.busy_limit = 100
    release = anyio.Event()

    async def ignores():
        with anyio.CancelScope(shield=True):
            await release.wait()

    getattr(service, step)[2 if step == "entering" else 1] = what or ignores
    sup = Supervisor(tmp_path, lanes=LANES, services={"db": service}, services_timeout=5.0)
    runs: list[Run] = []

    async def block():
        async with sup:
            runs.extend(sup.submit("session:a", sleeps) for _ in range(2))
            await anyio.lowlevel.checkpoint()
            sup.request_restart("for a test")
            await anyio.sleep_forever()

    with capture_logs() as logs, pytest.raises(error or ServicesStuck):
        await block()
    assert sup.state == "stopped"
    queued = runs[1]
    assert queued.outcome is not None
    assert (queued.state, queued.outcome.reason) == (
        RunState.CANCELLED,
        "the supervisor stopped before it started",
    )
    assert [entry["run"] for entry in named(logs, "run_not_started")] == [queued.id]
    assert len(named(logs, "restart_failed")) == 1
    with pytest.raises(Draining):
        sup.submit("main", sleeps)
    release.set()
    await virtual.settle()
    assert service.open == []


@pytest.mark.failure("G4")
async def test_when_a_step_of_that_end_fails_too_the_block_is_left_all_the_same(
    virtual, tmp_path, service, monkeypatch
):
    give_back = Ending.give_back

    async def fails(self):
        await give_back(self)
        raise OSError("no socket")

    monkeypatch.setattr(Ending, "give_back", fails)
    service.entering[2] = raises
    sup = Supervisor(tmp_path, lanes=LANES, services={"db": service})

    began = virtual.now()

    async def block():
        async with sup:
            sup.request_restart("for a test")
            await anyio.sleep(60.0)

    with capture_logs() as logs, pytest.raises(ConnectionError, match="no model"):
        await block()
    assert sup.state == "stopped" and virtual.now() == about(began)
    assert len(named(logs, "restart_failed")) == 1


# Zombies


@pytest.mark.failure("G3")
@pytest.mark.parametrize("on_zombie", ["raise", "exit"])
@pytest.mark.usefixtures("no_last_resort")
async def test_beside_a_zombie_the_healthy_finishes_and_the_restart_is_bounded(virtual, tmp_path, on_zombie):
    virtual.busy_limit = 100
    left, seen = [], []
    sup = Supervisor(tmp_path, lanes=LANES, on_zombie=on_zombie, services_timeout=5.0)

    def leave(code):
        left.append(code)
        seen.append(queued.state)

    sup.watchdog._leave = leave
    await sup.start()
    zombie = Shielded()
    bad, good = sup.submit("side:a", zombie), sup.submit("side:b", sleeps_well)
    queued = sup.submit("side:a", sleeps_well, 0)
    await zombie.started.wait()
    began = virtual.now()
    with capture_logs() as logs, pytest.raises(AbandonedBodies):
        await sup.restart(drain_timeout=8.0)
    assert virtual.now() == about(began + 8.0 + GRACE)
    assert (good.state, bad.state) == (RunState.DONE, RunState.ABANDONED)
    if on_zombie == "exit":
        assert left == [75] and seen == [RunState.QUEUED], "nothing is begun that the process takes along"
        assert [entry["run"] for entry in named(logs, "run_not_started")] == [queued.id]
        assert [entry["code"] for entry in named(logs, "process_exits")] == [75]
    else:
        assert left == []
    assert await queued.result() == "well"
    zombie.release()
    await gone(sup)
    await sup.stop()
    assert_empty(sup)


async def sleeps_well(ctx, seconds=5.0):
    await anyio.sleep(seconds)
    return "well"


@pytest.mark.suite("R1")
@pytest.mark.failure("G4")
@pytest.mark.usefixtures("no_last_resort")
async def test_a_restart_that_overruns_its_bounds_ends_the_process(virtual, tmp_path, monkeypatch):
    left: list[float] = []
    sup = Supervisor(tmp_path, lanes=LANES, on_zombie="exit", services_timeout=5.0)
    sup.watchdog._leave = lambda code: left.extend((code, virtual.now()))
    release = anyio.Event()
    monkeypatch.setattr(Restarts, "_change_services", lambda _: release.wait())
    await sup.start()
    began = virtual.now()
    async with anyio.create_task_group() as group:
        group.start_soon(restarts, sup)
        await anyio.sleep(100.0)
        release.set()
        assert left[0] == 75
        assert left[1] == pytest.approx(began + 10.0 + 2 * GRACE + 1.0 + 7 * 5.0 + 5.0, abs=0.1)
    await sup.stop()
    assert len(left) == 2


async def restarts(sup):
    await sup.restart(drain_timeout=10.0)


# Who else comes


@pytest.mark.suite("R1")
async def test_two_restarts_at_once_are_one(sup):
    sup.submit("side:a", sleeps, 1.0)
    refused = []

    async def second():
        await anyio.sleep(0.5)
        try:
            await sup.restart()
        except Draining as error:
            refused.append(str(error))

    async with anyio.create_task_group() as group:
        group.start_soon(restarts, sup)
        group.start_soon(second)
    assert refused == ["restart: the supervisor is restarting; allowed: while it runs or drains"]
    await works(sup, 2)


@pytest.mark.suite("R1")
@pytest.mark.failure("E4")
async def test_awaited_inside_a_run_or_a_task_of_it_it_is_refused_at_once(sup):
    async def body(ctx):
        async def child():
            with pytest.raises(DeadlockError, match=r"restart\(\) waits for run 1 on lane side:a, which awaits it"):
                await sup.restart()

        await child()
        async with anyio.create_task_group() as group:
            group.start_soon(child)
        return "goes on"

    assert await sup.submit("side:a", body).result() == "goes on"
    await works(sup, 1)


@pytest.mark.suite("R1")
async def test_a_run_may_ask_for_it_and_twice_is_once(sup, virtual):
    async def body(ctx):
        sup.request_restart("a run")
        sup.request_restart("a run")
        await anyio.sleep(1.0)
        return ctx.services["db"]

    with capture_logs() as logs:
        assert await sup.submit("side:a", body).result() == 1
        await virtual.settle()
    assert len(named(logs, "restart_requested")) == 2
    assert len(named(logs, "restart_started")) == 1
    await works(sup, 2)


@pytest.mark.suite("R1")
@pytest.mark.parametrize("hook", ["on_run_start", "on_run_end", "on_wait"])
async def test_a_hook_may_ask_for_it(virtual, tmp_path, hook):
    made: list[Supervisor] = []

    def asks(run):
        if made:
            made.pop().request_restart("a hook")

    options: dict[str, Any] = {hook: asks}
    async with Supervisor(tmp_path, lanes=LANES, **options) as sup:
        made.append(sup)
        runs = [sup.submit("side:a", sleeps_well, 1.0), sup.submit("side:a", sleeps_well, 1.0)]
        assert [await run.result() for run in runs] == ["well"] * 2
        await virtual.settle()
        assert sup.generation == 2


async def test_before_it_has_started_and_after_it_has_stopped_it_is_refused(virtual, tmp_path, service):
    service.entering[1] = lambda: anyio.sleep(2.0)
    sup = Supervisor(tmp_path, services={"db": service})
    for state in ("new", "starting", "stopped"):
        if state == "stopped":
            await sup.stop()
        async with anyio.create_task_group() as group:
            if state == "starting":
                group.start_soon(sup.start)
                await anyio.sleep(1.0)
            sup.request_restart("too early, or too late")
            with pytest.raises(Draining, match=f"the supervisor is {state}"):
                await sup.restart()
    assert service.heard == ["in 1", "out 1"]
    assert sup.generation == 1


@pytest.mark.suite("R1")
@pytest.mark.parametrize("after_s", [0.0, 0.5, 1.5, 2.5, 3.5], ids=["asked", "drain", "grace", "leaving", "entering"])
async def test_a_stop_in_any_step_gives_the_restart_up_and_stops(virtual, tmp_path, service, after_s):
    service.leaving[1] = service.entering[2] = lambda: anyio.sleep(1.0)
    sup = Supervisor(tmp_path, lanes=LANES, services={"db": service}, services_timeout=5.0)
    await sup.start()
    run, queued = sup.submit("side:a", cleans, 1.0), sup.submit("side:a", sleeps)
    began = virtual.now()
    sup.request_restart("for a test") if after_s == 0.0 else None
    async with anyio.create_task_group() as group:
        if after_s:
            group.start_soon(given_up, sup)
        await anyio.sleep(after_s)
        report = await sup.stop(drain_timeout=0.0)
    assert sup.state == "stopped" and service.open == []
    assert (run.state, queued.state) == (RunState.CANCELLED, RunState.CANCELLED)
    assert report.unstarted == (queued,)
    assert virtual.now() <= began + 5.1
    if after_s < 2.0:
        assert service.count == 1, "no generation is begun for a supervisor that stops"
    await virtual.settle()
    assert_empty(sup)


async def given_up(sup):
    with contextlib.suppress(Draining):
        await sup.restart(drain_timeout=1.0)


@pytest.mark.suite("R1", "R2")
@pytest.mark.parametrize("after_s", [0.5, 1.5, 2.5, 3.5], ids=["drain", "grace", "leaving", "entering"])
async def test_a_signal_to_stop_in_any_step_ends_the_block(virtual, tmp_path, service, after_s):
    service.leaving[1] = service.entering[2] = lambda: anyio.sleep(1.0)
    began = virtual.now()
    async with Supervisor(tmp_path, lanes=LANES, services={"db": service}, drain_timeout=1.0) as sup:
        run = sup.submit("side:a", cleans, 1.0)
        await anyio.lowlevel.checkpoint()
        sup.request_restart("SIGUSR1")
        await anyio.sleep(after_s)
        sup.signalled(1)
        await anyio.sleep_forever()
    assert (sup.state, run.state, service.open) == ("stopped", RunState.CANCELLED, [])
    assert virtual.now() < began + 8.0


@pytest.mark.suite("R1")
async def test_a_restart_ends_a_drain(sup, virtual):
    run = sup.submit("side:a", sleeps)
    reports = []

    async def drains():
        reports.append(await sup.drain(30.0))

    async with anyio.create_task_group() as group:
        group.start_soon(drains)
        await anyio.sleep(1.0)
        assert sup.state == "draining"
        await sup.restart(drain_timeout=1.0)
        later = sup.submit("side:b", sleeps, 60.0)
    assert run.state is RunState.CANCELLED
    assert (await later.wait()).state is RunState.DONE, "the old drain does not cancel what the next generation began"
    await works(sup, 2)


@pytest.mark.suite("R1")
async def test_stop_at_any_suspension_of_a_restart_stops(virtual, tmp_path):
    virtual.busy_limit = 100
    k, reached = 0, True
    while reached:
        k += 1
        service = Service()
        service.leaving = service.entering = dict.fromkeys(range(9), lambda: anyio.sleep(0.1))
        sup = Supervisor(tmp_path, lanes=LANES, services={"db": service})
        await sup.start()
        run = sup.submit("side:a", cleans, 0.5)
        await virtual.settle()
        now = anyio.Event()
        driver = Suspensions(k, now.set)

        async def restart(driver=driver, sup=sup):
            with contextlib.suppress(Draining):
                await driver.run(sup.restart(drain_timeout=0.5))

        async with anyio.create_task_group() as group:
            group.start_soon(restart)
            with anyio.move_on_after(30.0):
                await now.wait()
            await sup.stop(drain_timeout=0.0)
        assert (sup.state, run.state, service.open) == ("stopped", RunState.CANCELLED, [])
        reached = driver.acted
    assert k >= 3


async def test_a_drain_that_gives_a_restart_up_starts_nothing_that_is_queued(virtual, tmp_path):
    began: list[str] = []

    async def body(ctx, name, seconds):
        began.append(name)
        await anyio.sleep(seconds)

    async with Supervisor(tmp_path, lanes=[LaneSpec("one", capacity=1)]) as sup:
        sup.submit("one", body, "first", 1.5)
        queued = sup.submit("one", body, "queued", 1.5)
        sup.submit("main", body, "long", 4.0)
        sup.request_restart()
        await anyio.sleep(2.0)
        report = await sup.drain(10.0)
        assert sup.state == "draining"
        assert sorted(began) == ["first", "long"]
        assert report.unstarted == (queued,)
