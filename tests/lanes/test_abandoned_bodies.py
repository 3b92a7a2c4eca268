"""Bodies that ignore being cancelled: fenced, counted, detached, and never waited for."""

from __future__ import annotations

import anyio
import pytest
from anyio import CapacityLimiter, to_thread
from structlog.testing import capture_logs

from lanes import GroupSpec, LaneSpec, RunState
from runtime import AbandonedBodies, Supervisor
from tests.poll import eventually
from tests.supervised import HungThread, Shielded, Stubborn, about, assert_empty, gone, texts

KINDS = [Stubborn, Shielded, HungThread]


async def writes(ctx, text="next"):
    await ctx.session.append({"text": text})
    return text


@pytest.mark.failure("E1", "F1", "F2")
@pytest.mark.parametrize("kind", KINDS)
async def test_the_successor_of_a_run_that_never_ends_runs_at_deadline_and_grace(sup, virtual, kind):
    virtual.threads_hold = False
    began, body = virtual.now(), kind()
    run = sup.submit("session:a", body)
    following = [sup.submit("session:a", writes, str(n)) for n in range(3)]
    try:
        with anyio.fail_after(60):
            assert [await one.result() for one in following] == ["0", "1", "2"]
        assert [one.started_at for one in following] == pytest.approx([began + 12] * 3, abs=0.1)
        now = sup.statistics()
        assert (run.state, now.abandoned, now.lanes, now.leases.held) == (RunState.ABANDONED, 1, {}, 0)
        assert now.groups["main"].running == 0
    finally:
        body.release()
    await gone(sup)


@pytest.mark.failure("E1")
async def test_a_lane_of_one_serves_on_though_body_after_body_is_abandoned(sup):
    bodies = [Shielded() for _ in range(5)]
    for n, body in enumerate(bodies, 1):
        assert (await sup.submit("session:a", body, timeout=1.0).wait()).state is RunState.ABANDONED
        assert sup.statistics().abandoned == n
        assert await sup.submit("session:a", writes, str(n)).result() == str(n)
    for body in bodies:
        body.release()
    await gone(sup)
    assert texts(sup, "a") == ["1", "2", "3", "4", "5"]


async def test_an_abandoned_body_that_ends_is_uncounted_and_changes_nothing_any_more(sup):
    body = Shielded()
    run = sup.submit("session:a", body)
    outcome = await run.wait()
    with capture_logs() as logs:
        body.release()
        await gone(sup)
    assert [line["event"] for line in logs] == ["abandoned_body_ended"]
    assert run.outcome is outcome
    assert sup.statistics().runs["abandoned"] == 1


async def test_a_body_that_swallows_cancellation_is_told_no_more_once_it_is_abandoned(sup):
    body = Stubborn()
    try:
        await sup.submit("session:a", body).wait()
        swallowed = body.swallowed
        assert swallowed > 0
        await anyio.sleep(5)
        assert body.swallowed <= swallowed + 1
    finally:
        body.release()
    await gone(sup)


@pytest.mark.parametrize("grace", [0.0, 0.5])
async def test_a_run_that_is_cancelled_before_its_body_began_leaves_no_abandoned_body(virtual, tmp_path, grace):
    started = []

    async def body(ctx):
        started.append(ctx.run.id)
        await anyio.sleep_forever()

    async with Supervisor(tmp_path, lanes=[LaneSpec("session:*", timeout=10.0, grace=grace)]) as sup:
        for n in range(3):
            run = sup.submit(f"session:{n}", body)
            run.cancel("at once")
            outcome = await run.wait()
            await virtual.settle()
            assert sup.statistics().abandoned == 0
            assert outcome.state is RunState.CANCELLED
        assert await sup.submit("session:0", writes).result() == "next"
        assert_empty(sup)
    assert len(started) <= 3


async def test_with_no_grace_a_body_that_ends_when_told_is_not_abandoned(virtual, tmp_path):
    """No grace: no time to clean up, but time to take note."""

    async def body(ctx):
        await anyio.sleep_forever()

    async with Supervisor(tmp_path, lanes=[LaneSpec("session:*", timeout=10.0, grace=0.0)]) as sup:
        timed_out, cancelled = sup.submit("session:a", body), sup.submit("session:b", body)
        await anyio.sleep(1)
        cancelled.cancel()
        outcomes = [await cancelled.wait(), await timed_out.wait()]
        await virtual.settle()
        assert sup.statistics().abandoned == 0
        assert {outcome.state for outcome in outcomes} <= {RunState.CANCELLED, RunState.TIMED_OUT, RunState.ABANDONED}
        assert_empty(sup)


