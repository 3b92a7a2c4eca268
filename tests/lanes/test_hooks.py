"""What a host is told (`on_run_start`, `on_run_end`, `on_wait`): once each, in order, and harmless whatever it does."""

from __future__ import annotations

import asyncio
import contextvars
import weakref
from typing import Any

import anyio
import pytest
from structlog.testing import capture_logs

from lanes import InvalidLane, LaneBusy, LaneSpec, RetrySpec, RunCancelled, RunState, current_run
from runtime import Supervisor
from tests.supervised import Shielded, assert_empty, gone

pytestmark = pytest.mark.backends("asyncio", "trio")


async def answers(ctx, messages):
    await anyio.sleep(1.0)
    return [message.body for message in messages]


LANES = [
    LaneSpec("session:*", handler=answers, timeout=10.0, grace=2.0),
    LaneSpec("again", retry=RetrySpec(3, wait=1.0), timeout=10.0),
    LaneSpec("small:*", queue_limit=1, when_full="drop_oldest"),
]


class Told:
    """Notes what the host is told: the event, the run's id, its state then."""

    def __init__(self) -> None:
        self.notes: list[tuple[str, int, RunState]] = []

    def hooks(self):
        return {f"on_{name}": self._hook(name) for name in ("run_start", "run_end", "wait")}

    def _hook(self, name):
        return lambda run: self.notes.append((name.removeprefix("run_"), run.id, run.state))


@pytest.fixture
def told():
    return Told()


@pytest.fixture
async def sup(virtual, tmp_path, told):
    async with Supervisor(tmp_path, lanes=LANES, **told.hooks()) as sup:
        yield sup
        assert_empty(sup)


def ended(run):
    """The outcome of a run that has one."""
    assert run.outcome is not None
    return run.outcome


async def returns(ctx):
    return None


async def fails(ctx):
    raise ConnectionError


# What is told


async def test_a_run_that_starts_at_once_is_told_at_its_start_and_its_end(sup, told):
    await sup.submit("session:a", returns).wait()
    assert told.notes == [("start", 1, RunState.RUNNING), ("end", 1, RunState.DONE)]


async def test_a_run_that_has_to_wait_is_told_first(sup, told):
    for run in [sup.post("session:a", n) for n in range(2)]:
        await run.wait()
    assert [note[:2] for note in told.notes] == [("start", 1), ("wait", 2), ("end", 1), ("start", 2), ("end", 2)]


async def test_each_attempt_starts_but_the_run_waits_and_ends_once(sup, told):
    await sup.submit("again", fails).wait()
    assert told.notes == [("start", 1, RunState.RUNNING)] * 3 + [("end", 1, RunState.FAILED)]


async def test_one_that_is_cancelled_in_the_queue_never_starts(sup, told):
    first, second = sup.post("session:a", 1), sup.post("session:a", 2)
    second.cancel()
    await first.wait()
    assert [note[:2] for note in told.notes if note[1] == second.id] == [("wait", 2), ("end", 2)]


async def test_an_abandoned_run_ends_once_however_late_its_body_does(sup, told):
    body = Shielded()
    run = sup.submit("session:a", body, timeout=1.0)
    await run.wait()
    body.release()
    await gone(sup)
    assert told.notes == [("start", 1, RunState.RUNNING), ("end", 1, RunState.ABANDONED)]


async def test_what_is_refused_is_not_told(sup, told):
    sup.post("session:a", 1)
    with pytest.raises(LaneBusy):
        sup.post("session:a", 2, when_busy="reject")
    assert [note[:2] for note in told.notes] == [("start", 1)]
    await sup.runs()[0].wait()


async def test_a_hook_sees_the_outcome_and_the_supervisors_context_only(virtual, tmp_path):
    variable = contextvars.ContextVar("variable", default="unset")
    seen = []

    def ends(run):
        seen.append((run.outcome.value, current_run(), variable.get()))
        variable.set("set by a hook")

    async def body(ctx):
        variable.set("set by a body")
        return "value"

    async with Supervisor(tmp_path, lanes=LANES, on_run_end=ends) as sup:
        for _ in range(2):
            variable.set("set by a submitter")
            await sup.submit("session:a", body).wait()
    assert seen == [("value", None, "unset")] * 2


# Hooks that raise


def raises(error):
    def hook(run):
        raise error("from a hook")

    return hook


@pytest.mark.failure("E9")
@pytest.mark.parametrize("error", [ValueError, SystemExit, GeneratorExit, asyncio.CancelledError, BaseException])
@pytest.mark.parametrize("name", ["on_run_start", "on_run_end", "on_wait"])
async def test_whatever_a_hook_raises_is_logged_and_harms_nothing(virtual, tmp_path, name, error):
    async with Supervisor(tmp_path, lanes=LANES, **{name: raises(error)}) as sup:
        with anyio.fail_after(60.0), capture_logs() as logs:
            runs = [sup.post("session:a", n) for n in range(3)]
            assert [await run.result() for run in runs] == [[0], [1], [2]]
        failed = [line for line in logs if line["event"] == "hook_failed"]
        assert {line["run"] for line in failed} == ({2, 3} if name == "on_wait" else {1, 2, 3})
        assert all(line["hook"] and line["error"] for line in failed)
        assert_empty(sup)


