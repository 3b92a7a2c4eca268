"""A supervisor that is left in another task, twice, by a collected generator, or while each step of its end fails."""

from __future__ import annotations

import asyncio
import gc
import signal
import threading
from contextlib import asynccontextmanager
from operator import attrgetter

import anyio
import pytest
import trio
from structlog.testing import capture_logs

from lanes import LaneSpec, RunState
from locks import DeadlockError
from runtime import Supervisor
from runtime.ending import Ending
from tests.supervised import assert_empty, on_trio, sleeps

pytestmark = pytest.mark.failure("X5")

LANES = [LaneSpec("session:*", timeout=10.0, grace=0.2)]


class World:
    """What a supervisor takes of the world around it, looked at from outside."""

    def __init__(self, path) -> None:
        self.path, self.services = path, 0
        self.handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
        self.socket = path / "status.sock"

    def supervisor(self, *, signals: bool = False) -> Supervisor:
        self.sup = Supervisor(
            self.path / "sessions",
            lanes=LANES,
            services={"one": self.service},
            exclusive=True,
            inbox=True,
            status_socket=self.socket,
            signals=signals,
            drain_timeout=0.0,
        )
        return self.sup

    @asynccontextmanager
    async def service(self):
        self.services += 1
        try:
            yield
        finally:
            self.services -= 1

    def work(self) -> None:
        self.runs = [self.sup.submit("session:a", sleeps) for _ in range(2)]

    def taken(self) -> list[str]:
        """What is not given back."""
        found = {
            "services": self.services > 0,
            "watchdog": self.sup.watchdog._running,
            "socket": self.socket.exists(),
            "signals": any(signal.getsignal(number) != handler for number, handler in self.handlers.items()),
            "runs": [run for run in self.runs if run.state is not RunState.CANCELLED],
            "lanes": not self.sup._life.ending.lanes.over.is_set(),
            "state": self.sup.state != "stopped",
            "inbox": any(one.name.startswith(f"inbox {self.path}") for one in threading.enumerate()),
        }
        return [name for name, still in found.items() if still]

    async def is_free(self) -> bool:
        """Whether another one gets the directory."""
        async with Supervisor(self.path / "sessions", lanes=LANES, exclusive=True):
            return True

    async def assert_left(self) -> None:
        with anyio.move_on_after(60):
            while self.taken() == ["inbox"]:
                await anyio.sleep(0.01)  # its thread says that it has ended, and ends a moment later
        assert self.taken() == []
        assert_empty(self.sup)
        assert await self.is_free()


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


async def in_a_task_of_its_own(body):
    """Await something in a native task, which has none of anyio's scopes; returns what it returned."""
    results = []

    async def contained():
        try:
            results.append(await body())
        except BaseException as error:
            results.append(error)

    if on_trio():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(contained)
    else:
        await asyncio.get_running_loop().create_task(contained())
    if isinstance(results[0], BaseException):
        raise results[0]
    return results[0]


async def fixture(world):
    """As an async fixture, or the lifespan of some frameworks: each half runs in a task of its own."""
    async with world.supervisor() as sup:
        world.work()
        yield sup


# In which task


async def test_a_block_that_is_left_in_another_task_than_it_was_entered_in_stops(world):
    generator = fixture(world)
    sup = await in_a_task_of_its_own(generator.__anext__)
    await anyio.sleep(0.01)
    assert sup.state == "running"
    with pytest.raises(StopAsyncIteration):
        await in_a_task_of_its_own(generator.__anext__)
    await world.assert_left()


async def test_a_block_that_is_left_while_the_task_that_entered_it_goes_on_stops_and_says_what_to_use(world):
    generator, entered, left = fixture(world), anyio.Event(), anyio.Event()

    async def enters():
        await generator.__anext__()
        entered.set()
        await left.wait()

    async def leaves():
        with pytest.raises(RuntimeError, match=r"in another task .* has stopped; allowed: start\(\) and stop\(\)"):
            await generator.__anext__()
        left.set()

    async def both():
        if on_trio():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(enters)
                await entered.wait()
                await leaves()
        else:
            task = asyncio.get_running_loop().create_task(enters())
            await entered.wait()
            await leaves()
            await task

    await both()
    await world.assert_left()


