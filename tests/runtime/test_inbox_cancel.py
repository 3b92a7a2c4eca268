"""Cancelling and resetting reach what is on disk only, and questions that wait, as they reach runs."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from lanes import LaneSpec, RunCancelled
from runtime import AskClosed, MessageState, Supervisor
from runtime.testing.inline import inline
from tests.inboxes import rows


@pytest.fixture(autouse=True)
def writer(virtual, monkeypatch):
    for look in ("service", "asks", "schedules"):
        monkeypatch.setattr(f"runtime.inbox.{look}._LOOK_S", 600.0)
    with inline() as writer:
        yield writer


class Bodies:
    def __init__(self) -> None:
        self.begun: list[Any] = []

    def lanes(self, **options: Any) -> list[LaneSpec]:
        return [LaneSpec("session:*", handler=self.handle, grace=0.1, **options)]

    async def handle(self, ctx: Any, messages: Any) -> Any:
        self.begun.append(messages[0].body)
        if messages[0].body == "ask":
            raise await ctx.ask("Well?")
        if isinstance(messages[0].body, int):
            await anyio.sleep_forever()
        return messages[0].body


async def left_behind(root: Any) -> Bodies:
    """A process that stops while 5 messages of each of two sessions wait."""
    bodies = Bodies()
    async with Supervisor(root, lanes=bodies.lanes(), inbox=True, drain_timeout=0.0) as sup:
        for n in range(5):
            await sup.accept("session:a", n)
            await sup.accept("session:b", n)
    bodies.begun.clear()
    return bodies


@pytest.mark.failure("G16")
@pytest.mark.parametrize("how", ["cancel", "reset"])
async def test_what_waits_on_disk_only_ends_with_the_runs_of_its_session(tmp_path, how):
    bodies = await left_behind(tmp_path)
    async with Supervisor(tmp_path, lanes=bodies.lanes(queue_limit=1), inbox=True, drain_timeout=0.0) as sup:
        await anyio.sleep(5)
        last = await sup.find_message(9)
        assert last is not None and (last.state, last.run) == (MessageState.ACCEPTED, None)
        if how == "cancel":
            assert sup.cancel(session="a", reason="stopped") == 2
        else:
            await sup.reset("a")
        outcome = await last.wait(60.0)
        assert isinstance(outcome.error, RunCancelled) and last.state is MessageState.CANCELLED
        assert (await (await sup.accept("session:a", "hello")).wait(60.0)).value == "hello"
        await anyio.sleep(5)
        assert [body for body in bodies.begun if body != "hello"] == [1, 1]
        assert rows(tmp_path, "state", "session = 'a'") == [("unknown",), *[("cancelled",)] * 4, ("done",)]
        assert rows(tmp_path, "state", "session = 'b'")[2:] == [("accepted",)] * 3


async def test_cancelling_the_running_ones_leaves_what_waits_on_disk(tmp_path):
    bodies = await left_behind(tmp_path)
    async with Supervisor(tmp_path, lanes=bodies.lanes(queue_limit=1), inbox=True, drain_timeout=0.0) as sup:
        await anyio.sleep(5)
        assert sup.cancel(session="a", queued=False) == 1
        await anyio.sleep(5)
        assert rows(tmp_path, "state", "session = 'a'")[1:] == [("cancelled",), ("started",), *[("accepted",)] * 2]


@pytest.mark.failure("G16")
async def test_a_reset_withdraws_the_questions_of_its_session(tmp_path):
    bodies = Bodies()
    async with Supervisor(tmp_path, lanes=bodies.lanes(), inbox=True) as sup:
        asked = [await sup.accept(lane, "ask") for lane in ("session:a", "session:b")]
        question, other = [(await one.wait()).value for one in asked]
        await sup.reset("a")
        await anyio.sleep(1)
        assert [one.id for one in await sup.asks()] == [other.id]
        with pytest.raises(AskClosed, match="is withdrawn") as caught:
            await sup.answer(question.id, "yes")
        assert caught.value.state == "withdrawn"
        assert rows(tmp_path, "state, reason") == [
            ("cancelled", "ended by a reset of its session"),
            ("waiting", f"asked a person: {other.id}"),
        ]
