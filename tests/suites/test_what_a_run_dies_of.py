"""The table of outcomes of `docs/lanes.md`: whatever a run dies of, it has this outcome, and nothing else dies of it.

Around each case another body of the same lane goes on, another run waits for the same session, and a hook counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import warnings
from collections.abc import Callable

import anyio
import pytest
import trio
from anyio import get_cancelled_exc_class
from structlog.testing import capture_logs

from lanes import LaneSpec, RetrySpec, RunState
from runtime import Supervisor
from tests.supervised import assert_empty, on_trio

pytestmark = [pytest.mark.failure("X3", "X4"), pytest.mark.suite("C3")]

LANES = [
    LaneSpec("session:*", timeout=10.0, grace=2.0),
    LaneSpec("side", timeout=60.0, grace=2.0, capacity=5),
    LaneSpec("again", timeout=60.0, grace=2.0, retry=RetrySpec(2, wait=1.0)),
]
OUTSIDE = "cancelled from outside the supervisor"


class Scene:
    """A supervisor, a body that must not be disturbed, and what the hook was told."""

    def __init__(self, path) -> None:
        self.told: list[int] = []
        self.sup = Supervisor(path, lanes=LANES, on_run_end=lambda run: self.told.append(run.id))
        self.release = anyio.Event()

    async def __aenter__(self):
        await self.sup.__aenter__()
        self.bystander = self.sup.submit("side", self.stands_by)
        return self

    async def stands_by(self, ctx):
        await self.release.wait()
        return "undisturbed"

    async def __aexit__(self, kind, error, traceback):
        if error is None:
            with anyio.fail_after(60):
                assert await self.sup.submit("session:a", serves).result() == "served"
                assert self.bystander.state is RunState.RUNNING
                self.release.set()
                assert await self.bystander.result() == "undisturbed"
                assert await self.sup.submit("side", serves).result() == "served"
            assert self.sup.state == "running"
            assert sorted(self.told) == list(range(1, max(self.told) + 1)), "each one once"
            await anyio.lowlevel.checkpoint()  # a task ends one step after its body
            assert_empty(self.sup)
        await self.sup.__aexit__(kind, error, traceback)


@pytest.fixture
async def scene(virtual, tmp_path):
    async with Scene(tmp_path) as scene:
        yield scene


async def serves(ctx):
    return "served"


class Boom(BaseException):
    """What a program raises that knows no better."""


# The five ways to cancel, by what the body makes of it

WAYS = ("scope", "parent", "deadline", "sibling", "native")


class Body:
    """What a body does when it is cancelled."""

    def __init__(self, how: str) -> None:
        self.how, self.began = how, False
        self.waits = anyio.Event()

    async def __call__(self, ctx):
        self.began = True
        try:
            self.waits.set()
            await anyio.sleep_forever()
        except get_cancelled_exc_class():
            if self.how == "lets it through":
                raise
            if self.how == "raises":
                raise LookupError("instead") from None
        return "value"


async def die(scene, way, body, virtual, *, at_once=False):
    """Have a run of this body cancelled in one of the five ways; returns the run."""
    sup, runs, fail = scene.sup, [], anyio.Event()

    async def waits():
        await sup.run("session:a", body)

    async def sibling():
        await fail.wait()
        raise ZeroDivisionError

    async def parent(ctx):
        runs.append(ctx.submit("session:a", body))
        if not at_once:
            await anyio.sleep_forever()

    if way in ("scope", "sibling"):
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(waits)
                group.start_soon(sibling)
                await body.waits.wait()
                runs += sup.runs(session="a")
                if way == "scope":
                    group.cancel_scope.cancel()
                fail.set()
        except* ZeroDivisionError:
            pass
        return runs[0]
    if way == "parent":
        above = sup.submit("side", parent)
        if not at_once:
            await body.waits.wait()
            above.cancel("the parent")
        await above.wait()
        return runs[0]
    run = sup.submit("session:a", body)
    if way == "deadline" and at_once:
        virtual.advance(11.0)
    if way == "native":
        if not at_once:
            await body.waits.wait()
        native_cancel(run)
    return run


def native_cancel(run) -> None:
    """Cancel the task of a run from outside, as `asyncio.all_tasks` lets anybody do."""
    for task in asyncio.all_tasks():
        if task.get_name() == f"run {run.id} on lane {run.lane}":
            assert task.cancel()
            return
    raise AssertionError("it has no task")


def this_task() -> asyncio.Task:
    task = asyncio.current_task()
    assert task is not None
    return task


STATES = {"deadline": RunState.TIMED_OUT}
REASONS = {
    "scope": "whoever waited for it was cancelled",
    "sibling": "whoever waited for it was cancelled",
    "parent": "ended with its parent, run 2 (the parent)",
    "deadline": "timed out after 10 s",
}


@pytest.mark.parametrize("how", ["lets it through", "returns", "raises"])
@pytest.mark.parametrize("way", WAYS)
async def test_the_first_cause_decides_whatever_the_body_makes_of_it(scene, way, how, virtual):
    if way == "native" and on_trio():
        return  # trio knows no cancellation but by scopes
    body = Body(how)
    run = await die(scene, way, body, virtual)
    outcome = await run.wait()
    if way == "native":  # asks no run to end, but interrupts its body: what that makes of it is what counts
        states = {"lets it through": RunState.CANCELLED, "returns": RunState.DONE, "raises": RunState.FAILED}
        assert outcome.state is states[how]
        assert outcome.reason == {"lets it through": OUTSIDE, "raises": "LookupError: instead"}.get(how, "")
    else:
        assert outcome.state is STATES.get(way, RunState.CANCELLED)
        assert outcome.reason == REASONS[way]
    assert outcome.value == ("value" if how == "returns" else None)
    if how == "raises":
        assert isinstance(outcome.error if way == "native" else outcome.error.__cause__, LookupError)


@pytest.mark.parametrize("how", ["returns", "raises"])
@pytest.mark.parametrize("way", ["run.cancel", "deadline", "native", "parent"])
async def test_a_cancellation_that_is_still_pending_when_the_body_ends_ends_nothing_else(scene, way, how, virtual):
    if way == "native" and on_trio():
        return

    async def body(ctx):
        if way == "run.cancel":
            assert ctx.run.cancel("by itself")
        elif way == "deadline":
            virtual.advance(11.0)
        elif way == "parent":
            scene.sup.find(ctx.run.parent).cancel("the parent")
        else:
            this_task().cancel()
        if how == "raises":
            raise OSError("x")
        return 1

    async def parent(ctx):
        await ctx.submit("session:a", body).wait()

    if way == "parent":
        above = scene.sup.submit("side", parent)
        await above.wait()
        run = scene.sup.find(above.id + 1)
    else:
        run = scene.sup.submit("session:a", body)
    outcome = await run.wait()
    expected = {"run.cancel": (RunState.CANCELLED, "by itself"), "parent": (RunState.CANCELLED, REASONS["parent"])}
    # Nobody has looked at the deadline yet, and within its grace a body may end.
    own = (RunState.DONE, "") if how == "returns" else (RunState.FAILED, "OSError: x")
    assert (outcome.state, outcome.reason) == expected.get(way, own)
    assert outcome.value == (1 if how == "returns" else None)


@pytest.mark.parametrize("way", ["cancel", "parent", "deadline", "native"])
async def test_a_run_that_is_cancelled_before_its_first_step_never_began_and_is_told(scene, way, virtual):
    if way == "native" and on_trio():
        return
    body = Body("lets it through")
    if way == "cancel":  # what `scope` and `sibling` come to: whoever waits cancels the run
        run = scene.sup.submit("session:a", body)
        run.cancel("at once")
    else:
        run = await die(scene, way, body, virtual, at_once=True)
    following = scene.sup.submit("session:a", serves)
    assert run.state in (RunState.RUNNING, RunState.CANCELLED)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outcome = await run.wait()
        gc.collect()
    assert outcome.state is STATES.get(way, RunState.CANCELLED)
    # With a deadline the timers and the first step are due at once, and trio does not say in which order they go.
    assert not body.began or way == "deadline"
    parent = "ended with its parent, run 2 (has ended)"
    reasons = {
        "cancel": "at once",
        "parent": parent,
        "native": OUTSIDE,
        "deadline": "timed out after 10 s, 1.00 s late",
    }
    assert outcome.reason.startswith(reasons[way])
    assert await following.result() == "served"


@pytest.mark.backends("asyncio")
@pytest.mark.parametrize("times", [1, 3])
async def test_a_native_cancellation_that_is_swallowed_again_and_again_is_the_bodys_own_affair(scene, times, virtual):
    async def body(ctx):
        for _ in range(times):
            this_task().cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await anyio.sleep(1)
        assert this_task().cancelling() == times
        return "value"

    assert await scene.sup.submit("session:a", body).result() == "value"


@pytest.mark.backends("asyncio")
async def test_a_run_with_retries_that_is_cancelled_natively_is_not_tried_again(scene, virtual):
    run = scene.sup.submit("again", Body("lets it through"))
    await virtual.settle()
    native_cancel(run)
    outcome = await run.wait()
    assert (outcome.state, outcome.attempts) == (RunState.CANCELLED, 1)


# What a body raises


def deep():
    return deep()


RAISED: dict[str, Callable[[], BaseException]] = {
    "SystemExit": lambda: SystemExit(3),
    "MemoryError": MemoryError,
    "GeneratorExit": GeneratorExit,
    "StopIteration": StopIteration,
    "StopAsyncIteration": StopAsyncIteration,
    "BaseException": Boom,
    "group": lambda: BaseExceptionGroup("several", [SystemExit(3), MemoryError(), GeneratorExit(), Boom()]),
}


@pytest.mark.parametrize("name", RAISED)
async def test_whatever_a_body_raises_is_the_failure_of_its_run_and_of_nothing_else(scene, name):
    make = RAISED[name]

    async def body(ctx):
        raise make()

    outcome = await scene.sup.submit("session:a", body).wait()
    assert outcome.state is RunState.FAILED
    assert outcome.reason.startswith(("RuntimeError", type(RAISED[name]()).__name__))


async def test_a_body_that_recurses_without_end_has_failed(scene):
    async def body(ctx):
        deep()

    outcome = await scene.sup.submit("session:a", body).wait()
    assert (outcome.state, type(outcome.error)) == (RunState.FAILED, RecursionError)


async def test_a_cancellation_that_a_body_raises_by_hand_cancels_its_run(scene):
    async def body(ctx):
        if not on_trio():
            raise asyncio.CancelledError("mine")
        try:
            with trio.CancelScope() as scope:
                scope.cancel()
                try:
                    await trio.sleep_forever()
                except trio.Cancelled as error:
                    kept.append(error)
                    raise
        finally:
            raise kept.pop()

    kept: list[BaseException] = []
    outcome = await scene.sup.submit("session:a", body).wait()
    assert (outcome.state, outcome.reason) == (RunState.CANCELLED, OUTSIDE)


@pytest.mark.parametrize("how", ["returns", "raises"])
async def test_a_body_that_leaves_a_cancel_scope_open_has_failed_and_nothing_else_has(scene, how):
    async def body(ctx):
        anyio.CancelScope().__enter__()
        if how == "raises":
            raise LookupError("mine")
        return "value"

    outcome = await scene.sup.submit("session:a", body).wait()
    assert outcome.state is RunState.FAILED
    assert isinstance(outcome.error, RuntimeError), "the event library says what is wrong"


# What a body does to others


@pytest.mark.backends("trio")
async def test_a_body_that_cancels_the_nursery_it_stands_in_disturbs_nobody(scene):
    async def body(ctx):
        nursery = trio.lowlevel.current_task().parent_nursery
        assert nursery is not None
        nursery.cancel_scope.cancel()
        await anyio.sleep(1)
        return "value"

    with capture_logs() as logs:
        for _ in range(3):
            assert await scene.sup.submit("session:a", body).result() == "value"
    assert logs == []


@pytest.mark.backends("asyncio")
async def test_a_task_factory_whose_tasks_begin_at_once_is_not_asked_for_bodies(scene, monkeypatch):
    """Python 3.12: they would begin in the middle of `submit`."""
    loop = asyncio.get_running_loop()

    def eager(loop, coro, **options):
        raise AssertionError("a body would begin at once")

    monkeypatch.setattr(asyncio, "eager_task_factory", eager, raising=False)
    loop.set_task_factory(eager)
    run = scene.sup.submit("session:a", serves)
    loop.set_task_factory(None)
    assert await run.result() == "served"


@pytest.mark.backends("asyncio")
async def test_a_body_that_cancels_its_siblings_natively_ends_those_and_no_others(scene):
    async def body(ctx):
        native_cancel(victim)
        return "value"

    victim = scene.sup.submit("side", Body("lets it through"))
    assert await scene.sup.submit("session:a", body).result() == "value"
    outcome = await victim.wait()
    assert (outcome.state, outcome.reason) == (RunState.CANCELLED, OUTSIDE)
