"""KeyboardInterrupt and SystemExit in a body, and the end of the whole loop: the runs end, and so does the program."""

from __future__ import annotations

import asyncio
import gc
import signal
from contextlib import asynccontextmanager

import anyio
import pytest
import structlog
from structlog.testing import capture_logs

from lanes import LaneSpec, Run, RunState
from lanes.core.start import Starting
from lanes.queues.groups import Group
from locks import _clock
from runtime import Supervisor
from tests.supervised import Shielded, gone, lines_of, path_of, sleeps

BACKENDS = pytest.mark.parametrize("backend", ["asyncio", "trio"])


@pytest.fixture(autouse=True)
def _quiet():
    with capture_logs():
        yield
    structlog.reset_defaults()


def members(error: BaseException) -> list[BaseException]:
    """The exceptions that are no groups, at or below `error`."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for member in error.exceptions for leaf in members(member)]
    return [error]


@BACKENDS
def test_a_keyboard_interrupt_in_a_body_ends_the_program_and_its_runs(backend, tmp_path):
    runs: list[Run] = []
    sup: Supervisor

    async def interrupted(ctx):
        await ctx.session.append({"text": "question"})
        raise KeyboardInterrupt

    async def main():
        nonlocal sup
        async with Supervisor(tmp_path, lanes=[LaneSpec("session:*", grace=0.2)]) as sup:
            runs.append(sup.submit("session:b", anyio_sleep_forever))
            runs.append(sup.submit("session:a", interrupted))
            with anyio.fail_after(60):
                await anyio.sleep_forever()

    with pytest.raises(BaseException) as caught:  # noqa: PT011 -- its kind is asserted below
        anyio.run(main, backend=backend)
    assert {type(error) for error in members(caught.value)} == {KeyboardInterrupt}
    assert all(run.outcome is not None for run in runs)
    assert lines_of(path_of(sup, "a")) == [{"text": "question"}]
    assert sup.statistics().leases.held == 0


# What else waits when a body raises KeyboardInterrupt


class Scene:
    """A supervisor whose program is interrupted: what waits in it, and what each one was told."""

    def __init__(self, path, **options) -> None:
        self.told: list[int] = []
        self.runs: list[Run] = []
        self.heard: list[str] = []
        lanes = [LaneSpec("session:*", grace=0.2), LaneSpec("side", grace=0.2, capacity=9)]
        options.setdefault("on_run_end", lambda run: self.told.append(run.id))
        self.sup = Supervisor(path, lanes=lanes, **options)

    async def everything_waits(self) -> None:
        """Bodies that run, queued work, work that waits for a parent, and waiters."""

        async def parent(ctx):
            self.runs.append(ctx.submit("side", sleeps))
            await self.runs[-1].wait()

        for lane, body in (("session:b", sleeps), ("session:b", sleeps), ("side", parent), ("side", cleans)):
            self.runs.append(self.sup.submit(lane, body))
        while len(self.runs) < 5:
            await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()

    def interrupt(self, body) -> None:
        """Have a body run that interrupts the program, while another message waits for its session."""
        self.runs += [self.sup.submit("session:a", body) for body in (body, sleeps)]

    def assert_all_told(self) -> None:
        gc.collect()  # what was never awaited says so
        assert [run for run in self.runs if run.outcome is None] == []
        assert sorted(self.told) == sorted(run.id for run in self.runs), "each one once"
        now = self.sup.statistics()
        assert (now.leases.held, now.leases.waiting, self.sup.runs()) == (0, 0, [])
        assert self.sup.state == "stopped"


async def cleans(ctx):
    try:
        await anyio.sleep_forever()
    finally:
        async with ctx.cleanup():
            await anyio.sleep(0.01)


async def interrupts(ctx):
    raise KeyboardInterrupt


async def interrupts_later(ctx):
    await anyio.sleep(0.01)
    raise KeyboardInterrupt


async def interrupts_in_a_group(ctx):
    raise BaseExceptionGroup("several", [LookupError("one"), BaseExceptionGroup("more", [KeyboardInterrupt()])])


async def interrupts_in_a_child_task(ctx):
    async def child():
        raise KeyboardInterrupt

    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep_forever)
        group.start_soon(child)


async def interrupts_in_its_cleanup(ctx):
    ctx.run.cancel("first")
    try:
        await anyio.sleep_forever()
    finally:
        raise KeyboardInterrupt


BODIES = [interrupts, interrupts_later, interrupts_in_a_group, interrupts_in_a_child_task, interrupts_in_its_cleanup]


@BACKENDS
@pytest.mark.failure("X3")
@pytest.mark.parametrize("body", BODIES)
def test_whatever_waits_is_told_when_a_body_interrupts_the_program(backend, tmp_path, body):
    scene = Scene(tmp_path)

    async def main():
        async with scene.sup:
            await scene.everything_waits()
            scene.interrupt(body)
            with anyio.fail_after(60):
                await scene.runs[-1].wait()
                await anyio.sleep_forever()

    with pytest.raises(BaseException) as caught:  # noqa: PT011 -- its kind is asserted below
        anyio.run(main, backend=backend)
    assert KeyboardInterrupt in {type(error) for error in members(caught.value)}
    scene.assert_all_told()
    first, following = scene.runs[-2:]
    # A child task of asyncio raises it past its body, which is then cancelled with all others.
    past_it = body is interrupts_in_a_child_task and backend == "asyncio"
    assert first.state is (RunState.CANCELLED if past_it or body is interrupts_in_its_cleanup else RunState.FAILED)
    assert (following.state, following.started_at) == (RunState.CANCELLED, None)


@BACKENDS
@pytest.mark.failure("X3")
def test_an_interrupt_by_each_of_several_bodies_at_once_tells_all(backend, tmp_path):
    scene = Scene(tmp_path)

    async def main():
        async with scene.sup:
            await scene.everything_waits()
            scene.runs += [scene.sup.submit("side", interrupts) for _ in range(4)]
            with anyio.fail_after(60):
                await anyio.sleep_forever()

    with pytest.raises(KeyboardInterrupt):
        anyio.run(main, backend=backend)
    scene.assert_all_told()


@BACKENDS
@pytest.mark.failure("X3")
def test_a_program_that_starts_and_stops_its_supervisor_learns_of_an_interrupt_too(backend, tmp_path):
    scene = Scene(tmp_path)

    async def main():
        await scene.sup.start()
        try:
            await scene.everything_waits()
            scene.interrupt(interrupts)
            with anyio.fail_after(60):
                await scene.sup.stop_requested()
        finally:
            await scene.sup.stop()

    with pytest.raises(KeyboardInterrupt):
        anyio.run(main, backend=backend)
    scene.assert_all_told()


@pytest.mark.failure("X3")
def test_a_loop_that_runs_again_after_an_interrupt_finds_the_block_cancelled_and_all_told(tmp_path):
    """As a test runner or a shell does it."""
    scene = Scene(tmp_path)

    async def main():
        async with scene.sup:
            await scene.everything_waits()
            scene.interrupt(interrupts)
            await anyio.sleep_forever()
        return "left"

    with asyncio.Runner() as runner:
        task = runner.get_loop().create_task(main())
        with pytest.raises(KeyboardInterrupt):
            runner.get_loop().run_until_complete(task)
        assert runner.get_loop().run_until_complete(task) == "left"
    scene.assert_all_told()


@BACKENDS
@pytest.mark.failure("X3")
@pytest.mark.parametrize("hook", ["on_run_start", "on_run_end", "on_wait"])
def test_a_hook_that_interrupts_the_program_leaves_nobody_untold(backend, tmp_path, hook):
    raised: list[int] = []

    def interrupting(run):
        if run.lane == "session:a" and not raised:
            raised.append(run.id)
            raise KeyboardInterrupt

    scene = Scene(tmp_path, **{hook: interrupting})

    async def main():
        async with scene.sup:
            await scene.everything_waits()
            for _ in range(2):
                scene.runs.append(scene.sup.submit("session:a", returns_soon))
            with anyio.fail_after(60):
                await anyio.sleep_forever()

    with pytest.raises(BaseException) as caught:  # noqa: PT011 -- its kind is asserted below
        anyio.run(main, backend=backend)
    assert {type(error) for error in members(caught.value)} == {KeyboardInterrupt}
    gc.collect()
    assert [run for run in scene.runs if run.outcome is None] == []
    assert scene.sup.statistics().leases.held == 0
    assert (scene.sup.state, scene.sup.runs()) == ("stopped", [])


@BACKENDS
@pytest.mark.failure("X3")
def test_a_timer_that_interrupts_the_program_leaves_nobody_untold(backend, tmp_path):
    scene = Scene(tmp_path)

    def interrupt():
        raise KeyboardInterrupt

    async def main():
        async with scene.sup:
            await scene.everything_waits()
            scene.sup._scheduler.board.timers.at(_clock.clock.now() + 0.01, interrupt)
            with anyio.fail_after(60):
                await anyio.sleep_forever()

    with pytest.raises(KeyboardInterrupt):
        anyio.run(main, backend=backend)
    scene.assert_all_told()


async def returns_soon(ctx):
    await anyio.sleep(0.01)


@BACKENDS
@pytest.mark.failure("X3", "X4")
def test_a_loop_that_ends_under_work_of_all_kinds_tells_all(backend, tmp_path):
    scene = Scene(tmp_path)

    async def main():
        await scene.sup.start()
        await scene.everything_waits()
        scene.runs += [scene.sup.submit("session:c", sleeps) for _ in range(2)]  # one has not made its first step

    anyio.run(main, backend=backend)
    scene.assert_all_told()


@pytest.fixture
def ctrl_c():
    """Ctrl-C as a program finds it, whatever the caller of the tests has set; returns what presses it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)


