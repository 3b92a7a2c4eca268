"""The legacy gateway: a run takes the session's lock, holds it across the model call, and cleans up "at the end".

Its faults are those of the reports that the stories play:

- The lock is taken for the whole run, and by each write of another lane too, not for an append.
- It is released in the last line of the run, so an exception on the way there leaks it (#86014, and the fix that was
  merged for it: "release ... on every exit path").
- A lane moves on at its timeout, and the run is told to stop. A call that does not listen goes on, holds on, and writes
  its answer whenever it comes back (#86004, #87117).
- A message whose run cannot have the lock within 60 s has failed. No other run tries it again.
- Errors are kept for the operator as they came, and each keeps what its run had loaded (#86014: memory grows).
"""

from __future__ import annotations

import json
from pathlib import Path

import anyio
from anyio.abc import TaskGroup

from ..stories.journal import Journal
from ..stories.model import call
from ..stories.story import Story, Work
from .lock_file import Held, LegacyLock, LegacyLockTimeout, Times


class LegacyGateway:
    """One process with its lanes; each lane does one piece of work at a time."""

    def __init__(self, story: Story, session: Path, journal: Journal, tasks: TaskGroup) -> None:
        self._story = story
        self._session = session
        self._journal = journal
        self._tasks = tasks
        self._lanes: dict[str, anyio.Lock] = {}
        self._errors: list[BaseException] = []
        self.lock = LegacyLock(Times().scaled(story.scale))
        tasks.start_soon(self.lock.watch)

    def send(self, work: Work) -> None:
        """Queue a piece of work on its lane."""
        self._tasks.start_soon(self._in_lane, work)

    async def restart(self) -> None:
        """The soft restart: the process stays, so its pid stays alive, and the sweep believes the lock's owner."""
        self.lock.sweep(self._session.parent)

    async def _in_lane(self, work: Work) -> None:
        async with self._lanes.setdefault(work.lane, anyio.Lock()):  # in order of arrival
            over, stop = anyio.Event(), anyio.CancelScope()
            self._tasks.start_soon(self._run, work, stop, over)
            with anyio.move_on_after(self._story.real_s(self._story.timeout_s)) as limit:
                await over.wait()
            if limit.cancelled_caught:
                self._journal.over(work, "timed out")  # the lane goes on; a run that does not listen goes on, too
                stop.cancel()

    async def _run(self, work: Work, stop: anyio.CancelScope, over: anyio.Event) -> None:
        with stop:
            try:
                await self._attempt(work, bytearray(self._story.context_bytes))
            except Exception as error:  # the gateway survives every run, and shows the operator its error
                self._errors.append(error)
                self._journal.over(work, "gave up" if isinstance(error, LegacyLockTimeout) else "failed")
        over.set()

    async def _attempt(self, work: Work, context: bytearray) -> None:
        held: Held = await self.lock.acquire(self._session, kept=context)
        self._journal.begun(work)
        self._write(work, "user" if work.asks else "note")
        if work.asks:
            await call(work, self._story)
            self._write(work, "assistant")
        self.lock.release(held)
        self._journal.over(work, "done")

    def _write(self, work: Work, role: str) -> None:
        record = {"role": role, "work": work.name}
        with self._session.open("ab") as file:
            file.write(json.dumps(record).encode() + b"\n")
        self._journal.written(work)