async def test_a_block_that_is_left_inside_a_run_which_its_stop_would_wait_for_is_refused_at_once(world):
    generator = fixture(world)
    sup = await in_a_task_of_its_own(generator.__anext__)

    async def leaves(ctx):
        with pytest.raises(DeadlockError, match=rf"stop\(\) waits for run {ctx.run.id} on lane main, which awaits it"):
            await generator.__anext__()
        return "goes on"

    assert await sup.run("main", leaves) == "goes on"
    assert sup.state == "running"
    await sup.stop()
    await world.assert_left()


async def test_an_error_that_leaves_the_block_in_another_task_comes_out_as_it_is(world):
    generator = fixture(world)
    await in_a_task_of_its_own(generator.__anext__)

    async def fails():
        await generator.athrow(LookupError("mine"))

    with pytest.raises(LookupError, match="mine"):
        await in_a_task_of_its_own(fails)
    await world.assert_left()


async def test_a_generator_that_is_closed_in_another_task_stops_its_supervisor(world):
    generator = fixture(world)
    await in_a_task_of_its_own(generator.__anext__)
    await in_a_task_of_its_own(generator.aclose)
    await world.assert_left()


@pytest.mark.filterwarnings("ignore:Async generator .* was garbage collected:ResourceWarning")
async def test_a_generator_that_is_collected_stops_its_supervisor(world):
    generator = fixture(world)
    await in_a_task_of_its_own(generator.__anext__)
    del generator
    gc.collect()
    with anyio.fail_after(60):
        while world.sup.state != "stopped":
            await anyio.sleep(0.01)
        await world.sup._life.ending.lanes.over.wait()
    await world.assert_left()


def test_each_step_of_a_test_runner_may_run_in_a_task_of_its_own(world):
    with asyncio.Runner() as runner:
        generator = fixture(world)
        runner.run(in_this_task(generator.__anext__))
        with pytest.raises(StopAsyncIteration):
            runner.run(stops_iterating(generator))
        runner.run(world.assert_left())


async def in_this_task(body):
    return await body()


async def stops_iterating(generator):
    with pytest.raises(StopAsyncIteration) as caught:
        await generator.__anext__()
    raise caught.value from None


def test_a_coroutine_that_is_collected_after_its_loop_has_ended_lets_go_of_the_directory(world):
    async def main():
        async with world.supervisor():
            world.work()
            await asyncio.Event().wait()

    loop = asyncio.new_event_loop()
    task = loop.create_task(main())
    loop.call_later(0.2, loop.stop)
    loop.run_forever()
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    with capture_logs():
        task.get_coro().close()
    assert (world.sup.state, world.sup.watchdog._running, world.socket.exists()) == ("stopped", False, False)
    for left in asyncio.all_tasks(loop):
        left.cancel()
        left._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.run_until_complete(asyncio.sleep(0.5))
    loop.close()
    assert asyncio.run(world.is_free())


# How often


async def test_a_block_may_be_left_twice(world):
    sup = world.supervisor()
    await sup.__aenter__()
    world.work()
    await sup.__aexit__(None, None, None)
    await sup.__aexit__(None, None, None)
    await world.assert_left()


async def test_a_supervisor_that_was_started_in_a_task_group_outlives_its_cancellation(world):
    async with anyio.create_task_group() as group:
        await world.supervisor().start()
        group.cancel_scope.cancel()
    world.work()
    await anyio.sleep(0.01)
    assert (world.sup.state, world.runs[0].state) == ("running", RunState.RUNNING)
    await world.sup.stop()
    await world.assert_left()


@pytest.mark.on_store
async def test_a_block_that_is_left_in_a_cancelled_scope_leaves_everything(world):
    with anyio.CancelScope() as scope:
        async with world.supervisor():
            world.work()
            await anyio.sleep(0.01)
            scope.cancel()
    await world.assert_left()


# Each step fails

ERRORS = {"OSError": OSError("no"), "KeyboardInterrupt": KeyboardInterrupt("no"), "SystemExit": SystemExit("no")}
OWN = {
    "tell_queued": set(),
    "end_running": set(),
    "watch_abandoned": set(),
    "leave_lanes_task": {"lanes"},
    "leave_services": {"services"},
    "close_inbox": {"inbox"},
    "stop_watchdog": {"watchdog"},
    "give_back": {"socket"},
}
"""What stays when a step is not taken at all. (The lanes' own end tells whatever it finds.)"""


