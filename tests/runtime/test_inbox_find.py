"""What is known of an accepted message later: in this process, after a restart within it, in the next process."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from lanes import LaneSpec, Question, RunCancelled, RunState, RunSuperseded
from runtime import MessageState, OutcomeUnknown, Supervisor
from runtime.testing.inline import inline


@pytest.fixture(autouse=True)
def writer(virtual, monkeypatch):
    for look in ("service", "asks", "schedules"):
        monkeypatch.setattr(f"runtime.inbox.{look}._LOOK_S", 600.0)
    with inline() as writer:
        yield writer


class Bodies:
    def __init__(self, **options: Any) -> None:
        self.lanes = [LaneSpec("session:*", handler=self.handle, grace=0.1, **options)]
        self.hang = True

    async def handle(self, ctx: Any, messages: Any) -> Any:
        body = messages[0].body
        if messages[0].answer is not None:
            return f"{body}, then"
        if body == "ask":
            raise await ctx.ask("Well?")
        if isinstance(body, str) and body.startswith("finish"):
            await ctx.finish({"said": 1}, {"answer": 42})
            if body == "finish, then raise":
                raise ValueError("afterwards")
            if body == "finish, then hang":
                await anyio.sleep_forever()
        if body == "hang" and self.hang:
            await anyio.sleep_forever()
        return body


async def found(sup: Supervisor, message: int) -> Any:
    one = await sup.find_message(message)
    assert one is not None
    return one


async def test_what_a_restart_has_cut_off_is_found_as_what_became_of_it_by_those_who_had_waited_too(tmp_path):
    bodies = Bodies(repeat=True)
    async with Supervisor(tmp_path, lanes=bodies.lanes, inbox=True) as sup:
        first = await sup.accept("session:a", "hang", dedupe="k")
        await anyio.sleep(1)
        bodies.hang = False
        await sup.restart(drain_timeout=0.0)
        assert (await first.wait()).state is RunState.CANCELLED and first.state is MessageState.ACCEPTED
        for again in (await sup.accept("session:a", "hang", dedupe="k"), await found(sup, first.id)):
            outcome = await again.wait(60.0)
            assert (outcome.state, outcome.value, again.state) == (RunState.DONE, "hang", MessageState.DONE)


async def test_a_message_that_a_restart_leaves_unknown_keeps_none_waiting(tmp_path):
    async with Supervisor(tmp_path, lanes=Bodies().lanes, inbox=True) as sup:
        first = await sup.accept("session:a", "hang")
        told = []

        async def look_at_once() -> None:
            await first.wait()
            told.append(await (await found(sup, first.id)).wait(60.0))

        async with anyio.create_task_group() as group:
            group.start_soon(look_at_once)
            await anyio.sleep(1)
            await sup.restart(drain_timeout=0.0)
        assert isinstance(told[0].error, OutcomeUnknown)
        assert (await found(sup, first.id)).state is MessageState.UNKNOWN


async def test_a_message_that_waits_for_a_person_has_the_question_for_its_value_in_the_next_process_too(tmp_path):
    lanes = Bodies().lanes
    async with Supervisor(tmp_path, lanes=lanes, inbox=True) as sup:
        asked = await sup.accept("session:a", "ask", dedupe="k")
        question = (await asked.wait()).value
        assert (await found(sup, asked.id)).state is MessageState.WAITING
    async with Supervisor(tmp_path, lanes=lanes, inbox=True) as sup:
        again = await sup.accept("session:a", "ask", dedupe="k")
        outcome = await again.wait()
        assert (again.id, again.state, outcome.state) == (asked.id, MessageState.WAITING, RunState.DONE)
        assert outcome.value == question and isinstance(question, Question)
        answered = await sup.answer(question.id, "yes")
        assert (await answered.wait()).value == "yes, then"
        later = await found(sup, asked.id)
        assert later.state is MessageState.DONE and later.outcome.value.state == "answered"
        assert later.outcome.reason == f"answered by message {answered.id}"


async def test_how_a_message_has_ended_is_the_same_in_the_next_process(tmp_path):
    async with Supervisor(tmp_path, lanes=Bodies().lanes, inbox=True) as sup:
        sent = []
        for body in ("hang", "hello", "finish", "hang"):
            sent.append(await sup.accept("session:a", body, when_busy="interrupt"))
            await anyio.sleep(1)
        sup.cancel(reason="stopped")
        here = [await one.wait() for one in sent]
    async with Supervisor(tmp_path, lanes=Bodies().lanes, inbox=True) as sup:
        there = [(await found(sup, one.id)).outcome for one in sent]
        assert await sup.find_message(sent[3].id + 1) is None and await sup.find_message(10**30) is None
    assert [one.state for one in there] == [one.state for one in here]
    kinds = [RunSuperseded, type(None), type(None), RunCancelled]
    assert [type(one.error) for one in there] == kinds == [type(one.error) for one in here]
    assert [one.value for one in there] == [None, "hello", {"answer": 42}, None]
    assert there[3].reason == "stopped"


async def test_a_finished_message_is_done_however_its_run_ends_and_that_costs_no_commit_more(writer, tmp_path):
    async with Supervisor(tmp_path, lanes=Bodies().lanes, inbox=True) as sup:
        await anyio.sleep(1)
        batches: list[Any] = []
        writer.before = batches.append
        one = await sup.accept("session:a", "finish")
        await one.wait()
        assert len(batches) == 2, "more than being accepted and being finished"
        del writer.before
        raised = await sup.accept("session:a", "finish, then raise")
        await raised.wait()
        cut = await sup.accept("session:a", "finish, then hang")
        await anyio.sleep(1)
        await sup.restart(drain_timeout=0.0)
        for one in (raised, cut):
            there = await found(sup, one.id)
            assert (await one.wait(60.0)).state in (RunState.FAILED, RunState.CANCELLED)  # that is how its run ended
            outcome = await there.wait(60.0)
            assert (outcome.state, outcome.value, outcome.error) == (RunState.DONE, {"answer": 42}, None)
            assert one.state is there.state is MessageState.DONE
