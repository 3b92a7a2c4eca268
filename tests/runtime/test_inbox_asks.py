"""Questions to persons: kept, answered or expired once, in this process or another."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest

from lanes import InvalidLane, LaneSpec, RunState
from locks import process
from runtime import AskClosed, Inbox, MessageState, Schedule, Supervisor
from runtime.inbox import by_hand
from runtime.testing.inline import inline
from tests.inboxes import rows


@pytest.fixture(autouse=True)
def writer(virtual, monkeypatch):
    """No thread; and the wall clock goes with the virtual one."""
    monkeypatch.setattr(process, "wall", lambda: 1_800_000_000.0 + virtual.now())
    for look, seconds in (("service", 600.0), ("asks", 3000.0), ("schedules", 3000.0)):
        monkeypatch.setattr(f"runtime.inbox.{look}._LOOK_S", seconds)
    with inline() as writer:
        yield writer


class Bot:
    def __init__(self, **options: Any) -> None:
        self.options = options
        self.log: list[Any] = []

    @property
    def lanes(self) -> list[LaneSpec]:
        return [LaneSpec("session:*", handler=self.handle)]

    async def handle(self, ctx: Any, messages: Any) -> None:
        answer = messages[0].answer
        if answer is not None:
            self.log.append((answer.outcome, answer.value, answer.by, answer.keep, messages[0].route))
        elif messages[0].body == "ask":
            raise await ctx.ask("Well?", keep={"n": 1}, **self.options)
        else:
            self.log.append(messages[0].body)
            await anyio.sleep(0.5)


async def test_nothing_is_held_while_a_person_thinks_and_the_answer_comes_first(virtual, tmp_path):
    bot = Bot(options=["yes", "no"])
    async with Supervisor(tmp_path, lanes=bot.lanes, inbox=True) as sup:
        accepted = await sup.accept("session:a", "ask")
        outcome = await accepted.wait()
        assert (outcome.state, accepted.state, sup.runs()) == (RunState.DONE, MessageState.WAITING, [])
        (question,) = await sup.asks()
        assert (question.id, question.options) == (outcome.value.id, ["yes", "no"])
        for n in range(3):
            await sup.accept("session:a", n)
        answered = await sup.answer(question.id, "yes", by="ann")
        await answered.wait()
        await anyio.sleep(5)
        assert bot.log.index(("answered", "yes", "ann", {"n": 1}, None)) <= 1  # one may have begun before
        assert rows(tmp_path, "state") == [("done",)] * 5
        assert await sup.asks() == []


async def test_a_question_outlives_its_process_and_expires_in_another(virtual, tmp_path):
    bot = Bot(expires=360.0)
    async with Supervisor(tmp_path, lanes=bot.lanes, inbox=True) as sup:
        await (await sup.accept("session:a", "ask")).wait()
    virtual.advance(100)
    async with Supervisor(tmp_path, lanes=bot.lanes, inbox=True) as sup:
        (question,) = await sup.asks()
        await anyio.sleep(250)
        assert bot.log == []
        await anyio.sleep(20)
        assert bot.log == [("expired", None, "", {"n": 1}, None)]
        with pytest.raises(AskClosed, match="is expired") as caught:
            await sup.answer(question.id, "late")
        assert caught.value.state == "expired"


async def test_a_question_that_expires_during_a_restart_has_expired_right_after_it(virtual, tmp_path):
    bot = Bot(expires=20.0)

    async def works(ctx):
        await anyio.sleep(50)

    async with Supervisor(tmp_path, lanes=bot.lanes, inbox=True) as sup:
        await (await sup.accept("session:a", "ask")).wait()
        sup.submit("main", works)
        await sup.restart(drain_timeout=100)
        await anyio.sleep(1)
        assert [one[0] for one in bot.log] == ["expired"]


async def test_a_lane_that_is_not_there_now_keeps_the_handler_that_its_open_question_needs(virtual, tmp_path):
    bot = Bot()
    async with Supervisor(tmp_path, lanes=bot.lanes, inbox=True) as sup:
        question = (await (await sup.accept("session:a", "ask")).wait()).value
        for pattern in ("session:a", "session:a*"):
            complaint = re.escape(f"lane {pattern!r}, handler: is missing, and accepted messages need it")
            with pytest.raises(InvalidLane, match=complaint):
                sup.configure(lanes=[LaneSpec(pattern)])
        sup.configure(lanes=[LaneSpec("elsewhere"), LaneSpec("session:a", handler=bot.handle)])
        await (await sup.answer(question.id, "yes")).wait()
    assert [one[:2] for one in bot.log] == [("answered", "yes")]


async def test_a_second_answer_and_one_to_nothing_are_refused(virtual, tmp_path):
    bot = Bot(options=["yes"])
    async with Supervisor(tmp_path, lanes=bot.lanes, inbox=True) as sup:
        question = (await (await sup.accept("session:a", "ask")).wait()).value
        with pytest.raises(InvalidLane, match="'no' is no answer to question"):
            await sup.answer(question.id, "no")
        await sup.answer(question.id, "yes")
        with pytest.raises(AskClosed, match="is answered"):
            await sup.answer(question.id, "yes")
        with pytest.raises(AskClosed, match="was never asked"):
            await sup.answer("nothing", "yes")
        await anyio.sleep(1)
    assert [one[:2] for one in bot.log] == [("answered", "yes")]


async def test_asking_again_under_a_key_is_the_same_question(virtual, tmp_path):
    bot = Bot(key="k")
    async with Supervisor(tmp_path, lanes=bot.lanes, inbox=True) as sup:
        asked = {(await (await sup.accept("session:a", "ask")).wait()).value.id for _ in range(2)}
        other = (await (await sup.accept("session:b", "ask")).wait()).value.id
        assert (len(asked), other in asked) == (1, False)
        (only,) = asked
        await sup.answer(only, "x")
        await anyio.sleep(1)
        assert (await (await sup.accept("session:a", "ask")).wait()).value.id not in asked
        assert [one[:2] for one in bot.log] == [("answered", "x")]


async def test_an_answer_given_by_another_process_is_taken_up(virtual, tmp_path, monkeypatch):
    monkeypatch.setattr("runtime.inbox.service._LOOK_S", 0.5)
    bot = Bot()
    async with Supervisor(tmp_path, lanes=bot.lanes, inbox=True) as sup:
        question = (await (await sup.accept("session:a", "ask")).wait()).value
        with by_hand.opened(str(tmp_path), changing=True) as connection:
            by_hand.answer(connection, question.id, 7, "bob")
        await anyio.sleep(2)
        assert [one[:3] for one in bot.log] == [("answered", 7, "bob")]


async def test_an_answer_to_a_full_lane_waits_for_room(virtual, tmp_path):
    log: list[Any] = []

    async def handle(ctx: Any, messages: Any) -> None:
        if messages[0].body == "ask":
            raise await ctx.ask("Well?")
        log.append(messages[0].body)
        await anyio.sleep(5)

    async with Supervisor(tmp_path, lanes=[LaneSpec("main", handler=handle, queue_limit=1)], inbox=True) as sup:
        question = (await (await sup.accept("main", "ask")).wait()).value
        for n in range(2):
            await sup.accept("main", n)
        answered = await sup.answer(question.id, "x")
        assert (await answered.wait()).state is RunState.DONE
        assert "x" in log


@pytest.mark.parametrize("lane", ["session:a", "plain"])
async def test_answers_go_in_the_order_in_which_they_were_given_and_before_other_work(virtual, tmp_path, lane):
    bot = Bot()
    specs = [*bot.lanes, LaneSpec("plain", handler=bot.handle, capacity=1)]
    async with Supervisor(tmp_path, lanes=specs, inbox=True) as sup:
        for _ in range(3):
            await (await sup.accept(lane, "ask")).wait()
        questions = await sup.asks()
        for n in range(2):
            await sup.accept(lane, n)
        for one, who in zip(questions, ("ann", "bob", "cy"), strict=True):
            await sup.answer(one.id, "yes", by=who)
        await anyio.sleep(5)
    assert [one if isinstance(one, int) else one[2] for one in bot.log] == [0, "ann", "bob", "cy", 1]


@pytest.mark.parametrize("lane", ["session:a", "plain"])
async def test_an_answer_goes_before_messages_that_a_body_has_left_unread(virtual, tmp_path, lane):
    bot = Bot()
    specs = [LaneSpec(name, handler=bot.handle, capacity=1, when_busy="steer") for name in ("session:*", "plain")]
    async with Supervisor(tmp_path, lanes=specs, inbox=True) as sup:
        await (await sup.accept(lane, "ask")).wait()
        (question,) = await sup.asks()
        for n in range(3):
            await sup.accept(lane, n)  # the last two are handed to the body of the first, which reads none
        await sup.answer(question.id, "yes", by="ann")
        await anyio.sleep(5)
    assert [one if isinstance(one, int) else one[2] for one in bot.log] == [0, "ann", 1, 2]


async def test_an_answer_shares_its_run_with_no_other_message(virtual, tmp_path):
    given: list[Any] = []

    async def handle(ctx, messages):
        if messages[0].body == "ask":
            raise await ctx.ask("Well?")
        given.append([one.body for one in messages])
        await anyio.sleep(1)

    specs = [LaneSpec("session:*", handler=handle, when_busy="collect", debounce=0.1)]
    async with Supervisor(tmp_path, lanes=specs, inbox=True) as sup:
        await (await sup.accept("session:a", "ask")).wait()
        (question,) = await sup.asks()
        await sup.accept("session:a", 1)
        await anyio.sleep(0.5)
        await sup.answer(question.id, "yes")
        for n in (2, 3):
            await sup.accept("session:a", n)
        await anyio.sleep(10)
    assert given == [[1], ["yes"], [2, 3]]


@pytest.mark.parametrize(
    "bad, field",
    [
        ({"options": []}, "options"),
        ({"options": "yes"}, "options"),
        ({"expires": -1}, "expires"),
        ({"expires": float("nan")}, "expires"),
        ({"key": ""}, "dedupe"),
        ({"options": [object()]}, "options"),
    ],
)
@pytest.mark.backends("asyncio")
async def test_a_question_that_cannot_be_asked_names_the_field(virtual, tmp_path, bad, field):
    bot = Bot(**bad)
    async with Supervisor(tmp_path, lanes=bot.lanes, inbox=True) as sup:
        outcome = await (await sup.accept("session:a", "ask")).wait()
        assert isinstance(outcome.error, InvalidLane)
        assert str(outcome.error).startswith(field)


# Schedules


def scheduled(*schedules: Schedule) -> Inbox:
    return Inbox(schedules=schedules)


async def test_a_message_comes_once_at_each_instant_also_over_restarts(virtual, tmp_path):
    bot = Bot()
    inbox = scheduled(Schedule("session:a", "tick", every=60.0, missed="all"))
    for seconds in (90, 90, 200):
        async with Supervisor(tmp_path, lanes=bot.lanes, inbox=inbox):
            await anyio.sleep(seconds)
        virtual.advance(30)
    begun, ended = 1_800_001_000.0, 1_800_000_000.0 + virtual.now() - 30
    assert len(bot.log) == int(ended // 60) - int(begun // 60)


@pytest.mark.parametrize("missed, count", [("skip", 0), ("once", 1), ("all", 10)])
async def test_what_was_missed_is_skipped_sent_once_or_sent(virtual, tmp_path, missed, count):
    bot = Bot()
    inbox = scheduled(Schedule("session:a", "tick", every=timedelta(minutes=1), missed=missed))
    async with Supervisor(tmp_path, lanes=bot.lanes, inbox=inbox):
        await anyio.sleep(1)
    virtual.advance(600)
    async with Supervisor(tmp_path, lanes=bot.lanes, inbox=inbox):
        await anyio.sleep(10)
    assert len(bot.log) == count


async def test_an_instant_that_is_yet_to_come_by_its_jitter_is_not_missed(virtual, tmp_path):
    bot = Bot()
    schedule = Schedule("session:a", "tick", every=100.0, jitter=50.0)
    instant = next(schedule.after(process.wall()))
    comes = schedule.fires_at(instant)
    async with Supervisor(tmp_path, lanes=bot.lanes, inbox=scheduled(schedule)):
        await anyio.sleep((instant + comes) / 2 - process.wall())
    async with Supervisor(tmp_path, lanes=bot.lanes, inbox=scheduled(schedule)):
        await anyio.sleep(comes - process.wall() + 1)
    assert bot.log == ["tick"]


async def test_an_instant_that_comes_during_a_restart_is_sent_after_it(virtual, tmp_path):
    bot = Bot()

    async def works(ctx):
        await anyio.sleep(50)

    async with Supervisor(tmp_path, lanes=bot.lanes, inbox=scheduled(Schedule("session:a", "tick", every=40.0))) as sup:
        sup.submit("main", works)
        await sup.restart(drain_timeout=100)
        assert bot.log == []
        await anyio.sleep(5)
        assert bot.log == ["tick"]


async def test_no_instant_of_all_is_left_out_where_the_lane_is_full(virtual, tmp_path):
    given: list[int] = []

    async def slow(ctx, messages):
        given.append(messages[0].id)
        await anyio.sleep(40 if len(given) == 1 else 1)

    specs = [LaneSpec("session:*", handler=slow, queue_limit=1)]
    schedule = Schedule("session:a", "tick", every=10.0, missed="all")
    async with Supervisor(tmp_path, lanes=specs, inbox=scheduled(schedule)):
        await anyio.sleep(85)
    assert (len(given), given) == (8, sorted(given))
    assert set(rows(tmp_path, "state")) == {("done",)}  # none was written down to be dropped


@pytest.mark.parametrize("day, hour", [(28, 8), (29, 7)])  # summer time has begun on the 29th
async def test_a_line_of_cron_fires_in_its_time_zone(virtual, tmp_path, monkeypatch, day, hour):
    start = datetime(2026, 3, day, hour - 1, 59, tzinfo=UTC).timestamp() - virtual.now()
    monkeypatch.setattr(process, "wall", lambda: start + virtual.now())
    bot = Bot()
    schedule = Schedule("session:a", "morning", cron="0 9 * * *", timezone="Europe/Berlin")
    async with Supervisor(tmp_path, lanes=bot.lanes, inbox=scheduled(schedule)):
        await anyio.sleep(90)
    accepted = [datetime.fromtimestamp(at, UTC) for (at,) in rows(tmp_path, "accepted_at")]
    assert [(at.day, at.hour, at.minute) for at in accepted] == [(day, hour, 0)]


@pytest.mark.parametrize(
    "bad, says",
    [
        ({}, "neither given"),
        ({"every": 1.0, "cron": "* * * * *"}, "both given"),
        ({"every": 0.0}, "every"),
        ({"cron": "never"}, "is no line of cron"),
        ({"cron": "0 0 31 2 *"}, "cron"),
        ({"cron": "* * * * *", "timezone": "Nowhere/Else"}, "timezone"),
        ({"every": 1.0, "missed": "some"}, "missed"),
        ({"every": 1.0, "jitter": -1.0}, "jitter"),
    ],
)
def test_a_schedule_that_cannot_be_names_the_field(bad, says):
    with pytest.raises(InvalidLane, match=says):
        Schedule("session:a", "x", **bad)


def test_two_schedules_of_one_name_are_refused(tmp_path):
    bot = Bot()
    with pytest.raises(InvalidLane, match="is given twice"):
        Supervisor(tmp_path, lanes=bot.lanes, inbox=scheduled(*[Schedule("session:a", 1, every=1.0)] * 2))


def test_the_jitter_of_an_instant_is_the_same_in_each_process():
    schedule = Schedule("session:a", 1, every=60.0, jitter=10.0)
    delays = [schedule.fires_at(instant) - instant for instant in (60.0, 120.0, 180.0)]
    assert delays == [Schedule("session:a", 1, every=60.0, jitter=10.0).fires_at(i) - i for i in (60.0, 120.0, 180.0)]
    assert len(set(delays)) == 3
    assert all(0 <= delay < 10 for delay in delays)
