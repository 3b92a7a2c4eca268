"""Deadlines of runs, exact at the edge: budgets, lateness, and the one log line of a run that timed out."""

from __future__ import annotations

import anyio
import pytest
from anyio import get_cancelled_exc_class
from structlog.testing import capture_logs

from lanes import LaneSpec, RunState
from runtime import Supervisor
from tests.supervised import TICK, Shielded, Stubborn, about, assert_empty, gone, path_of, sleeps, texts

LANES = [LaneSpec("session:*", timeout=10.0, grace=2.0)]


async def sleeps_for(ctx, seconds):
    await anyio.sleep(seconds)
    return seconds


# One tick before, one tick after


@pytest.mark.suite("R1")
async def test_a_body_that_ends_a_tick_before_its_deadline_is_done(sup):
    run = sup.submit("session:a", sleeps_for, 10.0 - TICK)
    assert await run.result() == 10.0 - TICK


@pytest.mark.suite("R1")
async def test_a_body_that_needs_a_tick_more_than_its_timeout_is_timed_out(sup):
    outcome = await sup.submit("session:a", sleeps_for, 10.0 + TICK).wait()
    assert outcome.state is RunState.TIMED_OUT and outcome.value is None
    assert outcome.ran_s == about(10.0)


@pytest.mark.suite("R1")
@pytest.mark.parametrize("early", [True, False])
async def test_the_grace_is_exact_at_its_edge(sup, early):
    async def body(ctx):
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(2.0 - TICK if early else 2.0 + TICK)

    outcome = await sup.submit("session:a", body).wait()
    assert outcome.state is (RunState.TIMED_OUT if early else RunState.ABANDONED)
    assert outcome.ran_s == pytest.approx(12.0, abs=2 * TICK)
    await gone(sup)


@pytest.mark.on_store
@pytest.mark.suite("R1")
@pytest.mark.parametrize("early", [True, False])
async def test_the_last_write_is_legal_a_tick_before_the_end_of_the_grace_and_never_a_tick_after(sup, early):
    refused = []

    async def body(ctx):
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(2.0 - TICK if early else 2.0 + TICK)
                try:
                    await ctx.session.append({"text": "last words"})
                except Exception as error:
                    refused.append(type(error).__name__)

    await sup.submit("session:a", body).wait()
    await gone(sup)
    assert (refused, texts(sup, "a")) == (([], ["last words"]) if early else (["RunEnded"], []))


@pytest.mark.suite("R1")
@pytest.mark.parametrize("early", [True, False])
async def test_the_queue_budget_is_exact_at_its_edge(virtual, tmp_path, early):
    async with Supervisor(tmp_path, lanes=[LaneSpec("session:*", timeout=10.0, queue_timeout=4.0)]) as sup:
        sup.submit("session:a", sleeps_for, 4.0 - TICK if early else 4.0 + TICK)
        run = sup.submit("session:a", sleeps_for, 0)
        outcome = await run.wait()
        assert outcome.state is (RunState.DONE if early else RunState.TIMED_OUT)
        assert outcome.waited_s == pytest.approx(4.0, abs=2 * TICK)


@pytest.mark.suite("R1")
@pytest.mark.parametrize("early", [True, False])
async def test_progress_is_in_time_a_tick_before_the_idle_deadline_and_too_late_a_tick_after(virtual, tmp_path, early):
    async def body(ctx):
        await anyio.sleep(3.0 - TICK if early else 3.0 + TICK)
        ctx.progress()
        await anyio.sleep(2)
        return "done"

    async with Supervisor(tmp_path, lanes=[LaneSpec("session:*", timeout=10.0, idle_timeout=3.0)]) as sup:
        outcome = await sup.submit("session:a", body).wait()
    assert (outcome.state, outcome.value) == ((RunState.DONE, "done") if early else (RunState.TIMED_OUT, None))


# Which clock starts when


