"""`FakeModel`: tokens in time, and each way in which a model can go wrong."""

from __future__ import annotations

import anyio
import pytest

from lanes import InvalidLane, LaneSpec, RunState, testing
from lanes.testing import FakeModel
from runtime import AbandonedBodies


def answering(model):
    async def handle(ctx, messages):
        text = ""
        async for token in model(messages[-1].body):
            text += token
            ctx.emit(token)
        return text

    return LaneSpec("session:*", handler=handle, timeout=10.0, grace=2.0)


async def test_each_token_takes_its_time(virtual_time):
    model = FakeModel("one two three", delay=0.5)
    began = virtual_time.now()
    assert [(token, virtual_time.now() - began) async for token in model("hello")] == [
        ("one ", 0.5),
        ("two ", 1.0),
        ("three ", 1.5),
    ]
    assert (model.calls, model.given) == ([("hello",)], 3)


async def test_tokens_may_depend_on_the_question(virtual_time):
    assert await FakeModel(lambda question: [question, "!"]).complete("hello") == "hello!"
    assert await FakeModel(lambda question: question).complete("a b") == "a b "
    assert await FakeModel(["x", "y"]).complete() == "xy"


async def test_it_raises_before_the_token_it_is_told_in_the_calls_it_is_told(virtual_time):
    model = FakeModel("one two", at={2: ConnectionError("gone")}, times=1)
    with pytest.raises(ConnectionError, match="gone"):
        await model.complete()
    assert model.given == 1
    assert await model.complete() == "one two "


@pytest.mark.parametrize("number", [1, 3])
async def test_one_that_hangs_is_cancelled_by_the_timeout(virtual_time, number):
    model = FakeModel("one two", at={number: "hang"})
    async with testing.supervisor([answering(model)]) as sup:
        outcome = await sup.post("session:ann", "hello").wait()
        assert (outcome.state, outcome.ran_s, model.given) == (RunState.TIMED_OUT, 10.0, number - 1)
        assert model.cancelled == 1


@pytest.mark.parametrize("wrong", ["swallow", "thread"])
async def test_one_that_no_cancellation_reaches_is_abandoned_until_it_is_released(virtual_time, wrong):
    model = FakeModel("one two", at={2: wrong})
    async with testing.supervisor([answering(model)]) as sup:
        outcome = await sup.post("session:ann", "hello").wait()
        assert outcome.state is RunState.ABANDONED
        assert outcome.ran_s == pytest.approx(12.0, abs=0.01)
        assert len(sup.abandoned()) == 1
        assert (model.cancelled > 0) == (wrong == "swallow")
        assert model.cancelled < 5_000  # it has said that it spins: time need not find that out
        model.release()
        while sup.abandoned():
            await anyio.sleep(0.01)


async def test_nothing_hangs_any_more_when_the_last_block_has_been_left(virtual_time):
    model = FakeModel("one two", at={2: "thread"})
    with pytest.raises(AbandonedBodies, match="1 abandoned"):
        async with testing.supervisor([answering(model)]) as sup:
            await sup.post("session:ann", "hello").wait()
    assert model.given == 1
    await testing.advance(1)
    assert model.given == 2


async def test_a_hanging_thread_lets_time_pass_and_none_of_it_is_real(virtual_time):
    with FakeModel("one", at={1: "thread"}) as model:
        async with anyio.create_task_group() as group:
            group.start_soon(model.complete)
            await testing.advance(86_400)
            model.release()
    assert model.given == 1


@pytest.mark.backends("asyncio", "trio")
async def test_it_hangs_in_real_time_too_and_is_released():
    for wrong in ("hang", "swallow", "thread"):
        with FakeModel("one", at={1: wrong}) as model:
            async with anyio.create_task_group() as group:
                group.start_soon(model.complete)
                await anyio.wait_all_tasks_blocked()
                model.release()
        assert model.given == 1


@pytest.mark.parametrize(
    "given, field",
    [
        ({"tokens": 7}, "tokens"),
        ({"delay": -1}, "delay"),
        ({"delay": float("nan")}, "delay"),
        ({"at": {0: "hang"}}, "at"),
        ({"at": ["hang"]}, "at"),
        ({"at": {1: "sleep"}}, r"at\[1\]"),
        ({"times": -1}, "times"),
    ],
)
def test_what_it_cannot_do_is_refused(given, field):
    with pytest.raises(InvalidLane, match=rf"^{field}: .*allowed: "):
        FakeModel(**given)


async def test_a_model_that_hung_in_one_block_hangs_in_the_next_one_too(virtual_time):
    model = FakeModel("one two", at={2: "hang"})

    async def handle(ctx, messages):
        return await model.complete()

    ends = [(await testing.run_handler(handle, "hello", timeout=10.0)).outcome.state for _ in range(2)]
    assert ends == [RunState.TIMED_OUT, RunState.TIMED_OUT]
    model.release()
    assert (await testing.run_handler(handle, "hello")).value == "one two "


MODEL_OF_THE_FILE = FakeModel("one two", at={1: "swallow", 2: "thread"})


async def test_a_model_of_the_file_hangs_on_each_loop(virtual_time):
    """A body that was abandoned gets its whole answer in the end, and later answers hang again."""
    given = MODEL_OF_THE_FILE.given
    with pytest.raises(AbandonedBodies):
        async with testing.supervisor([answering(MODEL_OF_THE_FILE)]) as sup:
            await sup.post("session:ann", "hello").wait()
    assert MODEL_OF_THE_FILE.given == given
    await testing.advance(1)
    assert MODEL_OF_THE_FILE.given == given + 2


async def test_a_body_that_was_abandoned_may_ask_again(virtual_time):
    model = FakeModel("one two", at={1: "thread"})

    async def handle(ctx, messages):
        return [await model.complete(), await model.complete()]

    with pytest.raises(AbandonedBodies):
        async with testing.supervisor([LaneSpec("session:*", handler=handle, timeout=10.0, grace=2.0)]) as sup:
            await sup.post("session:ann", "hello").wait()
    await testing.advance(1)
    assert model.given == 4
