"""One side of a story: `python -m runtime.bench.stories.play SIDE STORY LOOP` plays it, and prints JSON."""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path

import anyio
import msgspec
import psutil
import structlog

from .journal import Journal, Lifeline, Played
from .sides import SIDES, Gateway
from .story import MB, STORIES, Story
from .verdict import MEMORY, judge

_MEMORY_STEPS = 100


async def play(side: str, story: Story) -> Played:
    """Play a story on one side. Takes `story.real_s(story.ends_at_s)` seconds, and the end of what is left then."""
    played = Played(story.name, story.scale, {}, [], [])
    with tempfile.TemporaryDirectory(prefix="lanes-story-") as directory:
        journal = Journal(story.scale)
        async with (
            SIDES[side](story, Path(directory), journal) as (gateway, session),
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(_watch_memory, story, journal, played)
            if story.restart_at_s is not None:
                tasks.start_soon(_operate, story.restart_at_s, journal, gateway, played)
            for work in sorted(story.work, key=lambda work: work.at_s):
                await journal.until(work.at_s)
                journal.sent(work)
                gateway.send(work)
            await journal.until(story.ends_at_s)
            # What happens from here on, while the side is stopped, is no part of the story.
            played.lifelines = msgspec.json.decode(
                msgspec.json.encode([*journal.lifelines.values()]), type=list[Lifeline]
            )
            played.figures = judge(story, played.lifelines, session)
            tasks.cancel_scope.cancel()
    played.figures[MEMORY] = max(grown for _, grown in played.memory)
    return played


async def _watch_memory(story: Story, journal: Journal, played: Played) -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    while True:
        played.memory.append((journal.now_s(), round((process.memory_info().rss - before) / MB, 2)))
        await anyio.sleep(story.real_s(story.ends_at_s / _MEMORY_STEPS))


async def _operate(at_s: float, journal: Journal, gateway: Gateway, played: Played) -> None:
    """The operator looks once, and restarts when work waits and none is under way."""
    await journal.until(at_s)
    if journal.stuck():
        played.restarted_s = journal.now_s()
        await gateway.restart()


def main(side: str, story: str, backend: str) -> None:
    """Play a side. Log lines go nowhere: they belong to no figure, and would stand among the JSON."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    played = anyio.run(play, side, STORIES[story], backend=backend)
    sys.stdout.buffer.write(msgspec.json.encode(played))


if __name__ == "__main__":
    main(*sys.argv[1:])
