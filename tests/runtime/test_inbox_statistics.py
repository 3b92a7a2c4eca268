"""What an operator sees of an inbox: `statistics()`, status socket, metrics, `lanes status` and a trace agree."""

from __future__ import annotations

import json
import sqlite3
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from lanes import LaneSpec
from locks import process
from runtime import InboxDown, Supervisor
from runtime.cli import status
from runtime.export.trace import Trace
from runtime.inbox import replay, service
from runtime.metrics import SupervisorCollector
from runtime.status import protocol
from runtime.status.handlers import Handlers
from runtime.testing.inline import inline
from tests.inboxes import copy_of, service_of

SECOND = 1.1
"""More than it takes until a change is counted."""


@pytest.fixture(autouse=True)
def writer(virtual, monkeypatch):
    """No thread; and the wall clock goes with the virtual one."""
    monkeypatch.setattr(process, "wall", lambda: 1_800_000_000.0 + virtual.now())
    with inline() as writer:
        yield writer


async def handle(ctx, messages):
    if messages[0].body == "ask":
        raise await ctx.ask("Well?")
    if messages[0].answer is None:
        await anyio.sleep(messages[0].body)


LANES = [LaneSpec("session:*", handler=handle, timeout=1000.0)]


def scraped(sup):
    registry = CollectorRegistry(auto_describe=False)
    registry.register(SupervisorCollector(sup))
    return {
        (sample.name.removeprefix("lanes_inbox_"), *sample.labels.values()): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name.startswith("lanes_inbox_")
    }


def looked_at(sup):
    """The inbox as the status socket has it, and the line of it that `lanes status` prints."""
    picture = Handlers(sup).answer(protocol.Status(), "a test").status
    assert picture is not None
    return picture, next((line for line in status.lines(picture) if line.startswith("inbox")), None)


async def test_each_view_counts_the_messages_by_state_and_the_questions(virtual, tmp_path):
    async with Supervisor(tmp_path, lanes=LANES, inbox=True) as sup:
        await (await sup.accept("session:a", "ask")).wait()
        await sup.accept("session:b", 100.0)
        for _ in range(3):
            await sup.accept("session:b", 0.0)
            await anyio.sleep(SECOND)
        now, found = sup.statistics().inbox, scraped(sup)
        assert now is not None
        assert now.messages == {"accepted": 3, "started": 1, "waiting": 1, "parked": 0, "unknown": 0}
        assert (now.questions, now.in_memory, now.on_disk_only, now.error) == (1, 4, 0, "")
        assert now.oldest_wait_s == pytest.approx(3 * SECOND)
        assert now.counted_s_ago < SECOND
        assert (now.changes, now.uncommitted, now.changes_per_commit) == (7, 0, 1.0)  # accepted 5 times, asked, waiting
        assert {state: found["messages", state] for state in now.messages} == now.messages
        for name in ("questions", "in_memory", "on_disk_only", "commits_total", "changes_total", "replayed_total"):
            assert found[(name,)] == getattr(now, name.removesuffix("_total"))
        assert (found[("oldest_wait_seconds",)], found[("down",)]) == (now.oldest_wait_s, 0)
        picture, line = looked_at(sup)
        assert picture.inbox is not None
        assert (picture.inbox.messages, picture.inbox.questions) == (now.messages, 1)
        assert line == (
            "inbox: 3 accepted, 1 started, 1 waiting; the oldest was accepted 3.3 s ago; questions to a person: 1"
        )
        sup.cancel()
    after = sup.statistics().inbox
    assert after is not None
    assert after.changes > now.changes  # also when it is closed: a counter never falls


async def test_a_supervisor_without_an_inbox_has_none_in_any_view(virtual, tmp_path):
    async with Supervisor(tmp_path, lanes=LANES) as sup:
        assert (sup.statistics().inbox, scraped(sup), looked_at(sup)[1]) == (None, {}, None)
    assert protocol.encoded(protocol.Answer(status=looked_at(sup)[0])).count(b'"inbox":null') == 1


async def test_what_an_earlier_process_has_left_is_seen_at_once_and_as_not_in_memory(virtual, tmp_path, monkeypatch):
    monkeypatch.setattr(replay, "PAGE", 2)
    async with Supervisor(tmp_path / "first", lanes=LANES, inbox=True) as sup:
        for n in range(8):
            await sup.accept("session:a", 100.0 * (n < 2))
        await anyio.sleep(SECOND)
        copy_of(tmp_path / "first", tmp_path / "second")
        sup.cancel()
    async with Supervisor(tmp_path / "second", lanes=LANES, inbox=True) as sup:
        now = sup.statistics().inbox
        assert now is not None
        assert (now.messages["accepted"], now.messages["unknown"], now.on_disk_only) == (7, 1, 7)
        await anyio.sleep(3 * SECOND)
        now = sup.statistics().inbox
        assert now is not None
        assert (now.on_disk_only, now.in_memory, now.replayed) == (5, 2, 2)
        assert now.oldest_wait_s > 3 * SECOND  # since it was accepted, not since it came back
        assert "5 on disk only" in str(looked_at(sup)[1])
        sup.cancel()


