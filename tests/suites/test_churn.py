"""Suite M1: a day of conversations on fifty lanes leaves nothing behind, not even a kilobyte.

Each conversation is a session of its own, on a lane of its own that is made for it and retired. One ends well, the next
one fails, is cancelled while it waits, superseded, or passes its deadline. Memory is what `tracemalloc` counts when
nothing runs, once an hour. How large a table is depends on how full it once was, so it is the lowest hours of the first
half and of the second that are compared: what leaks is in both.

The scheduler is driven directly: a supervisor's lag meter would wake four million times a day, for nothing that is
asked here. `LANES_LONG=1` plays seven days, with four times the conversations an hour.
"""

from __future__ import annotations

import gc
import os
import traceback
import tracemalloc
from array import array
from contextlib import aclosing
from typing import Any

import anyio
import pytest
import structlog

from lanes import LaneSpec, Outcome, RunState, SessionLayout
from lanes.core.board import Board
from lanes.core.hooks import Hooks
from lanes.core.scheduler import Scheduler
from lanes.spec_table import SpecTable
from locks import LockRegistry
from runtime.testing.virtual import virtual_time
from tests import blocking, leaks
from tests.schedules import Host, Plain, left_behind

LANES = 50
LONG = bool(os.environ.get("LANES_LONG"))
HOURS = 24 * (7 if LONG else 1)
WARM_UP_HOURS = 8
"""Until the kept outcomes and the interpreter's own caches are full."""
AN_HOUR = 3600.0
PER_HOUR = 4 if LONG else 1
"""Conversations per lane and hour. The five ways to end come in turn over the lanes, so each hour has all of them."""
MOST_BYTES = 1000
"""Growth that is allowed per 10,000 conversations."""
TABLES = 12_288
"""By so much two hours may differ because the loop's own tables (trio's deadlines and tasks) are larger in one of them:
31 bytes per conversation of half a day, less than the smallest object that one could leave behind."""


ENDS = [RunState.DONE, RunState.FAILED, RunState.CANCELLED, RunState.SUPERSEDED, RunState.TIMED_OUT]


class ModelFailed(Exception):
    """What a body raises."""


async def answer(ctx, messages):
    """What is said decides how it ends."""
    ctx.emit("token")
    if messages[0].body is RunState.FAILED:
        raise ModelFailed
    await anyio.sleep(400 if messages[0].body is RunState.TIMED_OUT else 3)
    return "an answer"


class Churn:
    """Fifty lanes of conversations, on one scheduler."""

    def __init__(self, root) -> None:
        self.registry = LockRegistry(engine="none", sidecar=False)
        self.scheduler = Scheduler(
            Board(
                SpecTable([LaneSpec("session:*", handler=answer, queue_limit=None)], ()),
                self.registry,
                SessionLayout(root),
                keep_outcomes=0,
                hooks=Hooks(None, None, None),
            )
        )
        self.host = Host(self.scheduler)
        self.root = root
        self.sessions = 0
        # Made beforehand, lest the measuring is what grows.
        self.memory = array("q", [0] * HOURS)
        """Bytes in use at the end of each hour."""
        self.tasks = array("q", self.memory)
        self.before: leaks.Look | None = None

    async def day(self):
        """All hours, one after the other."""
        async with anyio.create_task_group() as group:
            await group.start(self.scheduler.serve)
            self.scheduler.open()
            for hour in range(HOURS):
                async with anyio.create_task_group() as people:
                    for lane in range(LANES):
                        people.start_soon(self.person, lane)
                self.look(hour)
            self.scheduler.shut()
            group.cancel_scope.cancel()

    async def person(self, lane: int):
        """An hour of one lane: one conversation after the other."""
        for number in range(PER_HOUR):
            await anyio.sleep(lane + 1)
            self.sessions += 1
            end = ENDS[(lane + number) % len(ENDS)]
            assert await self.conversation(f"session:lane {lane}, conversation {self.sessions}", end) is end
        await anyio.sleep(AN_HOUR)

    async def conversation(self, lane: str, end: RunState) -> RunState:
        """Say something and see how it ends."""
        first = self.host.post(lane, end, timeout=300)
        reading: Any = first.events()
        async with aclosing(reading) as events:
            await anext(events)
        outcomes: list[Outcome] = []
        if end is RunState.SUPERSEDED:
            outcomes.append(await self.host.post(lane, "never mind", when_busy="interrupt").wait())
        if end is RunState.CANCELLED:
            waits = self.host.post(lane, "and another thing")
            assert waits.cancel()
            outcomes.append(await waits.wait())
            first.cancel()
        return (await first.wait()).state

    def look(self, hour: int) -> None:
        """At the end of an hour nothing is left; what memory is in use now?"""
        with blocking.permitted("nothing runs"):
            for entry in os.scandir(self.root):
                os.unlink(entry)
        assert left_behind(self.scheduler) == []
        gc.collect()
        if self.before is None:
            self.before = leaks.Look()
        if hour == HOURS - 1:
            assert leaks.complaints(self.before) == []
        if hour >= WARM_UP_HOURS:
            self.memory[hour] = tracemalloc.get_traced_memory()[0]
        self.tasks[hour] = len(anyio.get_running_tasks())


@pytest.mark.suite("M1")
@pytest.mark.failure("E10")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_day_of_conversations_leaves_no_lane_no_task_no_descriptor_and_no_memory(backend, tmp_path, monkeypatch):
    # CPython itself keeps some three bytes each time that it formats a traceback.
    monkeypatch.setattr(traceback, "format_exception", Plain.format_exception)
    quiet = [lambda *_: (_ for _ in ()).throw(structlog.DropEvent)]
    with virtual_time() as clock:
        churn = Churn(tmp_path)
        processors = structlog.get_config()["processors"]
        structlog.configure(processors=quiet)
        tracemalloc.start()
        try:
            clock.run(backend, churn.day)
        finally:
            tracemalloc.stop()
            structlog.configure(processors=processors)
    assert len(set(churn.tasks)) == 1
    later = churn.memory[WARM_UP_HOURS:]
    half = len(later) // 2
    growth = min(later[half:]) - min(later[:half])
    conversations = half * LANES * PER_HOUR
    print(f"{churn.sessions} conversations; {growth} bytes more after {conversations} of them")  # noqa: T201 -- a figure
    assert growth <= TABLES + MOST_BYTES * conversations / 10_000, list(later)
