"""Handlers run by themselves, with a context of the test's own, and what their sessions have then."""

from __future__ import annotations

import anyio
import pytest

from lanes import InvalidLane, Message, RunTimedOut, testing
from lanes.testing import FakeModel, assert_transcript


async def answer(ctx, messages):
    for message in messages:
        await ctx.session.append({"role": "user", "content": message.body})
    text = await ctx.services["model"].complete(messages[-1].body)
    ctx.emit(text)
    await ctx.finish({"role": "assistant", "content": text, "answers": ctx.message_ids}, text)
    return text


async def test_a_handler_gets_what_the_test_gives(virtual_time):
    model = FakeModel(lambda question: [question.upper()])
    done = await testing.run_handler(
        answer, "one", Message("two"), session="ann", records=[{"role": "system"}], services={"model": model}
    )
    assert (done.value, done.events) == ("TWO", ["TWO"])
    assert_transcript(
        done.records,
        [
            {"role": "system"},
            {"role": "user", "content": "one"},
            {"role": "user", "content": "two"},
            {"role": "assistant", "answers": [1, 2]},
        ],
    )


async def test_how_it_ended_is_told(virtual_time):
    done = await testing.run_handler(answer, "hi", services={"model": FakeModel(at={1: "hang"})}, timeout=60)
    with pytest.raises(RunTimedOut, match="timed out after 60 s"):
        _ = done.value
    assert done.outcome.ran_s == 60


@pytest.mark.parametrize(
    "messages, given, told", [((), {}, r"^messages: none"), (("x",), {"grace": -1}, "grace: -1 is no duration")]
)
async def test_what_cannot_be_run_is_refused(virtual_time, messages, given, told):
    with pytest.raises(InvalidLane, match=told):
        await testing.run_handler(answer, *messages, **given)


async def test_a_context_of_ones_own_is_that_of_a_real_run(virtual_time):
    async with testing.context(session="ann", records=[{"n": 1}], services={"x": 7}) as ctx:
        await ctx.session.append({"n": len(await ctx.session.read()) + 1})
        assert [one["n"] for one in await ctx.session.read()] == [1, 2]
        assert (ctx.run.session, ctx.services["x"], ctx.cancelled) == ("ann", 7, False)


async def test_its_block_ends_as_the_run_would(virtual_time):
    cleaned: list[bool] = []

    async def helper():
        async with testing.context(timeout=5) as ctx:
            try:
                await anyio.sleep_forever()
            finally:
                async with ctx.cleanup():
                    await ctx.session.append({"role": "assistant", "stopped": ctx.run.reason})
                    cleaned.append(True)

    with pytest.raises(RunTimedOut, match="timed out after 5 s"):
        await helper()
    assert cleaned == [True]


# Transcripts

ONE, TWO, THREE = ({"n": n, "more": "x"} for n in (1, 2, 3))


@pytest.mark.parametrize(
    "expected",
    [
        [{"n": 1}, {"n": 2}, {"more": "x", "n": 3}],
        [...],
        [..., {"n": 3}],
        [{"n": 1}, ...],
        [{"n": 1}, ..., {"n": 3}],
        [..., {"n": 2}, ...],
        [{"n": 1}, {"n": 2}, {"n": 3}, ...],
        [..., ...],
    ],
)
def test_records_that_are_as_expected(expected):
    assert_transcript([ONE, TWO, THREE], expected)


@pytest.mark.parametrize(
    "expected, told",
    [
        ([{"n": 1}], "2 records more than expected, from 2"),
        ([], "3 records more than expected, from 1"),
        ([{"n": 1}, {"n": 3}, ...], r"record 2 differs: n is 2, expected: 3\n"),
        ([{"other": 1}, ...], "record 1 differs: other is missing: 1"),
        ([..., {"n": 2}], "record 3 differs: n is 3, expected: 2"),
        ([{"n": 1}, ..., {"n": 1}, ...], r"nowhere from record 2 on: \[\{'n': 1\}\]"),
        ([ONE, TWO, THREE, {"n": 4}], "there is no record 4; expected: {'n': 4}"),
        ([ONE, TWO, ..., TWO, THREE], "the last 2 records are not there"),
    ],
)
def test_records_that_are_not_are_shown(expected, told):
    with pytest.raises(AssertionError, match=told) as caught:
        assert_transcript([ONE, TWO, THREE], expected)
    assert "all 3 records:\n  1: {'n': 1, 'more': 'x'}" in str(caught.value)
