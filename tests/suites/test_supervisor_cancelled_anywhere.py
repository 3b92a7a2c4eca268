"""Suite C1 for the supervisor: every public async operation, cancelled wherever it suspends, leaves nothing behind."""

from __future__ import annotations

from contextlib import asynccontextmanager

import anyio
import pytest

from lanes import LaneSpec, RunState
from runtime import Supervisor
from runtime.testing.suspensions import Suspensions, sweep
from tests.supervised import assert_empty, texts

pytestmark = pytest.mark.suite("C1")

LANES = [LaneSpec(pattern, timeout=10.0, grace=2.0) for pattern in ("session:*", "side:*")]


async def works(ctx):
    await ctx.session.append({"text": "question"})
    await anyio.sleep(0.1)
    async with ctx.session.lease() as lease:
        await lease.append({"text": "under a lease"})
        await lease.read()
    await anyio.sleep(0.1)
    await ctx.session.append({"text": "answer"})
    return "value"


async def goes_on(sup):
    """The next run of the session proceeds at once."""
    with anyio.fail_after(1):
        assert await sup.submit("session:a", works).result() == "value"


async def ended(sup):
    with anyio.fail_after(5):
        while sup.runs():
            await anyio.sleep(0.01)


async def test_the_waiter_of_run_cancelled_anywhere_cancels_its_run(sup):
    async def check(k):
        await ended(sup)
        assert_empty(sup)
        await goes_on(sup)

    assert await sweep(lambda: sup.run("session:a", works), check) >= 1
    counted = sup.statistics().runs
    assert counted["abandoned"] == counted["failed"] == counted["timed_out"] == 0


async def test_the_waiter_of_run_cancelled_anywhere_while_its_run_is_queued(sup):
    async def prepare():
        sup.submit("session:a", works)

    async def check(k):
        await ended(sup)
        assert_empty(sup)
        await goes_on(sup)

    assert await sweep(lambda: sup.run("session:a", works), check, prepare=prepare) >= 1


@pytest.mark.parametrize("wait", ["wait", "result"])
async def test_a_waiter_cancelled_anywhere_leaves_its_run_as_it_is(sup, wait):
    runs = []

    async def prepare():
        runs.append(sup.submit("session:a", works))

    async def check(k):
        assert await runs[-1].result() == "value"
        assert_empty(sup)

    async def operation():
        await getattr(runs[-1], wait)()

    assert await sweep(operation, check, prepare=prepare) >= 1
    assert {run.state for run in runs} == {RunState.DONE}


async def test_a_finished_run_may_be_awaited_and_cancelled_anywhere(sup):
    run = sup.submit("session:a", works)
    await run.wait()

    async def check(k):
        assert await run.result() == "value"

    assert await sweep(run.wait, check) >= 1
    assert await sweep(run.result, check) >= 1


@pytest.mark.parametrize("how", ["cancel", "timeout"])
async def test_a_run_ended_at_any_suspension_of_its_body_frees_everything(sup, virtual, how):
    """By `cancel`, or by its deadline: it is moved there."""
    k, reached = 0, True
    while reached:
        k += 1
        kept: list[Suspensions] = []

        async def body(ctx, k=k, kept=kept):
            def end():
                ctx.run.cancel("here") if how == "cancel" else virtual.advance(10.0)

            kept.append(Suspensions(k, end))
            return await kept[0].run(works(ctx))

        run = sup.submit("session:a", body)
        following = sup.submit("session:a", works)
        outcome = await run.wait()
        assert await following.result() == "value"
        assert_empty(sup)
        reached = kept[0].acted
        if not reached or (outcome.value == "value" and how == "timeout"):
            assert outcome.state is RunState.DONE  # it ended before the loop came to see that it was late
        else:
            assert outcome.state is (RunState.CANCELLED if how == "cancel" else RunState.TIMED_OUT)
    assert k > 5
    assert set(texts(sup, "a")) == {"question", "under a lease", "answer"}


# The operations of a body


def in_a_run(operation, least):
    """Sweep `operation(ctx)` inside a body: a scope of the body's own cancels it there, and the body goes on."""

    async def body(ctx, sup):
        async def check(k):
            held = sup.statistics().leases
            assert (held.held, held.waiting) == (1, 0), "only the turn"
            with anyio.fail_after(1):
                await ctx.session.append({"text": "goes on"})

        return await sweep(lambda: operation(ctx), check, least=least)

    return body


async def appends(ctx):
    await ctx.session.append({"text": "swept"})


async def reads(ctx):
    await ctx.session.read(last=3)


async def leases(ctx):
    async with ctx.session.lease() as lease:
        await lease.append_many([{"text": "swept"}, {"text": "swept too"}])
        await lease.read()


async def cleans_up(ctx):
    await anyio.lowlevel.checkpoint()
    async with ctx.cleanup():
        await ctx.session.append({"text": "swept"})


