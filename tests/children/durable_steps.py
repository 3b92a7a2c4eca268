"""Strikes writers before and after each of their durable steps: `durable_steps DIRECTORY ROUNDS`.

A durable step is a call of the seam `locks._os` that changes what a disk has. For each scenario, each of its steps, and
each way to strike, a writer is forked from this process, which has imported everything, has followed a writer once, and
runs no event loop any more; it is

- killed with SIGKILL;
- told by that call that the disk fails, or is full, having done what it was asked for or not;
- stopped with SIGSTOP while another writer, forked as well, wants the session; then it goes on.

Afterwards a new writer works with the session. The file `DIRECTORY/cases` gets a JSON line for each case: what was
struck, how each operation ended, the lines of the file and the names beside it before and after the new writer, and
when which process held. When that is complete, this says "done".
"""

from __future__ import annotations

import errno
import gc
import itertools
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NoReturn

# Before the fork, so that no writer spends its short life on importing them.
import anyio
import anyio._backends._asyncio
import anyio._backends._trio
import structlog

from locks import LeaseLost, LockRegistry, Position, TranscriptError, _os
from locks.rights.notes import Notes
from tests import leaks

STEPS = ("open", "write", "ftruncate", "fdatasync", "fsync", "rename", "unlink")
HALF_DONE = ("write", "fdatasync", "fsync")  # those that may fail having done what they were asked for
PATIENCE_S = 20.0
STOPPED_S = 0.05
BACKENDS = ("asyncio", "trio")

Say = Callable[..., None]
Operation = Callable[[LockRegistry, str, Position | None, Say], Awaitable[Any]]


def append(n: int) -> Operation:
    async def operation(registry: LockRegistry, path: str, seen: Position | None, say: Say) -> None:
        async with registry.lease(path) as lease:
            begun = time.monotonic()
            try:
                await lease.append({"n": n})
            finally:
                say("held", begun, time.monotonic())

    return operation


def append_momentarily(n: int) -> Operation:
    async def operation(registry: LockRegistry, path: str, seen: Position | None, say: Say) -> None:
        await registry.append(path, {"n": n})

    return operation


async def conduct(registry: LockRegistry, path: str, seen: Position | None, say: Say) -> None:
    async with registry.turn(path) as turn:
        await turn.append({"n": 5})


async def replace(registry: LockRegistry, path: str, seen: Position | None, say: Say) -> None:
    async with registry.lease(path) as lease:
        begun = time.monotonic()
        try:
            await lease.replace([{"n": "summary"}], through=seen)
        finally:
            say("held", begun, time.monotonic())


OLD = b'{"n":0}\n{"n":1}\n{"n":2}\n'
SCENARIOS: dict[str, tuple[bytes | None, bool, list[Operation]]] = {
    "create": (None, False, [append(3), append_momentarily(4)]),
    "append": (OLD, False, [append(3), append_momentarily(4)]),
    "seal": (OLD[:-1], False, [append(3), append_momentarily(4)]),
    "torn": (OLD + b'{"n":9', False, [append(3), append_momentarily(4)]),
    "replace": (OLD, False, [replace, append(3)]),
    "sidecar": (OLD, True, [append(3), append_momentarily(4), conduct]),
}
"""What the file has at first, whether there is a sidecar, and what the writer does."""


class Strike:
    """Acts at the `at`-th step, before or after it is done."""

    def __init__(self, at: int, after: bool, act: Callable[[], None]) -> None:
        self.steps: list[str] = []
        self.armed = False
        self._at, self._after, self._act = at, after, act
        for name in STEPS:
            # What is killed loses nothing that the kernel has, so the disk itself need not be waited for.
            real = (lambda fd: None) if name in ("fdatasync", "fsync") else getattr(_os, name)
            setattr(_os, name, self._watched(name, real))

    def _watched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            if not self.armed or (name == "open" and not args[1] & (os.O_WRONLY | os.O_RDWR)):
                return real(*args)
            self.steps.append(name)
            now = len(self.steps) == self._at
            if now and not self._after:
                self._act()
            try:
                return real(*args)
            finally:
                if now and self._after:
                    self._act()

        return call


def act_of(way: str) -> Callable[[], None]:
    def act() -> None:
        if way == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif way == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif way != "none":
            number = getattr(errno, way)
            raise OSError(number, os.strerror(number))

    return act


Notes.watch = Notes._write  # type: ignore[method-assign]  # at the grant, so that its steps are struck too


async def write(scenario: str, path: str, strike: Strike, say: Say) -> None:
    _, sidecar, operations = SCENARIOS[scenario]
    registry = LockRegistry(durability="sync", sidecar=sidecar)
    seen = (await registry.read(path)).position
    before = leaks.descriptors()
    strike.armed = True
    for operation in operations:
        try:
            await operation(registry, path, seen, say)
        except (TranscriptError, LeaseLost) as error:
            say("raised", str(error))
        else:
            say("done")
    strike.armed = False
    say("steps", *strike.steps)
    say("descriptors", len(leaks.descriptors() - before))
    now = registry.statistics()
    say("sessions", now.sessions)


async def visit(path: str, n: int, say: Say) -> None:
    """Another writer, while one is stopped."""
    await append(n)(LockRegistry(), path, None, say)
    say("done")