@pytest.mark.failure("D5")
async def test_the_wait_budget_counts_from_submit_and_the_run_budget_from_the_start_and_both_are_shown(sup, virtual):
    began = virtual.now()
    first = sup.submit("session:a", sleeps_for, 8)
    second = sup.submit("session:a", sleeps_for, 8)
    third = sup.submit("session:a", sleeps)
    assert second.deadline is None
    await first.wait()
    assert second.deadline == about(began + 8 + 10)
    assert (await second.wait()).state is RunState.DONE
    assert (second.outcome.waited_s, second.outcome.ran_s) == about((8.0, 8.0))
    assert (await third.wait()).state is RunState.TIMED_OUT
    assert (third.outcome.waited_s, third.outcome.ran_s) == about((16.0, 10.0))


@pytest.mark.failure("D5")
async def test_waiting_for_another_supervisors_turn_eats_nothing_of_the_run_budget(virtual, tmp_path):
    async with Supervisor(tmp_path, lanes=LANES) as one, Supervisor(tmp_path, lanes=LANES) as other:
        first = one.submit("session:a", sleeps_for, 8)
        second = other.submit("session:a", sleeps_for, 8)
        outcome = await second.wait()
        assert first.state is RunState.DONE
        assert outcome.state is RunState.DONE
        assert outcome.waited_s == pytest.approx(8.0, abs=0.05) and outcome.ran_s == about(8.0)


async def test_a_timeout_given_with_the_run_replaces_the_lanes(sup):
    short, long = sup.submit("session:a", sleeps, timeout=3.0), sup.submit("session:b", sleeps, timeout=15.0)
    assert (await short.wait()).ran_s == about(3.0)
    assert (await long.wait()).ran_s == about(15.0)


@pytest.mark.failure("E3")
async def test_a_timeout_that_would_hide_the_idle_timeout_is_refused(virtual, tmp_path):
    async with Supervisor(tmp_path, lanes=[LaneSpec("session:*", timeout=10.0, idle_timeout=3.0)]) as sup:
        with pytest.raises(ValueError, match=r"timeout: 2.0 s is shorter than idle_timeout \(3.0 s\)"):
            sup.submit("session:a", sleeps, timeout=2.0)
        assert_empty(sup)


@pytest.mark.on_store
async def test_a_run_that_times_out_while_it_holds_a_lease_is_timed_out_and_nothing_else(sup):
    async def body(ctx):
        async with ctx.session.lease() as lease:
            await lease.append({"text": "under a lease"})
            await anyio.sleep_forever()

    with capture_logs() as logs:
        run, following = sup.submit("session:a", body), sup.submit("session:a", sleeps_for, 1)
        outcome = await run.wait()
        await following.result()
    assert outcome.state is RunState.TIMED_OUT
    assert following.started_at == about(run.enqueued_at + 10)
    assert [line["event"] for line in logs] == ["run_timed_out"]


# The log line


def timeouts(logs):
    return [line for line in logs if line["event"] == "run_timed_out"]


async def test_a_timed_out_run_is_logged_exactly_once_with_everything_an_operator_asks(sup):
    with capture_logs() as logs:
        run = sup.submit("session:a", sleeps)
        await run.wait()
        await anyio.sleep(5)
    (line,) = timeouts(logs)
    assert line["log_level"] == "warning"
    fields = {name: line[name] for name in ("run", "lane", "session", "timeout_s", "late_s", "reason")}
    assert fields == {
        "run": run.id,
        "lane": "session:a",
        "session": "a",
        "timeout_s": 10.0,
        "late_s": 0.0,
        "reason": "timed out after 10 s",
    }
    assert line["holder"].startswith(f"run {run.id} on lane session:a (pid ")