async def test_it_is_counted_when_something_has_changed_and_the_less_often_the_longer_it_takes(
    virtual, tmp_path, monkeypatch
):
    counted: list[float] = []
    later: list[Any] = []

    async def reports():
        while True:
            await anyio.sleep(0.1)
            while later and later[0][0] <= virtual.now():
                later.pop(0)[1]()

    async with anyio.create_task_group() as group, Supervisor(tmp_path, lanes=LANES, inbox=True) as sup:
        group.start_soon(reports)
        store = service_of(sup).store
        census = store.census

        def slow(report):
            counted.append(virtual.now())
            census(lambda found, error: later.append((virtual.now() + 1.0, lambda: report(found, error))))

        monkeypatch.setattr(store, "census", slow)
        await anyio.sleep(60.0)
        idle = len(counted)
        for _ in range(60):
            await (await sup.accept("session:a", 0.0)).wait()
            await anyio.sleep(1.0)
        group.cancel_scope.cancel()
    assert idle <= 1
    assert 2 <= len(counted) - idle <= 5
    assert service._COUNT_PAUSE >= 20


@pytest.mark.failure("G10")
async def test_an_inbox_that_is_down_makes_the_process_unhealthy_and_says_why(virtual, tmp_path, writer):
    async with Supervisor(tmp_path, lanes=LANES, inbox=True) as sup:
        assert sup.statistics().healthy

        def fails(_writer):
            raise sqlite3.OperationalError("database or disk is full")

        writer.before = staticmethod(fails)
        with pytest.raises(InboxDown):
            await sup.accept("session:a", 0.0)
        now = sup.statistics()
        assert now.inbox is not None
        assert "disk is full" in now.inbox.error
        assert (now.healthy, len(now.problems), scraped(sup)[("down",)]) == (False, 1, 1)
        picture, _ = looked_at(sup)
        assert any(one.startswith("PROBLEM: the inbox takes nothing: ") for one in status.lines(picture))


async def test_a_trace_follows_a_message_from_its_wait_to_its_question_and_to_the_answer(virtual, tmp_path):
    path = tmp_path / "trace.json"
    with Trace(path) as trace:
        async with Supervisor(tmp_path, lanes=LANES, inbox=True, **trace.hooks()) as sup:
            first = await sup.accept("session:a", 1.0)
            asking = await sup.accept("session:a", "ask")
            await asking.wait()
            (question,) = await sup.asks()
            answer = await sup.answer(question.id, "yes")
            await answer.wait()
    events = json.loads(path.read_text())
    given = [(e["name"], e["args"].get("messages"), e["args"].get("answers")) for e in events if e["ph"] == "B"]
    asked = str(asking.id)
    assert given == [
        ("run 1", str(first.id), None),
        ("run 2 waits", asked, None),
        ("run 2", asked, None),
        ("run 3", str(answer.id), question.id),
    ]
    marks = [e["args"] for e in events if e["ph"] == "i" and e["name"] == "waits for a person"]
    assert marks == [{"ask": question.id}]


async def test_a_stop_names_what_is_lost_and_counts_what_the_inbox_keeps(virtual, tmp_path):
    with capture_logs() as logs:
        async with Supervisor(tmp_path, lanes=LANES, inbox=True, drain_timeout=1.0) as sup:
            await (await sup.accept("session:q", "ask")).wait()
            await sup.accept("session:a", 100.0)
            for _ in range(3):
                await sup.accept("session:a", 0.0)
            lost = sup.post("session:a", 0.0)
    assert [one["run"] for one in logs if one["event"] == "run_not_started"] == [lost.id]
    (kept,) = [one for one in logs if one["event"] == "inbox_keeps"]
    assert (kept["waiting"], kept["started"], kept["questions"]) == (3, 1, 1)


async def test_an_inbox_is_served_after_a_restart_also_where_the_start_was_drained(virtual, tmp_path):
    async with Supervisor(tmp_path / "first", lanes=LANES, inbox=True) as sup:
        for n in (100.0, 0.0):
            await sup.accept("session:a", n)
        copy_of(tmp_path / "first", tmp_path / "second")
        sup.cancel()

    @asynccontextmanager
    async def drains():
        if sup.generation == 0:
            await sup.drain(0.0)
        yield

    sup = Supervisor(tmp_path / "second", lanes=LANES, inbox=True, services={"drains": drains})
    async with sup:
        assert sup.state == "draining"
        await sup.restart()
        await anyio.sleep(SECOND)
        now = sup.statistics().inbox
        assert now is not None
        assert (now.messages["accepted"], now.replayed) == (0, 1)