@BACKENDS
@pytest.mark.failure("X3")
@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("where", ["body", "cleanup", "hook"])
def test_ctrl_c_while_a_run_goes_on_or_ends_tells_all_however_often_it_is_pressed(
    backend, tmp_path, ctrl_c, times, where
):
    pressed: list[str] = []

    def press(place, run=None):
        if place == where and len(pressed) < times and (run is None or run.lane == "session:a"):
            pressed.append(place)
            ctrl_c()

    async def pressing(ctx):
        for _ in range(times):
            await anyio.lowlevel.checkpoint()
            press("body")
        try:
            await anyio.sleep(0.05)
        finally:
            for _ in range(times):
                press("cleanup")

    def told(run):
        scene.told.append(run.id)
        press("hook", run)

    scene = Scene(tmp_path, on_run_end=told)

    async def main():
        async with scene.sup:
            await scene.everything_waits()
            scene.runs += [scene.sup.submit("session:a", pressing) for _ in range(4)]
            with anyio.fail_after(60):
                await scene.runs[-1].wait()
                await anyio.sleep_forever()

    with pytest.raises(BaseException) as caught:  # noqa: PT011 -- its kind is asserted below
        anyio.run(main, backend=backend)
    assert {type(error) for error in members(caught.value)} == {KeyboardInterrupt}
    assert pressed
    scene.assert_all_told()


