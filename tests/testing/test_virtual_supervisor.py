"""`lanes.testing`: a supervisor in virtual time, what it records, and how it is killed."""

from __future__ import annotations

import pickle

import anyio
import pytest

from lanes import Answer, InvalidLane, LaneSpec, RetrySpec, RunState, testing
from lanes.testing import NotVirtual, Stuck
from locks import process
from runtime import Inbox, MessageState, Schedule

DAY_S = 86_400.0


async def echo(ctx, messages):
    for message in messages:
        await ctx.session.append({"said": message.body})
    ctx.emit(messages[-1].body)
    return messages[-1].body


async def sleeps(ctx, messages):
    await anyio.sleep_forever()


def lane(handler=echo, **spec):
    return LaneSpec("session:*", handler=handler, **spec)


# Time


async def test_a_timeout_of_five_minutes_has_come_when_time_has_advanced_by_as_much(virtual_time):
    async with testing.supervisor([lane(sleeps, timeout=300)]) as sup:
        run = sup.post("session:ann", "hello")
        await sup.advance(299.9)
        assert run.outcome is None
        await sup.advance(0.1)
        assert run.state is RunState.TIMED_OUT


async def test_time_jumps_when_everything_waits(virtual_time):
    async with testing.supervisor([lane(sleeps, timeout=300)]) as sup:
        began = virtual_time.now()
        outcome = await sup.post("session:ann", "hello").wait()
        assert (outcome.state, virtual_time.now() - began) == (RunState.TIMED_OUT, 300)


async def test_a_month_without_work_is_over_at_once_and_the_wall_clock_says_so(virtual_time):
    async with testing.supervisor([lane()], inbox=True) as sup:
        before = process.wall()
        await sup.advance(30 * DAY_S)
        assert process.wall() - before == 30 * DAY_S
        assert await sup.run("main", _gives, 7) == 7


async def _gives(ctx, value):
    return value


async def test_a_question_expires_after_a_day(virtual_time):
    answers: list[Answer] = []

    async def asks(ctx, messages):
        if (answer := messages[0].answer) is not None:
            answers.append(answer)
            return
        raise await ctx.ask("really?", expires=DAY_S)

    async with testing.supervisor([lane(asks)], inbox=True) as sup:
        await (await sup.accept("session:ann", "delete it")).wait()
        await sup.advance(DAY_S - 1)
        assert len(await sup.asks()) == 1
        await sup.advance(1)
        assert [one.outcome for one in answers] == ["expired"]


async def test_debounce_retry_and_schedule_take_their_time_and_none_of_ours(virtual_time):
    tried: list[float] = []

    async def fails_twice(ctx, messages):
        tried.append(virtual_time.now())
        if len(tried) < 3:
            raise ConnectionError
        return [message.body for message in messages]

    every_hour = Schedule("session:clock", "tick", every=3600)
    lanes = [lane(), LaneSpec("session:flaky", handler=fails_twice, debounce=5, retry=RetrySpec(3, wait=60))]
    async with testing.supervisor(lanes, inbox=Inbox(schedules=[every_hour])) as sup:
        first, second = sup.post("session:flaky", 1), sup.post("session:flaky", 2)
        assert await first.result() == await second.result() == [1, 2]
        assert [at - tried[0] for at in tried] == [0, 60, 120]
        await sup.advance(3 * 3600)
        assert sup.recorder.events(session="clock") == ["tick"] * 3


@pytest.mark.backends("asyncio", "trio")
async def test_time_that_is_real_cannot_be_moved():
    async with testing.supervisor([lane()]) as sup:
        assert await sup.post("session:ann", "hello").result() == "hello"
        with pytest.raises(NotVirtual, match=r"time is real here; allowed: .*`virtual_time`") as caught:
            await sup.advance(1)
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
        with pytest.raises(NotVirtual):
            await testing.advance(1)


@pytest.mark.backends("asyncio", "trio")
async def test_a_loop_that_goes_by_real_time_is_refused_in_virtual_time():
    with testing.virtual_time(), pytest.raises(NotVirtual, match=r"this event loop goes by real time.*allowed: "):
        async with testing.supervisor([lane()]):
            pass