async def test_clean_up_is_cut_off_in_time_for_the_body_to_end_by_itself(sup):
    heard = []

    async def body(ctx):
        try:
            await anyio.sleep_forever()
        finally:
            async with ctx.cleanup():
                heard.append("begins")
                await anyio.sleep_forever()
            heard.append("cut off")
            try:
                await anyio.sleep_forever()
            finally:
                heard.append("cancelled again")

    outcome = await sup.submit("session:a", body).wait()
    assert (outcome.state, heard) == (RunState.TIMED_OUT, ["begins", "cut off", "cancelled again"])
    assert 11.8 <= outcome.ran_s < 12.0


async def test_a_second_clean_up_has_only_what_is_left_of_the_grace(sup, virtual):
    lasted = []

    async def body(ctx):
        try:
            await anyio.sleep_forever()
        finally:
            for _ in range(3):
                began = virtual.now()
                with anyio.CancelScope(shield=True):
                    async with ctx.cleanup():
                        await anyio.sleep(1.5)
                lasted.append(virtual.now() - began)

    outcome = await sup.submit("session:a", body).wait()
    assert outcome.state is RunState.TIMED_OUT
    assert lasted[0] == about(1.5) and sum(lasted) < 2.0


# F7: in real time, because real threads hang


@pytest.mark.on_store
@pytest.mark.failure("F7", "E15")
async def test_60_hung_threads_starve_neither_appends_nor_leases_nor_stop(tmp_path):
    lanes = [
        LaneSpec("session:*", timeout=20.0, grace=0.2),
        LaneSpec("hung:*", timeout=20.0, grace=1.5, capacity=60, group="hung"),
    ]
    sup = Supervisor(tmp_path, lanes=lanes, groups=[GroupSpec("hung", slots=60)])
    await sup.start()
    limiter = to_thread.current_default_thread_limiter()
    hung = [HungThread() for _ in range(60)]
    try:
        runs = [sup.submit("hung:a", body) for body in hung]
        await eventually(lambda: sum(body.started.is_set() for body in hung) == limiter.total_tokens == 40)
        sup.cancel(reason="they hang")
        await eventually(lambda: sup.statistics().abandoned == 40)
        await eventually(lambda: sup.runs() == [])

        async def conducts(ctx):
            for n in range(20):
                await ctx.session.append({"text": n})
            async with ctx.session.lease() as lease:
                await lease.append({"text": "leased"})
            return len(await ctx.session.read())

        with anyio.fail_after(60):
            assert await sup.run("session:a", conducts) == 21
            with pytest.raises(AbandonedBodies) as caught:
                await sup.stop(drain_timeout=0.1)
        abandoned = {run for run in runs if run.state is RunState.ABANDONED}
        assert set(caught.value.runs) == abandoned and len(abandoned) == 40
        assert {run.state for run in runs} == {RunState.ABANDONED, RunState.CANCELLED}
    finally:
        for body in hung:
            body.release()
    await eventually(lambda: sup.statistics().abandoned == limiter.borrowed_tokens == 0, 10)
    assert_empty(sup)


@pytest.mark.failure("F7")
async def test_a_long_read_needs_no_thread_of_the_default_pool(tmp_path, monkeypatch):
    async with Supervisor(tmp_path, lanes=[LaneSpec("session:*")]) as sup:

        async def reads(ctx):
            async with ctx.session.lease() as lease:
                await lease.append_many({"text": "x" * 1000} for _ in range(400))
            return len(await ctx.session.read())

        limiter: CapacityLimiter = to_thread.current_default_thread_limiter()
        before, limiter.total_tokens = limiter.total_tokens, 1
        hung = HungThread()
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(to_thread.run_sync, hung._hang)
                await eventually(hung.started.is_set)
                with anyio.fail_after(60):
                    assert await sup.run("session:a", reads) == 400
                hung.release()
        finally:
            limiter.total_tokens = before
        assert limiter.borrowed_tokens == 0