@BACKENDS
@pytest.mark.failure("X3")
def test_ctrl_c_before_a_run_has_joined_the_queue_of_its_session_tells_all(backend, tmp_path, ctrl_c, monkeypatch):
    scene, limit_wait = Scene(tmp_path), Starting.limit_wait

    def pressing(self, execution):
        limit_wait(self, execution)
        ctrl_c()

    async def main():
        async with scene.sup:
            await scene.everything_waits()
            monkeypatch.setattr(Starting, "limit_wait", pressing)
            try:
                scene.sup.submit("session:b", sleeps)
            finally:
                scene.runs.append(max(scene.sup.runs(), key=lambda run: run.id))

    with pytest.raises(BaseException) as caught:  # noqa: PT011 -- its kind is asserted below
        anyio.run(main, backend=backend)
    assert {type(error) for error in members(caught.value)} == {KeyboardInterrupt}
    scene.assert_all_told()


@BACKENDS
@pytest.mark.failure("X3")
def test_ctrl_c_while_a_lane_leaves_the_ring_of_its_group_tells_all(backend, tmp_path, ctrl_c, monkeypatch):
    scene = Scene(tmp_path)

    def pressing(self, lane):
        monkeypatch.undo()
        ctrl_c()

    async def main():
        async with scene.sup:
            await scene.everything_waits()
            scene.sup._scheduler.board.throttle.slow("so that the run takes the way through the ring")
            monkeypatch.setattr(Group, "_left", pressing)
            try:
                scene.sup.submit("session:c", sleeps)
            finally:
                scene.runs.append(max(scene.sup.runs(), key=lambda run: run.id))

    with pytest.raises(BaseException) as caught:  # noqa: PT011 -- its kind is asserted below
        anyio.run(main, backend=backend)
    assert {type(error) for error in members(caught.value)} == {KeyboardInterrupt}
    scene.assert_all_told()