async def follow(path: str, say: Say) -> None:
    """The next writer: conducts, appends, reads, compacts."""
    registry = LockRegistry()
    with anyio.fail_after(PATIENCE_S / 2):
        async with registry.turn(path) as turn:
            seen = await turn.read(on_error="raise")
            say("found", *[record["n"] for record in seen])
            await turn.append({"n": 200})
            await turn.replace(seen, through=seen.position)
            await registry.append(path, {"n": 201})


class Child:
    """A forked writer; what it says is read when it has ended."""

    def __init__(self, backend: str, body: Callable[[Say], Awaitable[Any]]) -> None:
        self._pipe, theirs = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _live(backend, body, theirs)
        os.close(theirs)

    def wait(self, options: int = 0, within: float = PATIENCE_S) -> int | None:
        """How it ended, or that it was stopped; `None` if neither."""
        end = time.monotonic() + within
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG | options)
            if pid:
                return status
            if time.monotonic() >= end:
                return None
            time.sleep(0.0005)

    def finish(self) -> tuple[str, list[list[Any]]]:
        """How it ended, and what it has said."""
        status = self.wait()
        if status is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            ended = "hung"
        else:
            ended = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else str(os.WEXITSTATUS(status))
        with os.fdopen(self._pipe) as heard:
            return ended, [json.loads(line) for line in heard.read().splitlines()]


def _live(backend: str, body: Callable[[Say], Awaitable[Any]], pipe: int) -> NoReturn:
    def say(*words: object) -> None:
        os.write(pipe, json.dumps(words).encode() + b"\n")

    code = 1
    try:
        structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
        anyio.run(body, say, backend=backend)
        code = 0
    except BaseException as error:
        say("error", repr(error))
    finally:
        os._exit(code)


def lines(path: Path) -> str | None:
    return path.read_bytes().decode() if path.exists() else None


def beside(path: Path) -> list[str]:
    return sorted(one.name.removeprefix(path.name) for one in path.parent.iterdir() if one != path)


def case(directory: Path, scenario: str, at: int, after: bool, way: str, backend: str) -> dict[str, Any]:
    """Play one case in a directory of its own."""
    directory.mkdir()
    path = directory / "session.jsonl"
    content = SCENARIOS[scenario][0]
    if content is not None:
        path.write_bytes(content)

    async def struck(say: Say) -> None:
        await write(scenario, str(path), Strike(at, after, act_of(way)), say)

    writer = Child(backend, struck)
    visitor = None
    went_on = False
    if way == "stop":
        status = writer.wait(os.WUNTRACED)
        if status is None or not os.WIFSTOPPED(status):
            raise SystemExit(f"{scenario}, step {at}: the writer was not stopped: {status}")
        visitor = Child(backend, lambda say: visit(str(path), 100, say))
        went_on = _ends(visitor, STOPPED_S)
        os.kill(writer.pid, signal.SIGCONT)
    ended, said = writer.finish()
    visited = visitor.finish() if visitor is not None else None
    left, found = beside(path), lines(path)

    async def follows(say: Say) -> None:
        Strike(0, False, lambda: None)  # no disk to wait for
        await follow(str(path), say)

    followed = Child(backend, follows).finish()
    return {
        "scenario": scenario,
        "at": at,
        "after": after,
        "way": way,
        "backend": backend,
        "ended": ended,
        "said": said,
        "visited": visited,
        "went_on": went_on,
        "left": left,
        "found": found,
        "followed": followed,
        "left_in_the_end": beside(path),
        "found_in_the_end": lines(path),
    }


def _ends(child: Child, within: float) -> bool:
    """Whether a child ends in so many seconds; it is not waited for."""
    end = time.monotonic() + within
    while time.monotonic() < end:
        if os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return True
        time.sleep(0.0005)
    return False


def main(root: str, rounds: int) -> None:
    for backend in BACKENDS:  # so that no writer's interpreter need make itself at home in the code in its short life
        with tempfile.TemporaryDirectory() as aside:
            path = Path(aside, "session.jsonl")
            path.write_bytes(OLD)
            anyio.run(follow, str(path), lambda *words: None, backend=backend)
    gc.collect()
    gc.freeze()  # else each child copies the pages of every object that it collects
    halves = []
    for half in (0, 1):  # two cores
        pid = os.fork()
        if pid == 0:
            try:
                play(root, rounds, half)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        halves.append(pid)
    if all(os.waitpid(pid, 0)[1] == 0 for pid in halves):
        print("done")  # noqa: T201 -- what it is for


def play(root: str, rounds: int, half: int) -> None:
    """Play every second case."""
    numbers = itertools.count()
    for number in range(rounds):
        for scenario in SCENARIOS:
            backend = BACKENDS[(number + len(scenario)) % 2]

            def one(
                at: int, after: bool, way: str, *, scenario: str = scenario, backend: str = backend
            ) -> dict[str, Any]:
                return case(Path(root, f"{half}-{next(numbers)}"), scenario, at, after, way, backend)

            counted = one(0, False, "none")
            if half == 0:
                _say(root, counted)
            steps = next(words[1:] for words in counted["said"] if words[0] == "steps")
            for at, name in enumerate(steps, 1):
                if at % 2 == half:
                    continue
                for after in (False, True):
                    ways = ["kill", "stop"]
                    if not after or name in HALF_DONE:
                        ways += ["EIO", "ENOSPC"]
                    for way in ways:
                        _say(root, {**one(at, after, way), "step": name})


def _say(root: str, result: dict[str, Any]) -> None:
    with Path(root, "cases").open("ab", buffering=0) as file:
        file.write(json.dumps(result).encode() + b"\n")  # one write: both halves say theirs here


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
