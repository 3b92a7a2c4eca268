"""Bodies that were abandoned are counted, named and shown where they stand; too many make the process unhealthy."""

from __future__ import annotations

import contextlib

import anyio
import pytest
from structlog.testing import capture_logs

from lanes import LaneSpec
from runtime import Limits, Supervisor
from tests.supervised import HungThread, Shielded, Stubborn, about, assert_empty, gone

LANES = [LaneSpec("session:*", timeout=1.0, grace=1.0), LaneSpec("side:*", timeout=1.0, grace=1.0)]


@pytest.fixture
async def sup(virtual, tmp_path):
    virtual.busy_limit = 100
    virtual.threads_hold = False
    async with Supervisor(tmp_path, lanes=LANES, limits=Limits(abandoned=2)) as sup:
        yield sup
        assert_empty(sup)


async def abandoned(sup, lane, body=None):
    """A body that was abandoned on a lane."""
    body = body or Shielded()
    await sup.submit(lane, body).wait()
    return body


# Healthy or not


async def test_up_to_the_limit_it_is_healthy_and_above_it_says_what_and_where(sup):
    bodies = [await abandoned(sup, "session:a"), await abandoned(sup, "side:b")]
    now = sup.statistics()
    assert (now.abandoned, now.healthy, now.problems) == (2, True, ())
    bodies.append(await abandoned(sup, "session:a"))
    now = sup.statistics()
    assert (now.abandoned, now.healthy) == (3, False)
    assert now.problems == (
        "abandoned bodies that still run: 3 (2 on lane session:a, 1 on lane side:b); allowed: 2 (limits.abandoned)",
    )
    bodies.pop().release()
    while sup.statistics().abandoned > 2:
        await anyio.sleep(0.01)
    assert sup.statistics().healthy
    for body in bodies:
        body.release()
    await gone(sup)


async def test_with_a_limit_of_none_the_first_one_makes_it_unhealthy(virtual, tmp_path):
    async with Supervisor(tmp_path, lanes=LANES, limits=Limits(abandoned=0)) as sup:
        assert sup.statistics().healthy
        body = await abandoned(sup, "side:b")
        assert sup.statistics().problems == (
            "abandoned bodies that still run: 1 (1 on lane side:b); allowed: 0 (limits.abandoned)",
        )
        body.release()
        await gone(sup)
        assert sup.statistics().healthy


@pytest.mark.failure("E1", "F1")
async def test_an_unhealthy_one_works_on(sup):
    async def returns(ctx):
        return "well"

    bodies = [await abandoned(sup, "session:a") for _ in range(5)]
    assert not sup.statistics().healthy
    assert await sup.submit("session:a", returns).result() == "well"
    for body in bodies:
        body.release()
    await gone(sup)


# Named, with their stack


@pytest.mark.parametrize(
    "kind, line",
    [
        (Stubborn, "await anyio.sleep(0.1)"),
        (Shielded, "await self._released.wait()"),
        (HungThread, "await to_thread.run_sync(self._hang)"),
    ],
)
async def test_each_is_listed_with_its_run_its_age_and_the_line_where_it_stood(sup, kind, line):
    with capture_logs() as logs:
        body = await abandoned(sup, "session:a", kind())
    await anyio.sleep(5.0)
    (one,) = sup.abandoned()
    assert (one.run.id, one.run.lane, one.run.outcome.state) == (1, "session:a", "abandoned")
    assert one.abandoned_for_s == pytest.approx(5.0, abs=0.2)
    assert line in one.stack
    assert [entry["stack"] for entry in logs if entry["event"] == "run_abandoned"] == [one.stack]
    body.release()
    await gone(sup)
    assert sup.abandoned() == []


async def test_they_are_listed_in_the_order_in_which_they_were_abandoned(sup):
    bodies = []
    for lane in ("session:b", "side:a", "session:c"):
        bodies.append(await abandoned(sup, lane))
        await anyio.sleep(1.0)
    assert [one.run.lane for one in sup.abandoned()] == ["session:b", "side:a", "session:c"]
    assert [one.abandoned_for_s for one in sup.abandoned()] == about([7.0, 4.0, 1.0])
    for body in bodies:
        body.release()
    await gone(sup)


async def test_the_stack_goes_through_the_async_generator_that_a_body_iterates(sup):
    release = anyio.Event()

    async def tokens():
        with anyio.CancelScope(shield=True):
            await release.wait()  # the model hangs here
        yield "token"

    async def body(ctx):
        async with contextlib.aclosing(tokens()) as stream:
            async for _ in stream:
                pass

    run = sup.submit("session:a", body)
    await run.wait()
    (one,) = sup.abandoned()
    assert "in body" in one.stack
    assert "in tokens\n    await release.wait()  # the model hangs here" in one.stack
    release.set()
    await gone(sup)


async def test_of_a_deep_stack_the_inner_end_is_kept(sup):
    release = anyio.Event()

    async def deep(ctx, depth=100):
        if depth:
            await deep(ctx, depth - 1)
        else:
            with anyio.CancelScope(shield=True):
                await release.wait()  # where it hangs

    await sup.submit("session:a", deep).wait()
    (one,) = sup.abandoned()
    assert "await release.wait()  # where it hangs" in one.stack
    assert one.stack.count("\n    ") == 30
    assert "outer calls" in one.stack.splitlines()[0]
    release.set()
    await gone(sup)


@pytest.mark.failure("B2")
async def test_a_stop_names_who_is_left(virtual, tmp_path):
    sup = Supervisor(tmp_path, lanes=LANES)
    await sup.start()
    body = await abandoned(sup, "session:a")
    with pytest.raises(RuntimeError, match="1 abandoned: <Run 1 on lane session:a, session 'a': abandoned"):
        await sup.stop()
    assert [one.run.id for one in sup.abandoned()] == [1]
    body.release()
    await gone(sup)


@pytest.mark.backends("asyncio")
@pytest.mark.parametrize("wrong", [-1, 1.5, None, "1", True], ids=repr)
def test_a_bad_limit_is_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match=r"^limits.abandoned: .* is not allowed; allowed: a whole number from 0"):
        Limits(abandoned=wrong)