@pytest.mark.parametrize("seconds", [-1, float("nan"), "1", None, True])
async def test_time_goes_forward_by_seconds(virtual_time, seconds):
    with pytest.raises(InvalidLane, match=r"^seconds: .* allowed: seconds from 0 to "):
        await testing.advance(seconds)


@pytest.mark.parametrize("wall", [-1, float("nan"), None, "now"])
def test_the_wall_clock_begins_at_a_time(wall):
    with pytest.raises(InvalidLane, match=r"^wall: .*allowed: seconds from 0"), testing.virtual_time(wall=wall):
        pass


@pytest.mark.parametrize("backend", ["uvloop", "curio", None])
def test_a_loop_without_virtual_time_is_refused(backend):
    with pytest.raises(InvalidLane, match=r"^backend: .* is unknown; allowed: 'asyncio', 'trio'"):
        testing.run(anyio.sleep, 1, backend=backend)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_who_waits_in_vain_is_named(backend):
    async def main():
        async with testing.supervisor([lane()], inbox=True):
            await waits_in_vain()

    async def waits_in_vain():
        await anyio.Event().wait()

    with pytest.RaisesGroup(
        pytest.RaisesExc(Stuck, match=r"(?s)everything waits for ever.*waits_in_vain"),
        allow_unwrapped=True,
        flatten_subgroups=True,
    ):
        testing.run(main, backend=backend)


# What is recorded


async def test_the_recorder_has_what_became_of_each_run_in_order(virtual_time):
    async with testing.supervisor([lane()]) as sup:
        first, second = sup.post("session:ann", "one"), sup.post("session:ann", "two")
        await second.wait()
        assert [(one.what, one.run) for one in sup.recorder.entries] == [
            ("starts", first),
            ("waits", second),
            ("emits", first),
            ("ends", first),
            ("starts", second),
            ("emits", second),
            ("ends", second),
        ]
        assert sup.recorder.events() == ["one", "two"]
        assert [one.value for one in sup.recorder.outcomes(session="ann")] == ["one", "two"]
        assert sup.recorder.outcomes(session="bob") == sup.recorder.events(lane="main") == []
        assert "run 1 on lane session:ann emits 'one'" in str(sup.recorder)


async def test_hooks_of_the_test_are_called_too(virtual_time):
    seen: list[str] = []
    async with testing.supervisor([lane()], on_run_end=lambda run: seen.append(run.state)) as sup:
        await sup.post("session:ann", "hello").wait()
    assert seen == ["done"]
    with pytest.raises(InvalidLane, match="on_run_start"):
        async with testing.supervisor(on_run_start=echo):
            pass


async def test_sessions_may_have_records_before(virtual_time):
    before = [{"said": "before"}]
    async with testing.supervisor([lane()], records={"ann": before}) as sup:
        await sup.post("session:ann", "hello").wait()
        testing.assert_transcript(await sup.transcript("ann"), [*before, {"said": "hello"}])


# The next process


async def test_the_next_process_finds_what_a_killed_one_has_kept(virtual_time):
    async def slow(ctx, messages):
        await ctx.session.append({"said": messages[0].body, "attempt": ctx.run.attempt})
        await anyio.sleep(10)

    async with testing.supervisor([lane(slow, repeat=True)], inbox=True) as sup:
        accepted = await sup.accept("session:ann", "hello")
        await sup.advance(5)
        async with sup.killed() as after:
            await after.advance(20)
            found = await after.find_message(accepted.id)
            assert found is not None and found.state is MessageState.DONE
            assert [one["said"] for one in await after.transcript("ann")] == ["hello", "hello"]
        assert [one["said"] for one in await sup.transcript("ann")] == ["hello"]


async def test_what_both_processes_would_share_is_refused(virtual_time, tmp_path):
    async with testing.supervisor([lane()], inbox=Inbox(tmp_path / "inbox.db")) as sup:
        with pytest.raises(InvalidLane, match=r"^killed: inbox, path would be the same for both"):
            async with sup.killed():
                pass