# What a body of asyncio can find in `all_tasks`


@pytest.mark.failure("X4")
@pytest.mark.parametrize("whose", ["supervisor of", "serve", "services", "turn for run", "all"])
def test_a_body_that_cancels_what_it_finds_leaves_nobody_untold(tmp_path, whose):
    """What can go on goes on; the supervisor's own tasks cannot be replaced, so it stops, and says why."""
    left = []

    @asynccontextmanager
    async def service():
        try:
            yield "service"
        finally:
            left.append("service")

    scene = Scene(tmp_path, services={"one": service}, exclusive=True, drain_timeout=0.5)

    async def cancels(ctx):
        for task in asyncio.all_tasks():
            name, mine = task.get_name(), task is asyncio.current_task()
            fits = {"supervisor of": name.startswith("supervisor of") and not name.endswith("services")}
            fits |= {"serve": "serve" in name, "services": name.endswith("services"), "all": True}
            if not mine and fits.get(whose, name.startswith(whose)):
                cancelled.append(name)
                task.cancel()
        return "value"

    cancelled: list[str] = []

    async def main():
        async with scene.sup:
            await scene.everything_waits()
            scene.runs.append(scene.sup.submit("side", cancels))
            with anyio.fail_after(60):
                outcome = await scene.runs[-1].wait()
                assert outcome.value == "value"
                if whose in ("services", "turn for run"):
                    await scene.runs[-1].wait()
                    return
                await anyio.sleep_forever()

    caught = None
    try:
        anyio.run(main)
    except BaseException as error:
        caught = error
    assert bool(cancelled) is (whose != "turn for run")
    if whose in ("supervisor of", "serve"):
        assert type(caught) is RuntimeError and "cancelled from outside" in str(caught)
    elif whose == "all":
        assert type(caught) is asyncio.CancelledError  # the program's own task, too
    else:
        assert caught is None
    scene.assert_all_told()
    assert left == ["service"]


def cancel_the_lanes() -> None:
    """As a body may that finds the supervisor's own task."""
    for task in asyncio.all_tasks():
        if task.get_name().startswith("supervisor of") and not task.get_name().endswith("services"):
            task.cancel()


