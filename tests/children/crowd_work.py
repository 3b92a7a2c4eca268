"""What a worker of `tests.children.crowd` does, and how it writes that down."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from anyio import CancelScope, create_task_group, sleep, to_thread

from lanes import LaneSpec, RunContext, RunError, SessionLayout
from locks import Lease, LeaseLost, LeaseTimeout, LockRegistry, TranscriptError, _os
from locks.doctor.mending import mend
from runtime import Supervisor

KEYS = ("a", "b", "c")
WRITERS = 3
SIZES = (20, 20, 170, 170, 1_000, 5_000, 30_000)
TORN = 0.03  # of the writes of more than a page
LANES = (
    LaneSpec("session:*", timeout=60.0, grace=10.0),
    LaneSpec("main", capacity=8, timeout=60.0, grace=10.0),
    LaneSpec("late", capacity=8, timeout=0.02, grace=0.02),
)

Id = tuple[str, int]
REFUSALS = (LeaseLost, LeaseTimeout, TranscriptError)
"""What an operation may be told: that it may not, because somebody came before it."""


class Journal:
    """A worker's own account."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        if self._fd < 3:
            raise RuntimeError("standard output and error are open")

    def jot(self, *words: Any) -> None:
        """Add a line. From any thread."""
        os.write(self._fd, json.dumps(words, separators=(",", ":")).encode() + b"\n")


def watch_the_names(directory: Path, number: int, journal: Journal, choice: random.Random) -> None:
    """Have it written down when a session's file loses its name, keep what is deleted, and tear some writes."""
    rename, write = os.rename, os.write
    graves = itertools.count()

    def session(path: str) -> str | None:
        head, name = os.path.split(path)
        return name if name.endswith(".jsonl") and os.path.basename(head) == "sessions" else None

    def renamed(old: str, new: str) -> None:
        begun = time.monotonic_ns()
        rename(old, new)
        for word, name in (("aside", session(old)), ("placed", session(new))):
            if name is not None:
                journal.jot(word, name, begun, time.monotonic_ns())

    def unlinked(path: str) -> None:
        name = session(path)
        if name is None:
            os.unlink(path)
        else:
            renamed(path, str(directory / "graveyard" / f"{name}.{number}-{next(graves)}"))

    def torn(fd: int, data: bytes) -> int:
        if len(data) > 4096 and choice.random() < TORN:
            journal.jot("tears", time.monotonic_ns())
            write(fd, data[: choice.randrange(1, len(data))])
            os.kill(os.getpid(), signal.SIGKILL)
        return write(fd, data)

    _os.rename, _os.unlink, _os.write = renamed, unlinked, torn  # type: ignore[assignment]


class Writer:
    """Does one thing after another, and tells its journal."""

    def __init__(self, name: str, journal: Journal, choice: random.Random) -> None:
        self.name, self.jot, self.choice = name, journal.jot, choice
        self._numbers = itertools.count()

    def record(self, **more: Any) -> dict[str, Any]:
        """One that nobody else writes."""
        length = self.choice.choice(SIZES)
        text = chr(97 + sum(self.name.encode()) % 26) * length
        return {"w": self.name, "n": next(self._numbers), **more, "length": length, "text": text}

    async def append(self, file: str, add: Callable[[Any], Awaitable[object]], count: int = 0) -> None:
        """Append a record, or several at once, and acknowledge them when that has returned."""
        records = [self.record() for _ in range(count or 1)]
        ids = [[record["w"], record["n"]] for record in records]
        self.jot("try", _name(file), *ids)
        await add(records if count else records[0])
        self.jot("ack", _name(file), *ids)

    async def replace(self, lease: Lease, read: Any, *, through: bool) -> None:
        """Put a summary in the place of what was read."""
        covered = [[record["w"], record["n"]] for record in read]
        summary = self.record(covers=covered)
        name, mine = _name(lease.path), [summary["w"], summary["n"]]
        self.jot("covers", name, mine, *covered)
        await lease.replace([summary], through=read.position if through else None)
        self.jot("ack", name, mine)
        self.jot("did", "compactions")

    @asynccontextmanager
    async def holding(self, right: str, file: str) -> AsyncIterator[None]:
        """Write down when a block begins and ends that has a right. A block that has the write lease does not replace:
        that lets the turn of another process go on, with writes of its own."""
        self.jot("enter", _name(file), right, self.name, time.monotonic_ns())
        try:
            yield
            if right == "write" and not _names_us(file):
                self.jot("blind", _name(file))
        finally:
            self.jot("leave", _name(file), right, self.name, time.monotonic_ns())

    async def block(self, lease: Lease) -> None:
        """Some appends with nothing in between."""
        async with self.holding("write", lease.path):
            for _ in range(self.choice.randint(1, 4)):
                if self.choice.random() < 0.3:
                    await self.append(lease.path, lease.append_many, self.choice.randint(2, 5))
                else:
                    await self.append(lease.path, lease.append)
                await self.pause(0.002)
        chance = self.choice.random()
        if chance < 0.15:
            await self.replace(lease, await lease.read(), through=chance < 0.1)

    async def pause(self, most: float) -> None:
        await sleep(self.choice.uniform(0, most))

    async def mended(self, file: str) -> None:
        """What `lanes doctor --fix` does for a session."""
        found = await to_thread.run_sync(partial(mend, file))
        self.jot("did", "doctor runs")
        if found.done:
            self.jot("did", "doctor fixes")