def test_the_steps_below_are_all_that_there_are():
    assert tuple(OWN) == Ending.STEPS


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("leaves", ["stop", "block"])
@pytest.mark.parametrize("step", Ending.STEPS)
async def test_whichever_step_of_the_end_raises_all_others_are_taken(world, step, leaves, error):
    sup = world.supervisor()
    ending = sup._life.ending
    real = getattr(ending, step)

    async def raises():
        raise error

    setattr(ending, step, raises)

    async def used():
        if leaves == "stop":
            await sup.start()
            world.work()
            await sup.stop()
        else:
            async with sup:
                world.work()
                await anyio.sleep(0.01)

    with pytest.raises(type(error), match="no"):
        await used()
    with anyio.move_on_after(60):
        while set(world.taken()) - OWN[step]:
            await anyio.sleep(0.01)  # a thread says that it has ended, and ends a moment later
    assert set(world.taken()) - OWN[step] == set()
    await real()
    with anyio.fail_after(60):
        await sup._life.ending.lanes.over.wait()
    await world.assert_left()


INSIDE = [
    ("_bindings", "stopping"),
    ("watchdog", "exit_by"),
    ("_scheduler", "shut"),
    ("_standing.services", "leave"),
    ("watchdog", "stop"),
    ("_bindings", "give_back"),
]


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("owner, name", INSIDE)
async def test_whatever_a_step_calls_raises_afterwards_all_other_steps_are_taken(world, owner, name, error):
    sup = world.supervisor()
    sup._life.restarts._exits.wanted = True  # so that there is a hard limit
    sup.watchdog._leave = lambda code: pytest.fail("the process was to end")
    await sup.start()
    world.work()
    place = attrgetter(owner)(sup)
    real = getattr(place, name)

    def raises(*args, **kwargs):
        real(*args, **kwargs)
        raise error

    async def raises_later(*args, **kwargs):
        await real(*args, **kwargs)
        raise error

    try:
        setattr(place, name, raises_later if name == "leave" else raises)
    except AttributeError:  # it has slots
        pytest.fail(f"{owner}.{name} cannot be replaced")
    with pytest.raises(type(error), match="no"):
        await sup.stop()
    setattr(place, name, real)
    await world.assert_left()


async def test_of_several_steps_that_raise_the_first_is_raised_and_the_others_are_logged(world):
    sup = world.supervisor()
    await sup.start()
    world.work()

    def fail(step, error):
        real = getattr(sup._life.ending, step)

        async def raises():
            await real()
            raise error

        setattr(sup._life.ending, step, raises)

    fail("leave_services", OSError("first"))
    fail("stop_watchdog", LookupError("second"))
    with capture_logs() as logs, pytest.raises(OSError, match="first"):
        await sup.stop()
    (line,) = [line for line in logs if line["event"] == "stop_step_failed"]
    assert (line["step"], line["error"]) == ("stop_watchdog", "LookupError: second")
    await world.assert_left()


@pytest.mark.backends("asyncio")
async def test_signal_handlers_are_given_back_whatever_raises(world):
    sup = world.supervisor(signals=True)
    await sup.start()
    world.work()
    sup.watchdog.stop, real = lambda: 1 / 0, sup.watchdog.stop
    with pytest.raises(ZeroDivisionError):
        await sup.stop()
    real()
    await world.assert_left()


@pytest.mark.backends("asyncio")
@pytest.mark.parametrize("when", ["before its first step", "in the middle"])
async def test_a_stop_whose_own_task_is_cancelled_has_stopped_everything(world, when):
    await world.supervisor().start()
    world.work()

    async def cancels():
        while True:
            for task in asyncio.all_tasks():
                if task.get_name().startswith("stop of"):
                    if when == "in the middle":
                        await asyncio.sleep(0.02)
                    task.cancel()
                    return
            await asyncio.sleep(0)

    killer = asyncio.get_running_loop().create_task(cancels())
    try:
        await world.sup.stop()
    except asyncio.CancelledError:
        assert when == "in the middle"
    await killer
    await world.assert_left()