@pytest.mark.failure("X4")
def test_a_supervisor_whose_task_is_cancelled_lets_go_of_everything_without_being_stopped(tmp_path):
    left = []

    @asynccontextmanager
    async def service():
        yield
        left.append("service")

    scene = Scene(tmp_path, services={"one": service}, exclusive=True)

    async def main():
        await scene.sup.start()
        await scene.everything_waits()
        cancel_the_lanes()
        with anyio.fail_after(60):
            await scene.sup.stop_requested()
            await scene.sup._life.ending.lanes.over.wait()
        scene.assert_all_told()
        assert left == ["service"]
        async with Supervisor(tmp_path, exclusive=True):
            pass
        with pytest.raises(RuntimeError, match="cancelled from outside"):
            await scene.sup.stop()

    asyncio.run(main())


@pytest.mark.failure("X4")
def test_a_task_that_is_cancelled_before_its_first_step_while_the_lanes_are_cancelled_ends_at_once(tmp_path):
    scene = Scene(tmp_path)

    async def main():
        await scene.sup.start()
        run = scene.sup.submit("side", returns_soon)
        scene.runs.append(run)
        (task,) = (one for one in asyncio.all_tasks() if one.get_name() == f"run {run.id} on lane side")
        task.cancel()
        asyncio.get_running_loop().call_soon(scene.sup._scheduler.board.task.cancel)  # behind its first step
        outcome = await run.wait()
        assert (outcome.state, outcome.reason) == (RunState.CANCELLED, "cancelled from outside the supervisor")
        assert outcome.ran_s < 0.1, "nothing waits for a body that has never begun"
        await scene.sup.stop_requested()
        with pytest.raises(RuntimeError, match="cancelled from outside"):
            await scene.sup.stop()

    asyncio.run(main())
    scene.assert_all_told()


@pytest.mark.failure("X4")
def test_a_body_that_ignores_the_end_of_a_cancelled_supervisor_is_abandoned_after_its_grace(tmp_path):
    scene, body = Scene(tmp_path), Shielded()

    async def main():
        await scene.sup.start()
        run = scene.sup.submit("side", body)
        await body.started.wait()
        cancel_the_lanes()
        with anyio.fail_after(60):
            assert (await run.wait()).state is RunState.ABANDONED
            with pytest.raises(RuntimeError, match="cancelled from outside"):
                await scene.sup.stop()
        body.release()
        await gone(scene.sup)
        await scene.sup._life.ending.lanes.over.wait()

    asyncio.run(main())


@BACKENDS
def test_a_system_exit_in_a_body_is_its_own_failure_and_harms_nobody(backend, tmp_path):
    async def exits(ctx):
        raise SystemExit(3)

    async def returns(ctx):
        return "served"

    async def main():
        async with Supervisor(tmp_path) as sup:
            run, following = sup.submit("session:a", exits), sup.submit("session:a", returns)
            with anyio.fail_after(60):
                outcome = await run.wait()
                assert (outcome.state, type(outcome.error)) == (RunState.FAILED, SystemExit)
                assert await following.result() == "served"

    anyio.run(main, backend=backend)
    assert list(tmp_path.iterdir()) != []


async def anyio_sleep_forever(ctx):
    await anyio.sleep_forever()


@BACKENDS
def test_a_loop_that_ends_under_a_supervisor_takes_it_along(backend, tmp_path):
    """Whoever starts a supervisor and forgets to stop it: its runs end with the loop, and nothing hangs."""
    runs: list[Run] = []

    async def main():
        sup = Supervisor(tmp_path)
        await sup.start()
        runs.append(sup.submit("session:a", anyio_sleep_forever))
        await anyio.lowlevel.checkpoint()
        return sup

    sup = anyio.run(main, backend=backend)
    assert runs[0].outcome is not None and runs[0].state is RunState.CANCELLED
    assert sup.statistics().leases.held == 0


@BACKENDS
def test_an_error_in_main_reaches_the_caller_as_it_is(backend, tmp_path):
    async def main():
        async with Supervisor(tmp_path) as sup:
            sup.submit("session:a", anyio_sleep_forever)
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        anyio.run(main, backend=backend)
