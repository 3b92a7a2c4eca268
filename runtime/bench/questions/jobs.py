"""What a job costs, alone and from a backlog that runs one at a time."""

from __future__ import annotations

import time
from functools import partial

import anyio
from anyio.lowlevel import checkpoint

from ..checker import Witness
from ..peers.interface import Append, Backend, Peer
from .interface import Ask, Cell, Question, Sample, Scale

_JOBS, _JOBS_FULL = 1_000, 5_000
_MESSAGES, _MESSAGES_FULL = 300, 3_000
_AT_ONCE = 10


def alone(peer: Peer, backend: Backend, *, jobs: int) -> Sample:
    """In the worker: microseconds from starting a job that does nothing to knowing that it has ended."""
    return Sample({"start and end": anyio.run(partial(alone_s, peer, jobs), backend=backend) / jobs * 1e6})


async def alone_s(peer: Peer, jobs: int) -> float:
    """Seconds for so many jobs, one after the other."""

    async def job() -> None:
        pass

    async with peer.make() as runner:
        for _ in range(jobs // 10):  # warm up
            await runner.run(job)
        began = time.perf_counter()
        for _ in range(jobs):
            await runner.run(job)
        return time.perf_counter() - began


def message(peer: Peer, backend: Backend, *, messages: int) -> Sample:
    """In the worker: microseconds for a message of a session that is answered by one line in the session's file."""
    witness = Witness()
    took_s = anyio.run(partial(_messages, peer, messages, witness), backend=backend)
    return Sample({"message": took_s / messages * 1e6}, violations=witness.violations)


async def _messages(peer: Peer, messages: int, witness: Witness) -> float:
    async def answer(append: Append) -> None:
        await append({"role": "assistant", "text": "hello"})

    async def watched(append: Append) -> None:
        witness.enter("ann")
        await append({"role": "assistant", "text": "hello"})
        await checkpoint()
        witness.leave("ann")

    async with peer.make() as runner:
        async with anyio.create_task_group() as group:  # several at once: does it keep them apart? It warms up, too
            for _ in range(_AT_ONCE):
                group.start_soon(runner.message, "ann", watched)
        began = time.perf_counter()
        for _ in range(messages):
            await runner.message("ann", answer)
        return time.perf_counter() - began


def backlog(peer: Peer, backend: Backend, *, jobs: int) -> Sample:
    """In the worker: microseconds per job of a backlog, from the first submission to the last end."""
    witness = Witness()
    took_s = anyio.run(partial(_backlog, peer, jobs, witness), backend=backend)
    return Sample({"job": took_s / jobs * 1e6}, violations=witness.violations)


async def _backlog(peer: Peer, jobs: int, witness: Witness) -> float:
    async def job() -> None:
        witness.enter("backlog")
        await checkpoint()
        witness.leave("backlog")

    async with peer.make() as runner:
        await runner.backlog(job, 100)  # warm up
        began = time.perf_counter()
        await runner.backlog(job, jobs)
        return time.perf_counter() - began


def _take_alone(cell: Cell, ask: Ask, scale: Scale) -> Sample:
    return ask("jobs:alone", jobs=scale.pick(_JOBS, _JOBS_FULL))


def _take_message(cell: Cell, ask: Ask, scale: Scale) -> Sample:
    return ask("jobs:message", messages=scale.pick(_MESSAGES, _MESSAGES_FULL))


def _take_backlog(cell: Cell, ask: Ask, scale: Scale) -> Sample:
    return ask("jobs:backlog", jobs=cell.x)


JOB = Question(
    name="job",
    title="What does a job cost that does nothing, from its start to its known end?",
    unit="µs",
    kind="jobs",
    take=_take_alone,
    floor="anyio.TaskGroup",
    seconds=8,
)
MESSAGE = Question(
    name="message",
    title="What does a message of a session cost that is answered by one line in its file?",
    unit="µs",
    kind="jobs",
    take=_take_message,
    floor="anyio.TaskGroup",
    seconds=8,
)
BACKLOG = Question(
    name="backlog",
    title="What does each job of a backlog cost, one running at a time?",
    unit="µs",
    kind="jobs",
    take=_take_backlog,
    floor="anyio.TaskGroup",
    x="jobs",
    sizes=lambda scale: (1_000, 10_000, 100_000, 1_000_000) if scale.full else (1_000, 10_000, 100_000),
    seconds=18,
    rounds=3,
    longest_cell_s=600.0,
)
