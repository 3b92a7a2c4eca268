"""Peers that run jobs: task groups, schedulers, and our lanes.

A task group has no limit of its own: its backlog is given one by a lock, as users of task groups do it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

import msgspec

from .inside import InDict
from .interface import Answer, Job, Jobs, Peer

_LONGEST_LAG_S = 600.0
"""Submitting a million jobs blocks the event loop, which is no news here."""


class Files:
    """Sessions as users of task groups keep them: a file each, and a lock for each in a dictionary."""

    def __init__(self, directory: str, lock: Callable[[], AbstractAsyncContextManager[Any]]) -> None:
        self._directory = directory
        self._locks = InDict(lock)

    async def answer(self, session: str, answer: Answer) -> None:
        """Answer, alone in that session."""
        path = os.path.join(self._directory, f"{session}.jsonl")

        async def append(record: dict[str, str]) -> None:
            with open(path, "ab", buffering=0) as file:  # noqa: ASYNC230 -- a line is written in microseconds
                file.write(msgspec.json.encode(record) + b"\n")

        async with self._locks.hold(session):
            await answer(append)


class Group:
    """A task group that calls `start(function, *arguments)`."""

    def __init__(
        self,
        start: Callable[..., object],
        event: Callable[[], Any],
        lock: Callable[[], AbstractAsyncContextManager[Any]],
        directory: str,
    ) -> None:
        self._start, self._event, self._lock = start, event, lock
        self._files = Files(directory, lock)

    async def run(self, job: Job) -> None:
        """One task, waited for."""
        done = self._event()
        self._start(self._then_set, job, done)
        await done.wait()

    async def _then_set(self, job: Job, done: Any) -> None:
        await job()
        done.set()

    async def message(self, session: str, answer: Answer) -> None:
        """A task that holds the session's lock."""
        await self.run(partial(self._files.answer, session, answer))

    async def backlog(self, job: Job, count: int) -> None:
        """A task for each job, and a lock that lets one run at a time."""
        lock, done, left = self._lock(), self._event(), count

        async def one() -> None:
            nonlocal left
            async with lock:
                await job()
            left -= 1
            if not left:
                done.set()

        for _ in range(count):
            self._start(one)
        await done.wait()


class AsyncioGroup(Group):
    """`asyncio.TaskGroup`, whose tasks can be waited for."""

    def __init__(self, create: Callable[..., Awaitable[Any]], directory: str) -> None:
        import asyncio

        def start(function: Callable[..., Any], *arguments: Any) -> object:
            return create(function(*arguments))

        super().__init__(start, asyncio.Event, asyncio.Lock, directory)
        self._create = create

    async def run(self, job: Job) -> None:
        """One task, waited for."""
        await self._create(job())


class AiojobsJobs:
    """`aiojobs`: one scheduler for single jobs, and one for backlogs, which lets one job run at a time."""

    def __init__(self, open_ended: Any, one_at_a_time: Any, files: Files) -> None:
        self._open_ended, self._one_at_a_time, self._files = open_ended, one_at_a_time, files

    async def run(self, job: Job) -> None:
        """One job, waited for."""
        await (await self._open_ended.spawn(job())).wait()

    async def message(self, session: str, answer: Answer) -> None:
        """A job that holds the session's lock."""
        await self.run(partial(self._files.answer, session, answer))

    async def backlog(self, job: Job, count: int) -> None:
        """All are spawned; the last one ends last."""
        spawned = [await self._one_at_a_time.spawn(job()) for _ in range(count)]
        await spawned[-1].wait()


class Lanes:
    """Our supervisor: lane `main` for single jobs, a lane of capacity 1 for backlogs."""

    def __init__(self, submit: Callable[..., Any]) -> None:
        self._submit = submit

    async def run(self, job: Job) -> None:
        """One run, waited for."""
        await self._submit("main", _body, job).result()

    async def message(self, session: str, answer: Answer) -> None:
        """A run on the session's lane, which has the turn of the session between processes too."""
        await self._submit(f"session:{session}", _answered, answer).result()

    async def backlog(self, job: Job, count: int) -> None:
        """All are submitted; the last one ends last."""
        runs = [self._submit("backlog", _body, job) for _ in range(count)]
        await runs[-1].result()


async def _answered(ctx: Any, answer: Answer) -> None:
    await answer(ctx.session.append)


async def _body(_: Any, job: Job) -> None:
    await job()


@asynccontextmanager
async def _asyncio() -> AsyncIterator[Jobs]:
    import asyncio

    with tempfile.TemporaryDirectory() as directory:
        async with asyncio.TaskGroup() as group:
            yield AsyncioGroup(group.create_task, directory)


@asynccontextmanager
async def _anyio() -> AsyncIterator[Jobs]:
    import anyio

    with tempfile.TemporaryDirectory() as directory:
        async with anyio.create_task_group() as group:
            yield Group(group.start_soon, anyio.Event, anyio.Lock, directory)


@asynccontextmanager
async def _trio() -> AsyncIterator[Jobs]:
    import trio

    with tempfile.TemporaryDirectory() as directory:
        async with trio.open_nursery() as nursery:
            yield Group(nursery.start_soon, trio.Event, trio.Lock, directory)


@asynccontextmanager
async def _aiojobs() -> AsyncIterator[Jobs]:
    import asyncio

    import aiojobs

    with tempfile.TemporaryDirectory() as directory:
        files = Files(directory, asyncio.Lock)
        async with aiojobs.Scheduler() as open_ended, aiojobs.Scheduler(limit=1, pending_limit=0) as one_at_a_time:
            yield AiojobsJobs(open_ended, one_at_a_time, files)


@asynccontextmanager
async def _lanes() -> AsyncIterator[Jobs]:
    from lanes import LaneSpec
    from runtime.supervisor import Supervisor
    from runtime.watch.limits import Limits

    from .ours import registry

    specs = [LaneSpec("backlog", queue_limit=None, timeout=3_600.0)]
    with tempfile.TemporaryDirectory() as directory:
        async with Supervisor(directory, lanes=specs, registry=registry(), limits=Limits(lag_s=_LONGEST_LAG_S)) as sup:
            yield Lanes(partial(sup.submit))


JOBS = (
    Peer(
        name="asyncio.TaskGroup",
        kind="jobs",
        make=_asyncio,
        backends=("asyncio",),
        about="a task for each job; a backlog is held back by a lock",
    ),
    Peer(
        name="anyio.TaskGroup",
        kind="jobs",
        make=_anyio,
        backends=("asyncio", "trio"),
        about="a task for each job; a backlog is held back by a lock",
    ),
    Peer(
        name="trio.Nursery",
        kind="jobs",
        make=_trio,
        backends=("trio",),
        about="a task for each job; a backlog is held back by a lock",
    ),
    Peer(
        name="aiojobs",
        kind="jobs",
        make=_aiojobs,
        backends=("asyncio",),
        about="a scheduler with a limit and a queue; no deadline, no kept outcome",
        needs="aiojobs",
    ),
    Peer(
        name="lanes",
        kind="jobs",
        make=_lanes,
        backends=("asyncio", "trio"),
        about="a supervisor's lanes: deadline, grace, kept outcome, fair admission, contained exceptions",
    ),
)