@pytest.mark.parametrize("operation, least", [(appends, 1), (reads, 1), (leases, 3), (cleans_up, 2)])
async def test_an_operation_of_a_body_cancelled_anywhere_leaves_no_lease_and_only_whole_records(sup, operation, least):
    run = sup.submit("session:a", in_a_run(operation, least), sup)
    number = await run.result()
    said = texts(sup, "a")
    assert said.count("goes on") == number + 1
    assert said.count("swept") <= number + 1
    assert said.count("swept too") <= said.count("swept")
    assert_empty(sup)


@pytest.mark.parametrize("operation", [appends, leases])
async def test_an_operation_that_waits_for_a_lease_cancelled_anywhere_waits_no_more(sup, operation):
    """Another run holds the write lease meanwhile."""

    async def holds(ctx):
        async with ctx.session.lease() as lease:
            await anyio.sleep(0.5)
            await lease.append({"text": "held"})

    async def body(ctx):
        async def prepare():
            sup.submit("side:a", holds, session="a", turn=False)
            await anyio.sleep(0.1)
            assert sup.statistics().leases.held == 2

        async def check(k):
            assert sup.statistics().leases.waiting == 0
            with anyio.fail_after(2):
                await ctx.session.append({"text": "goes on"})
            await anyio.sleep(0.5)

        return await sweep(lambda: operation(ctx), check, prepare=prepare, least=2)

    number = await sup.submit("session:a", body, timeout=10.0).result()
    said = texts(sup, "a")
    assert said.count("held") == said.count("goes on") == number + 1
    assert_empty(sup)


# Start, stop, drain, and the block


class Services:
    """Two services that take their time, and what was heard of them."""

    def __init__(self):
        self.open: list[str] = []

    def make(self, name):
        @asynccontextmanager
        async def factory():
            await anyio.sleep(0.1)
            self.open.append(name)
            try:
                yield name
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.1)
                self.open.remove(name)

        return factory

    @property
    def factories(self):
        return {name: self.make(name) for name in ("db", "model")}


async def test_start_cancelled_anywhere_leaves_no_task_and_no_service(virtual, tmp_path):
    services = Services()
    made: list[Supervisor] = []
    tasks = len(anyio.get_running_tasks())

    async def prepare():
        made.append(Supervisor(tmp_path, lanes=LANES, services=services.factories))

    async def check(k):
        sup = made[-1]
        if sup.state == "running":  # it was not cancelled
            await goes_on(sup)
        await sup.stop()
        await virtual.settle()
        assert services.open == []
        assert len(anyio.get_running_tasks()) == tasks
        assert_empty(sup)

    async def start():
        await made[-1].start()

    assert await sweep(start, check, prepare=prepare) >= 1


async def test_stop_cancelled_anywhere_has_stopped_everything(virtual, tmp_path):
    services = Services()
    made: list[Supervisor] = []
    runs: list = []
    tasks = len(anyio.get_running_tasks())

    async def cleans(ctx):
        try:
            await anyio.sleep_forever()
        finally:
            async with ctx.cleanup():
                await anyio.sleep(0.3)
                await ctx.session.append({"text": "last words"})

    async def prepare():
        sup = Supervisor(tmp_path, lanes=LANES, services=services.factories)
        await sup.start()
        made.append(sup)
        runs[:] = [sup.submit("session:a", cleans), sup.submit("session:a", works), sup.submit("session:b", works)]
        await anyio.sleep(0.05)

    async def check(k):
        await virtual.settle()
        assert made[-1].state == "stopped"
        assert services.open == []
        assert len(anyio.get_running_tasks()) == tasks
        assert runs[0].state is runs[1].state is RunState.CANCELLED
        assert runs[2].state in (RunState.CANCELLED, RunState.DONE)
        assert texts(made[-1], "a") == ["last words"] * k
        assert_empty(made[-1])

    assert await sweep(lambda: made[-1].stop(drain_timeout=1.0), check, prepare=prepare, least=2) >= 2


async def test_drain_cancelled_anywhere_has_ended_all_runs_and_stop_still_works(virtual, tmp_path):
    made: list[Supervisor] = []

    async def prepare():
        sup = Supervisor(tmp_path, lanes=LANES)
        await sup.start()
        made.append(sup)
        for key in ("a", "a", "b"):
            sup.submit(f"session:{key}", works)
        await anyio.sleep(0.05)

    async def check(k):
        sup = made[-1]
        assert sup.statistics().runs["running"] == 0
        assert sup.statistics().leases.held == 0
        await sup.stop()
        assert_empty(sup)

    assert await sweep(lambda: made[-1].drain(0.1), check, prepare=prepare, least=1) >= 1


async def test_the_block_cancelled_anywhere_leaves_nothing(virtual, tmp_path):
    services = Services()
    made: list[Supervisor] = []
    tasks = len(anyio.get_running_tasks())

    async def block():
        async with Supervisor(tmp_path, lanes=LANES, services=services.factories) as sup:
            made.append(sup)
            first, second = sup.submit("session:a", works), sup.submit("session:a", works)
            await first.result()
            await second.wait()

    async def check(k):
        await virtual.settle()
        assert services.open == []
        assert len(anyio.get_running_tasks()) == tasks
        for sup in made:
            assert_empty(sup)

    assert await sweep(block, check, least=4) >= 4