@pytest.mark.failure("E9")
async def test_a_hook_whose_name_and_error_cannot_be_printed_harms_nothing(virtual, tmp_path):
    class Unprintable(Exception):
        def __str__(self):
            raise RuntimeError("no words")

    class Hook:
        def __call__(self, run):
            raise Unprintable

    async with Supervisor(tmp_path, lanes=LANES, on_run_end=Hook()) as sup:
        with capture_logs() as logs:
            assert await sup.post("session:a", 1).result() == [1]
        (line,) = [line for line in logs if line["event"] == "hook_failed"]
        assert (line["hook"], line["error"]) == ("Hook", "Unprintable (it cannot be printed)")


# Hooks that act


@pytest.mark.failure("E9")
@pytest.mark.parametrize("name", ["on_run_start", "on_run_end", "on_wait"])
async def test_a_hook_may_submit(virtual, tmp_path, name):
    submitted = []

    def hook(run):
        if run.session == "a":
            submitted.append(own.submit("session:b", returns))
            submitted.append(own.submit("small:c", returns))

    hooks: dict[str, Any] = {name: hook}
    async with Supervisor(tmp_path, lanes=LANES, **hooks) as own:
        runs = [own.post("session:a", n) for n in range(2)]
        for run in runs:
            assert (await run.wait()).state is RunState.DONE
        assert len(submitted) == (2 if name == "on_wait" else 4)
        for run in submitted:
            assert (await run.wait()).state is RunState.DONE or "dropped" in run.reason
        assert_empty(own)


async def test_a_hook_may_submit_to_the_very_lane_and_session_that_it_is_told_of(virtual, tmp_path):
    def again(run):
        if len(order) < 5:
            order.append(run.id)
            sup.post("session:a", run.id)

    order: list[int] = []
    async with Supervisor(tmp_path, lanes=LANES, on_run_end=again) as sup:
        await sup.post("session:a", 0).wait()
        while sup.runs():
            await sup.runs()[0].wait()
        assert order == [1, 2, 3, 4, 5]
        assert_empty(sup)


@pytest.mark.failure("E9")
async def test_a_hook_may_cancel_the_run_that_starts(virtual, tmp_path):
    began = []

    async def body(ctx):
        began.append(ctx)

    async with Supervisor(tmp_path, lanes=LANES, on_run_start=lambda run: run.cancel("not now")) as sup:
        with pytest.raises(RunCancelled, match="not now"):
            await sup.submit("session:a", body).result()
        assert began == []
        assert_empty(sup)


async def test_a_hook_may_cancel_the_run_that_waits(virtual, tmp_path):
    async with Supervisor(tmp_path, lanes=LANES, on_wait=lambda run: run.cancel("no waiting here")) as sup:
        first, second = sup.post("session:a", 1), sup.post("session:a", 2)
        assert ended(second).reason == "no waiting here"
        assert await first.result() == [1]
        assert_empty(sup)


@pytest.mark.parametrize("name", ["on_run_start", "on_run_end", "on_wait"])
async def test_a_hook_may_cancel_everything(virtual, tmp_path, name):
    def hook(run):
        own.cancel(reason="everything ends")

    hooks: dict[str, Any] = {name: hook}
    async with Supervisor(tmp_path, lanes=LANES, **hooks) as own:
        runs = [own.post(f"session:{n % 2}", n) for n in range(6)]
        for run in runs:
            assert (await run.wait()).state in (RunState.DONE, RunState.CANCELLED)
        assert RunState.CANCELLED in {run.state for run in runs}
        assert_empty(own)


async def test_hooks_keep_no_run_alive(virtual, tmp_path, told):
    async with Supervisor(tmp_path, lanes=LANES, keep_outcomes=0, on_run_end=raises(ValueError)) as sup:
        run = sup.submit("session:a", returns)
        await run.wait()
        await virtual.settle()
        gone_run = weakref.ref(run)
        del run
        assert gone_run() is None


# Bad values


async def is_async(run):
    return None


@pytest.mark.parametrize("name", ["on_run_start", "on_run_end", "on_wait"])
@pytest.mark.parametrize(
    "hook", ["text", 1, is_async, lambda: None, lambda run, more: None], ids=["str", "int", "async", "none", "two"]
)
async def test_what_cannot_be_a_hook_is_refused_by_name(tmp_path, name, hook):
    with pytest.raises(InvalidLane, match=rf"^{name}: .*allowed: .*{name}\(run\)"):
        Supervisor(tmp_path, **{name: hook})