class OnRegistry:
    """A writer that uses the locks themselves."""

    def __init__(self, writer: Writer, registry: LockRegistry) -> None:
        self._writer, self._registry = writer, registry
        self.ways: list[tuple[int, Callable[[str, str], Awaitable[None]]]] = [
            (12, self.append),
            (6, self.lease),
            (4, self.turn),
            (3, self.replace),
            (1, self.doctor),
        ]

    async def append(self, key: str, file: str) -> None:
        await self._writer.append(file, partial(self._registry.append, file))

    async def lease(self, key: str, file: str) -> None:
        async with self._registry.lease(file) as lease:
            await self._writer.block(lease)

    async def turn(self, key: str, file: str) -> None:
        writer = self._writer
        async with self._registry.turn(file) as turn, writer.holding("turn", file):
            for _ in range(writer.choice.randint(1, 4)):
                await writer.append(file, turn.append)
                await writer.pause(0.005)
            if writer.choice.random() < 0.2:
                await writer.replace(turn, await turn.read(), through=True)

    async def replace(self, key: str, file: str) -> None:
        read = await self._registry.read(file)
        await self._writer.pause(0.01)  # others append meanwhile: that stays
        if read.position is not None:
            async with self._registry.lease(file) as lease:
                await self._writer.replace(lease, read, through=True)

    async def doctor(self, key: str, file: str) -> None:
        await self._writer.mended(file)


class OnSupervisor:
    """A writer whose work is done by runs."""

    def __init__(self, writer: Writer, sup: Supervisor) -> None:
        self._writer, self._sup = writer, sup
        self.ways: list[tuple[int, Callable[[str, str], Awaitable[None]]]] = [
            (10, self.conduct),
            (10, self.note),
            (2, self.reset),
            (4, self.late),
            (1, self.doctor),
        ]

    async def conduct(self, key: str, file: str) -> None:
        async def body(ctx: RunContext) -> None:
            writer = self._writer
            async with writer.holding("turn", file):
                for _ in range(writer.choice.randint(1, 4)):
                    await writer.append(file, ctx.session.append)
                    await writer.pause(0.005)
                if writer.choice.random() < 0.5:
                    async with ctx.session.lease() as lease:
                        await writer.block(lease)

        await self._run(f"session:{key}", body)

    async def note(self, key: str, file: str) -> None:
        async def body(ctx: RunContext) -> None:
            await self._writer.append(file, ctx.session.append)

        await self._run("main", body, session=key, turn=False)

    async def late(self, key: str, file: str) -> None:
        """A body that ignores its end, and appends afterwards."""

        async def body(ctx: RunContext) -> None:
            with CancelScope(shield=True):
                while ctx.run.outcome is None:
                    await sleep(0.005)
                record = self._writer.record()
                self._writer.jot("late", _name(file), [record["w"], record["n"]])
                await ctx.session.append(record)

        run = self._sup.submit("late", body, session=key, turn=self._writer.choice.random() < 0.5)
        _ = await run.wait()
        self._writer.jot("did", "late appends")

    async def reset(self, key: str, file: str) -> None:
        archive = self._writer.choice.random() < 0.5
        kept = await self._sup.reset(key, archive=archive)
        self._writer.jot("did", "resets")
        if kept is not None:
            self._writer.jot("archived", _name(file), os.path.basename(kept))

    async def doctor(self, key: str, file: str) -> None:
        await self._writer.mended(file)

    async def _run(self, lane: str, body: Any, **options: Any) -> None:
        outcome = await self._sup.submit(lane, body, **options).wait()
        if outcome.error is not None and not isinstance(outcome.error, (RunError, *REFUSALS)):
            raise outcome.error


async def work(root: str, number: int, journal: Journal, choice: random.Random) -> None:
    """Work on the sessions until killed."""
    layout = SessionLayout(root)
    files = {key: layout.file_of(key) for key in KEYS}

    async def go_on(doing: OnRegistry | OnSupervisor, writer: Writer) -> None:
        weights, ways = zip(*doing.ways, strict=True)
        while True:
            key = writer.choice.choice(KEYS)
            (way,) = writer.choice.choices(ways, weights)
            try:
                await way(key, files[key])
            except (RunError, *REFUSALS):
                journal.jot("did", "refusals")
            except Exception as error:
                journal.jot("odd", f"{way.__name__}: {error!r}")

    writers = [Writer(f"{number}.{i}", journal, random.Random(choice.random())) for i in range(WRITERS)]
    if number // 2 % 2:
        registry = LockRegistry(max_hold=60.0, grace=10.0)
        async with create_task_group() as group:
            for writer in writers:
                group.start_soon(go_on, OnRegistry(writer, registry), writer)
    else:
        registry = LockRegistry(sidecar=True)  # foreign gateways work on the same files
        async with Supervisor(root, lanes=LANES, registry=registry) as sup, create_task_group() as group:
            for writer in writers:
                group.start_soon(go_on, OnSupervisor(writer, sup), writer)


def _name(file: str) -> str:
    return os.path.basename(file)


def _names_us(file: str) -> bool:
    """Whether the lock file is there, as other gateways look at it, and names this process."""
    try:
        with open(f"{file}.lock", encoding="utf-8") as there:
            return bool(json.load(there)["pid"] == os.getpid())
    except (OSError, ValueError, KeyError):
        return False