@pytest.mark.parametrize("kind", [Stubborn, Shielded])
async def test_an_abandoned_run_is_logged_as_timed_out_once_and_as_abandoned_once(sup, kind):
    body = kind()
    with capture_logs() as logs:
        await sup.submit("session:a", body).wait()
        body.release()
        await gone(sup)
    assert [line["event"] for line in logs if line["event"].startswith("run_")] == ["run_timed_out", "run_abandoned"]
    assert timeouts(logs)[0]["reason"] == "timed out after 10 s"


async def test_a_run_that_waited_too_long_is_logged_as_timed_out_once_with_its_queue_budget(virtual, tmp_path):
    with capture_logs() as logs:
        async with Supervisor(tmp_path, lanes=[LaneSpec("session:*", timeout=10.0, queue_timeout=4.0)]) as sup:
            first, run = sup.submit("session:a", sleeps), sup.submit("session:a", sleeps)
            await run.wait()
            first.cancel()
    (line,) = timeouts(logs)
    assert (line["run"], line["timeout_s"]) == (run.id, 4.0)
    assert line["reason"].startswith("waited 4 s in the queue: run 1 on lane session:a")


async def test_runs_that_end_otherwise_are_not_logged_as_timed_out(sup):
    async def fails(ctx):
        raise LookupError

    with capture_logs() as logs:
        await sup.submit("session:a", sleeps_for, 9).wait()
        await sup.submit("session:a", fails).wait()
        run = sup.submit("session:a", sleeps)
        await virtual_sleep(1)
        run.cancel()
        await run.wait()
    assert timeouts(logs) == []
    assert [line["event"] for line in logs] == ["run_failed"]


async def virtual_sleep(seconds):
    await anyio.sleep(seconds)


# A body that keeps the loop


async def test_a_deadline_that_the_loop_was_too_busy_to_see_says_by_how_much(sup, virtual):
    async def body(ctx):
        virtual.advance(11.5)
        await anyio.sleep_forever()

    outcome = await sup.submit("session:a", body).wait()
    assert outcome.state is RunState.TIMED_OUT
    assert outcome.late_s == pytest.approx(1.5, abs=0.001)


async def test_the_grace_of_a_body_that_kept_the_loop_past_its_deadline_counts_from_when_it_was_told(sup, virtual):
    cleaned = []

    async def body(ctx):
        try:
            virtual.advance(11.5)
            await anyio.sleep_forever()
        except get_cancelled_exc_class():
            async with ctx.cleanup():
                await ctx.session.append({"text": "last words"})
                cleaned.append(True)
            raise

    outcome = await sup.submit("session:a", body).wait()
    assert (outcome.state, cleaned, texts(sup, "a")) == (RunState.TIMED_OUT, [True], ["last words"])


@pytest.mark.failure("A10")
@pytest.mark.parametrize("end", ["returns", "raises"])
async def test_a_body_that_kept_the_loop_past_deadline_and_grace_is_timed_out_whatever_it_returns(sup, virtual, end):
    """Its turn was taken away meanwhile: another process may have it."""

    async def body(ctx):
        virtual.advance(12.5)
        if end == "raises":
            raise LookupError
        return "a late answer"

    with capture_logs() as logs:
        run, following = sup.submit("session:a", body), sup.submit("session:a", sleeps_for, 1)
        outcome = await run.wait()
        assert await following.result() == 1
    assert outcome.state is RunState.TIMED_OUT
    assert outcome.value == ("a late answer" if end == "returns" else None)
    assert [line["run"] for line in timeouts(logs)] == [run.id]
    assert not path_of(sup, "a").exists() or texts(sup, "a") == []


@pytest.mark.on_store
@pytest.mark.failure("A10")
async def test_a_write_by_a_body_that_kept_the_loop_past_deadline_and_grace_is_refused(sup, virtual):
    refused = []

    async def body(ctx):
        virtual.advance(12.5)
        try:
            await ctx.session.append({"text": "a late answer"})
        except Exception as error:
            refused.append(type(error).__name__)

    await sup.submit("session:a", body).wait()
    assert texts(sup, "a") == []
    assert sup.statistics().late_writes_refused == len(refused)
