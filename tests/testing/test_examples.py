"""The handlers of the examples: cancelled and killed at each of their suspensions, and what comes after a day."""

from __future__ import annotations

from contextlib import nullcontext

import anyio
import pytest

from examples import embedded
from examples.agent import Agent, Model
from examples.bot import Bot
from examples.cron_worker import LANES, SCHEDULES
from lanes import LaneSpec, RunState, testing
from lanes.testing import Played, assert_transcript, cancel_everywhere, crash_everywhere
from runtime import Inbox

AGENT = Agent(compact_above=3)
MODEL = {"model": Model(delay=0.1, tokens=2)}
TALK = [{"role": role, "content": str(n)} for n in range(2) for role in ("user", "assistant")]


def no_question_is_left_open(played: Played) -> None:
    roles = [record["role"] for record in played.records]
    assert roles[-1:] != ["user"], f"a question without an answer: {roles}"


# Each sweep on one loop: the examples run on both in tests of their own.


@pytest.mark.virtual_time_loops("asyncio")
@pytest.mark.parametrize(
    "asked, before, least", [("hello", [], 3), ("hello", TALK, 8), ("/delete a", [], 2)], ids=["", "compacted", "asked"]
)
async def test_the_agent_leaves_no_question_open_wherever_it_is_cancelled(virtual_time, asked, before, least):
    check = no_question_is_left_open
    count = await cancel_everywhere(AGENT, asked, check=check, records=before, services=MODEL)
    assert count >= least


@pytest.mark.virtual_time_loops("trio")
@pytest.mark.parametrize("asked", [["hello"], ["one", "two"], ["/delete a"]], ids=["one", "two", "asked"])
async def test_the_agent_answers_or_says_that_it_was_interrupted_wherever_it_is_killed(virtual_time, asked):
    def check(played: Played) -> None:
        no_question_is_left_open(played)
        assert {m for record in played.records for m in record.get("answers", ())} == set(range(1, len(asked) + 1))

    assert await crash_everywhere(AGENT, *asked, check=check, services=MODEL, on_unknown=AGENT.interrupted) > 2


async def test_a_question_of_the_agent_expires_after_a_day(virtual_time):
    lane = LaneSpec("session:*", handler=AGENT)
    async with testing.supervisor([lane], services={"model": lambda: nullcontext(MODEL["model"])}, inbox=True) as sup:
        await (await sup.accept("session:ann", "/delete a")).wait()
        await sup.advance(86_400)
        assert_transcript(
            await sup.transcript("ann"),
            [
                {"role": "user", "content": "/delete a"},
                {"role": "assistant", "content": "Delete a?"},
                {"role": "decision", "outcome": "expired"},
                {"role": "assistant", "content": "No one has answered, so I keep a. "},
            ],
        )


@pytest.mark.virtual_time_loops("trio")
async def test_the_embedded_handler_leaves_no_question_open_wherever_it_is_cancelled(virtual_time):
    assert await cancel_everywhere(embedded.handle, "hello you", check=no_question_is_left_open) > 2


async def test_the_embedded_handler_keeps_what_it_has_said_when_time_is_up(virtual_time):
    done = await testing.run_handler(embedded.handle, "one two three", timeout=0.12)
    assert done.outcome.state is RunState.TIMED_OUT
    assert_transcript(
        done.records,
        [{"role": "user"}, {"role": "assistant", "content": "one two ", "stopped": "timed out after 0.12 s"}],
    )


class Chat:
    """Stands for the chat service's client."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    async def post(self, path, json):
        await anyio.sleep(0.2)
        self.sent.append(json["text"])
        return self

    def raise_for_status(self) -> None:
        pass


@pytest.mark.virtual_time_loops("asyncio")
async def test_the_bot_answers_or_says_that_it_was_interrupted_wherever_it_is_killed(virtual_time):
    chats: list[Chat] = []

    def services():
        chats.append(Chat())
        return {"http": chats[-1]}

    def check(played: Played) -> None:
        assert played.records[-1]["role"] == "assistant", played.records

    bot = Bot("http://nowhere")
    count = await crash_everywhere(bot.handle, "hi", check=check, services=services, on_unknown=bot.interrupted)
    assert len(chats) == 1 + count + 2  # the process that is killed, and the next ones
    assert await cancel_everywhere(bot.handle, "/delete a", services=services) > 2


async def test_the_report_of_the_worker_is_written_on_working_days_at_nine(virtual_time):
    sup_of = testing.supervisor(LANES[:1], inbox=Inbox(schedules=SCHEDULES[:1]))
    async with sup_of as sup:  # it is Friday, 15 January 2027, 9:00 in Berlin
        await sup.advance(3 * 86_400 - 1)
        assert sup.recorder.outcomes() == []
        await sup.advance(4 * 86_400 + 1)
        starts = [one.at for one in sup.recorder.entries if one.what == "starts"]
        assert starts == pytest.approx([day * 86_400 for day in (3, 4, 5, 6, 7)], abs=1)
