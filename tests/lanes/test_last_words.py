"""What a run that is ended still says: its question stands first, its last words come before the next turn begins."""

from __future__ import annotations

import anyio
import pytest
from anyio import get_cancelled_exc_class

from lanes import LaneSpec, RunState
from runtime import Supervisor
from tests.supervised import about, assert_empty, texts

LANES = [LaneSpec("session:*", timeout=10.0, grace=2.0)]


async def half_open(ctx):
    """Calls a tool and is ended before it has answered; a half-open call would make a provider refuse for ever."""
    await ctx.session.append({"text": "question"})
    await ctx.session.append({"text": "tool call"})
    try:
        await anyio.sleep_forever()
    except get_cancelled_exc_class():
        async with ctx.cleanup():
            await anyio.sleep(0.5)  # asks the tool for what it has
            await ctx.session.append({"text": "tool result"})
            await ctx.session.append({"text": f"stopped: {ctx.run.reason}"})
        raise


async def next_turn(ctx):
    await ctx.session.append({"text": "next question"})


@pytest.mark.failure("H3", "H4")
@pytest.mark.parametrize("ending", ["timeout", "stop", "supervisor stops", "session is cancelled"])
async def test_last_words_stand_in_order_before_the_next_turn(virtual, tmp_path, ending):
    reasons = {
        "timeout": "timed out after 10 s",
        "stop": "the user pressed stop",
        "supervisor stops": "the supervisor is stopping",
        "session is cancelled": "closed",
    }
    async with Supervisor(tmp_path, lanes=LANES) as sup:
        run, following = sup.submit("session:a", half_open), sup.submit("session:a", next_turn)
        await anyio.sleep(1)
        if ending == "stop":
            run.cancel("the user pressed stop")
        elif ending == "session is cancelled":
            sup.cancel(session="a", queued=False, reason="closed")
        elif ending == "supervisor stops":
            await sup.stop(drain_timeout=1.0)
        await following.wait()
    said = ["question", "tool call", "tool result", f"stopped: {reasons[ending]}"]
    assert texts(sup, "a") == said + ([] if ending == "supervisor stops" else ["next question"])
    assert run.state is (RunState.TIMED_OUT if ending == "timeout" else RunState.CANCELLED)
    assert_empty(sup)


@pytest.mark.on_store
@pytest.mark.failure("H3")
async def test_last_words_said_while_others_append_stand_before_the_next_turn(sup):
    """Others may append at any time; only turns are in order."""

    run, following = sup.submit("session:a", half_open), sup.submit("session:a", next_turn)
    await anyio.sleep(1)
    run.cancel("stop")
    for n in range(10):
        await sup.submit("session:b", notes, n).result()
        await anyio.sleep(0.1)
    await following.result()
    said = texts(sup, "a")
    notes_said = [text for text in said if text.startswith("note")]
    assert notes_said == [f"note {n}" for n in range(10)]
    assert [text for text in said if text not in notes_said] == [
        "question",
        "tool call",
        "tool result",
        "stopped: stop",
        "next question",
    ]


async def notes(ctx, n):
    await ctx.session_of("a").append({"text": f"note {n}"})


@pytest.mark.failure("H3")
async def test_the_next_turn_begins_as_soon_as_the_last_words_are_said(sup, virtual):
    run, following = sup.submit("session:a", half_open), sup.submit("session:a", next_turn)
    await anyio.sleep(1)
    stopped_at = virtual.now()
    run.cancel("stop")
    await following.result()
    assert following.started_at == about(stopped_at + 0.5)


@pytest.mark.failure("H3")
async def test_last_words_that_take_too_long_are_cut_off_and_none_comes_late(sup):
    async def body(ctx):
        await ctx.session.append({"text": "question"})
        try:
            await anyio.sleep_forever()
        finally:
            async with ctx.cleanup():
                for n in range(100):
                    await ctx.session.append({"text": f"word {n}"})
                    await anyio.sleep(0.3)

    run, following = sup.submit("session:a", body), sup.submit("session:a", next_turn)
    await following.result()
    assert run.state is RunState.TIMED_OUT
    said = texts(sup, "a")
    assert said == ["question", *(f"word {n}" for n in range(len(said) - 2)), "next question"]
    assert 3 < len(said) < 12


@pytest.mark.failure("H4")
@pytest.mark.parametrize("error", [LookupError("no such tool"), TimeoutError("the model"), OSError(5, "disk")])
async def test_the_question_is_in_the_file_though_its_answer_failed(sup, error):
    async def body(ctx):
        await ctx.session.append({"text": "question"})
        await anyio.sleep(1)
        raise error

    with pytest.raises(type(error)):
        await sup.submit("session:a", body).result()
    assert texts(sup, "a") == ["question"]


async def test_clean_up_of_a_run_that_nobody_ended_is_just_a_block(sup):
    async def body(ctx):
        async with ctx.cleanup():
            await anyio.sleep(0.5)
            await ctx.session.append({"text": "saved"})
        await ctx.session.append({"text": "more"})
        return "done"

    assert await sup.submit("session:a", body).result() == "done"
    assert texts(sup, "a") == ["saved", "more"]


async def test_an_exception_in_a_clean_up_comes_out_of_it(sup):
    async def body(ctx):
        try:
            await anyio.sleep_forever()
        finally:
            async with ctx.cleanup():
                raise LookupError("clean-up failed")

    run, following = sup.submit("session:a", body), sup.submit("session:a", next_turn)
    outcome = await run.wait()
    await following.result()
    assert outcome.state is RunState.TIMED_OUT
    assert outcome.traceback is not None and "clean-up failed" in outcome.traceback
