"""The two sides of a story: a gateway each, which is sent the same work."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol

import anyio

from lanes import LaneFull, LaneSpec, Message, Outcome, Run, RunContext
from locks import LeaseLost

from ...supervisor import Supervisor
from ..legacy.gateway import LegacyGateway
from .journal import Journal
from .model import call
from .story import Story, Work

KEY = "story"


class Gateway(Protocol):
    """What a story needs of a side."""

    def send(self, work: Work) -> None:
        """Take a piece of work. Returns at once."""

    async def restart(self) -> None:
        """Restart softly: in the same process."""


Side = Callable[[Story, Path, Journal], AbstractAsyncContextManager[tuple[Gateway, Path]]]
"""Runs a gateway for a block; gives it and the file of its one session."""


@asynccontextmanager
async def legacy(story: Story, directory: Path, journal: Journal) -> AsyncIterator[tuple[Gateway, Path]]:
    """The legacy model, and its session file. Runs that are left over end with the block."""
    session = directory / "story.jsonl"
    async with anyio.create_task_group() as tasks:
        yield LegacyGateway(story, session, journal, tasks), session
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def ours(story: Story, directory: Path, journal: Journal) -> AsyncIterator[tuple[Gateway, Path]]:
    """A supervisor with its default locks, and the session's file."""
    gateway = OurGateway(story, journal)
    timeout, grace = story.real_s(story.timeout_s), story.real_s(story.grace_s)
    lanes = [
        LaneSpec("session:*", handler=gateway.answer, timeout=timeout, grace=grace),
        LaneSpec("main", handler=gateway.answer, capacity=32, timeout=timeout, grace=grace),
    ]
    async with Supervisor(directory, lanes=lanes, on_run_end=gateway.ended) as gateway.supervisor:
        yield gateway, Path(gateway.supervisor.layout.file_of(KEY))


class OurGateway:
    """The gateway as this project's documents recommend it: the question first, then the call, then the answer."""

    supervisor: Supervisor

    def __init__(self, story: Story, journal: Journal) -> None:
        self._story = story
        self._journal = journal
        self._work: dict[Run, Work] = {}
        self._outcomes: list[Outcome] = []
        """Kept for the operator, as the legacy gateway keeps its errors."""

    def send(self, work: Work) -> None:
        """Post a message; a note is appended by a run that does not want the turn."""
        lane = f"session:{KEY}" if work.lane == "session" else work.lane
        try:
            if work.asks:
                run = self.supervisor.post(lane, work, session=KEY)
            else:
                run = self.supervisor.submit(lane, self._note, work, session=KEY, turn=False)
        except LaneFull:
            self._journal.over(work, "refused")
            return
        self._work[run] = work

    async def restart(self) -> None:
        """Restart the generation."""
        await self.supervisor.restart()

    def ended(self, run: Run) -> None:
        """Note how a run ended."""
        outcome = run.outcome
        assert outcome is not None, "the hook is called when the run has its outcome"
        self._outcomes.append(outcome)
        self._journal.over(self._work.pop(run), outcome.state.replace("_", " "))

    async def answer(self, ctx: RunContext, messages: Sequence[Message]) -> None:
        """Answer a message."""
        work = messages[0].body
        context = bytearray(self._story.context_bytes)
        self._journal.begun(work)
        await self._write(ctx, work, "user")
        await call(work, self._story)
        await self._write(ctx, work, "assistant")
        del context

    async def _note(self, ctx: RunContext, work: Work) -> None:
        self._journal.begun(work)
        await self._write(ctx, work, "note")

    async def _write(self, ctx: RunContext, work: Work, role: str) -> None:
        try:
            await ctx.session.append({"role": role, "work": work.name})
        except LeaseLost:
            self._journal.refused(work)
            raise
        self._journal.written(work)


SIDES: Mapping[str, Side] = {"legacy": legacy, "lanes": ours}
