"""Nothing keeps a finished run but plain records: no frames, no arguments, no context."""

from __future__ import annotations

import contextvars
import gc
import weakref
from typing import Any

import anyio
import pytest
from anyio import get_cancelled_exc_class

from lanes import LaneSpec, RunState, RunTimedOut
from runtime import Supervisor
from tests.supervised import Stubborn, assert_empty, gone

LANES = [LaneSpec("session:*", timeout=10.0, grace=2.0)]


class Session:
    """A big session graph."""


@pytest.fixture
async def sup(virtual, tmp_path):
    async with Supervisor(tmp_path, lanes=LANES) as sup:
        yield sup


@pytest.fixture(autouse=True)
def _no_garbage_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def wait_without_gc(sup, virtual, body, *args):
    """Submit, and wait until the run has ended and its task is gone."""
    run = sup.submit("session:a", body, *args)
    del body, args
    await run.wait()
    await virtual.settle()
    return run


async def fails(ctx, graph):
    local = graph
    raise LookupError(f"no such tool in {type(local).__name__}")


async def fails_with_a_cause(ctx, graph):
    try:
        await fails(ctx, graph)
    except LookupError as error:
        raise RuntimeError("the tool call failed") from error


async def fails_while_handling(ctx, graph):
    try:
        await fails(ctx, graph)
    except LookupError:
        raise RuntimeError("the handler failed")  # noqa: B904 -- the context is the point


async def fails_with_a_group(ctx, graph):
    try:
        await fails(ctx, graph)
    except LookupError as error:
        raise ExceptionGroup("several", [error, ValueError("other")])  # noqa: B904 -- the context is the point


async def overruns(ctx, graph):
    local = graph
    await anyio.sleep_forever()
    return local


async def fails_after_its_deadline(ctx, graph):
    try:
        await overruns(ctx, graph)
    except get_cancelled_exc_class():
        raise LookupError("clean-up failed")  # noqa: B904 -- the context is the point


BODIES = [
    fails,
    fails_with_a_cause,
    fails_while_handling,
    fails_with_a_group,
    overruns,
    fails_after_its_deadline,
]


@pytest.mark.failure("D6")
@pytest.mark.parametrize("body", BODIES)
async def test_what_a_failed_or_timed_out_body_held_is_dead_without_gc(sup, virtual, body):
    graph = Session()
    dead = weakref.ref(graph)
    run = await wait_without_gc(sup, virtual, body, graph)
    del graph
    assert run.state in (RunState.FAILED, RunState.TIMED_OUT)
    assert dead() is None
    assert run.outcome.error is not None


@pytest.mark.failure("D6")
async def test_500_timed_out_runs_keep_nothing(sup, virtual):
    dead = []
    for n in range(500):
        graph = Session()
        dead.append(weakref.ref(graph))
        sup.submit(f"session:{n}", overruns, graph)
        del graph
    await anyio.sleep(200)
    await virtual.settle()
    assert sup.statistics().runs["timed_out"] == 500
    assert [ref() for ref in dead if ref() is not None] == []


@pytest.mark.failure("D6")
async def test_what_a_queued_run_held_is_dead_when_it_is_cancelled(sup, virtual):
    first = sup.submit("session:a", overruns, None)
    graph = Session()
    dead = weakref.ref(graph)
    run = sup.submit("session:a", overruns, graph)
    del graph
    run.cancel()
    await virtual.settle()
    assert dead() is None
    first.cancel()
    await first.wait()


async def test_what_an_abandoned_body_held_is_dead_once_it_has_ended(sup, virtual):
    virtual.busy_limit = 100
    stubborn = Stubborn()
    dead = weakref.ref(stubborn)
    run = sup.submit("session:a", stubborn)
    assert (await run.wait()).state is RunState.ABANDONED
    stubborn.release()
    await gone(sup)
    await virtual.settle()
    del stubborn
    assert dead() is None


async def test_what_the_submitters_context_held_is_dead(sup, virtual):
    held: contextvars.ContextVar[object] = contextvars.ContextVar("held")

    async def body(ctx):
        raise LookupError

    graph = Session()
    dead = weakref.ref(graph)
    token = held.set(graph)
    run = sup.submit("session:a", body)
    held.reset(token)
    del graph, token
    await run.wait()
    await virtual.settle()
    assert dead() is None


def frames_in(error, seen=None):
    """The exceptions at or below `error` that hold frames."""
    seen = set() if seen is None else seen
    if error is None or id(error) in seen:
        return []
    seen.add(id(error))
    found = [error] if error.__traceback__ is not None else []
    for other in (error.__cause__, error.__context__, *getattr(error, "exceptions", ())):
        found += frames_in(other, seen)
    return found


@pytest.mark.parametrize("body", BODIES)
async def test_an_outcomes_error_holds_no_frames_before_and_after_it_was_raised(sup, virtual, body):
    run = await wait_without_gc(sup, virtual, body, None)
    assert frames_in(run.outcome.error) == []
    with pytest.raises(type(run.outcome.error)):
        await run.result()
    assert frames_in(run.outcome.error) == []


@pytest.mark.failure("D6")
async def test_an_outcome_keeps_nothing_of_whoever_awaited_the_result(sup, virtual):
    async def wait_for(run):
        graph = Session()
        try:
            await run.result()
        except RunTimedOut:
            return weakref.ref(graph)
        raise AssertionError("it did not raise")

    run = sup.submit("session:a", overruns, None)
    dead = await wait_for(run)
    assert dead() is None
    assert sup.find(run.id) is run


class Strange(Exception):
    """An exception that `copy` cannot make anew."""

    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


@pytest.mark.parametrize("kind", ["plain", "strange", "run error"])
async def test_two_waiters_never_get_the_identical_exception(sup, virtual, kind):
    async def body(ctx):
        if kind == "run error":
            await anyio.sleep_forever()
        raise LookupError("no such tool") if kind == "plain" else Strange(code=7)

    run = sup.submit("session:a", body)
    caught: list[Any] = []
    for _ in range(3):
        with pytest.raises((LookupError, Strange, RunTimedOut)) as info:
            await run.result()
        caught.append(info.value)
    assert len({id(error) for error in caught}) == 3
    assert len({(type(error), str(error)) for error in caught}) == 1
    if kind == "strange":
        assert [error.code for error in caught] == [7, 7, 7]
    if kind == "run error":
        assert [error.run for error in caught] == [run] * 3


async def test_only_so_many_finished_runs_are_kept(virtual, tmp_path):
    async def body(ctx):
        return None

    async with Supervisor(tmp_path, lanes=LANES, keep_outcomes=3) as sup:
        runs = [sup.submit("session:a", body) for _ in range(5)]
        for run in runs:
            await run.wait()
        assert [sup.find(run.id) is run for run in runs] == [False, False, True, True, True]
        dead = weakref.ref(runs[0])
        del run, runs
        await virtual.settle()
        assert dead() is None
        assert_empty(sup)
