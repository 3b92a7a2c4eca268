"""Work about a session rather than in it: what hangs there holds up nobody who talks to the session."""

from __future__ import annotations

import anyio
import pytest

from lanes import LaneSpec, RunState
from runtime import Supervisor
from tests.supervised import Stubborn, assert_empty, gone, texts


async def answers(ctx, messages):
    for message in messages:
        await ctx.session.append({"text": message.body})
    return "answered"


@pytest.mark.on_store
@pytest.mark.failure("A6")
async def test_a_compaction_that_never_settles_ends_at_its_deadline_and_the_next_message_passes(virtual, tmp_path):
    async def compact(ctx):
        async with ctx.session.lease():
            await anyio.sleep_forever()

    async with Supervisor(tmp_path, lanes=[LaneSpec("session:*", handler=answers)]) as sup:
        began = virtual.now()
        stuck = sup.submit("cron", compact, session="a", timeout=60)
        message = sup.post("session:a", "hello")
        assert (await message.wait()).state is RunState.DONE
        assert virtual.now() == pytest.approx(began + 60)
        assert (await stuck.wait()).state is RunState.TIMED_OUT
        assert texts(sup, "a") == ["hello"]
        assert_empty(sup)


@pytest.mark.failure("A6", "A4")
async def test_a_compaction_that_ignores_its_end_as_well_is_left_behind_at_its_grace(virtual, tmp_path):
    stubborn = Stubborn()
    async with Supervisor(tmp_path, lanes=[LaneSpec("session:*", handler=answers)]) as sup:
        began = virtual.now()
        stuck = sup.submit("cron", stubborn, session="a", timeout=60)
        message = sup.post("session:a", "hello")
        assert (await message.wait()).state is RunState.DONE
        assert virtual.now() == pytest.approx(began + 62)
        assert (await stuck.wait()).state is RunState.ABANDONED
        stubborn.release()
        await gone(sup)
        assert_empty(sup)


@pytest.mark.failure("A7")
async def test_a_job_that_hangs_after_its_session_was_done_keeps_no_message_waiting(virtual, tmp_path):
    async def tidy_up(ctx):
        await ctx.session.append({"text": "tidying"})
        await anyio.sleep_forever()

    async def answers_and_leaves_a_job(ctx, messages):
        ctx.submit("subagent", tidy_up, session=ctx.run.session, turn=False, detached=True)
        return await answers(ctx, messages)

    async with Supervisor(tmp_path, lanes=[LaneSpec("session:*", handler=answers_and_leaves_a_job)]) as sup:
        began = virtual.now()
        for text in ("one", "two", "three"):
            assert await sup.post("session:a", text).result() == "answered"
        assert virtual.now() == began
        assert [text for text in texts(sup, "a") if text != "tidying"] == ["one", "two", "three"]
        assert sup.cancel(lane="subagent", reason="enough") == 3
