"""Meets a real fault while it has a lease, or asks for one: `faults KIND PATH [OTHER]`. Says what came of it.

`stopped`: stops itself between creating its lock file and writing it; goes on with SIGCONT, then says `held`.
`exits`, `aborts`: ends with the lease held, without any clean-up.
`descriptors`: has no descriptor left. `size`: may not make files larger than 64 KiB, so that a line breaks off.
`user`: is not root any more, if it was: permissions count. `compacts`: so does this one, and compacts the session.
`hangs`: holds OTHER, too, for a short time, and says `held`; when it hears a line, it writes to PATH on the event
loop's thread, and that may hang. Without a file system that freezes, it hangs by itself until it hears another line.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import structlog
from anyio import to_thread

from locks import LockError, LockRegistry, TranscriptError, _os

NOBODY = 65534


def say(line: str) -> None:
    os.write(1, line.encode() + b"\n")


async def attempt(registry: LockRegistry, path: str, record: dict) -> None:
    try:
        with anyio.fail_after(60):
            await registry.append(path, record)
        say(f"appended {record['n']}")
    except LockError as error:
        errno = error.errno if isinstance(error, TranscriptError) else None
        say(f"{record['n']}: {type(error).__name__} {errno}: {error}")
    if registry.statistics().sessions:
        say(f"{record['n']}: left {registry!r}")


async def hold(path: str) -> None:
    async with LockRegistry().lease(path):
        say("held")
        await to_thread.run_sync(sys.stdin.readline)
    say("left")


async def stopped(path: str) -> None:
    write = _os.write

    def stop(fd: int, data: Any) -> int:
        if os.readlink(f"/proc/self/fd/{fd}").endswith(".lock"):
            _os.write = write
            os.kill(os.getpid(), signal.SIGSTOP)
        return write(fd, data)

    _os.write = stop
    await hold(path)


async def exits(path: str) -> None:
    async with LockRegistry().lease(path):
        say("held")
        os._exit(3)


async def aborts(path: str) -> None:
    async with LockRegistry().lease(path):
        say("held")
        os.abort()


def exhaust() -> list[int]:
    taken = []
    while True:
        try:
            taken.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            return taken


async def descriptors(path: str) -> None:
    registry = LockRegistry()
    await attempt(registry, path, {"n": 1})
    async with registry.lease(path) as lease:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        taken = exhaust()
        await attempt(LockRegistry(), path + ".other", {"n": 2})
        await lease.append({"n": 3})
        say("appended 3")
    taken += exhaust()
    await attempt(registry, path, {"n": 4})
    os.close(taken.pop())  # enough for the session, not for its lock file
    await attempt(registry, path, {"n": 5})
    for fd in taken:
        os.close(fd)
    await attempt(registry, path, {"n": 6})


async def size(path: str) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
    registry = LockRegistry()
    for n in range(4):
        await attempt(registry, path, {"n": n, "text": "x" * 20_000})
    await attempt(registry, path, {"n": 4})


def give_up_root() -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


async def compacts(path: str) -> None:
    await LockRegistry().append(path + ".warm-up", {"n": 1})  # as in `user`
    give_up_root()
    try:
        async with LockRegistry().lease(path) as lease:
            await lease.read()
            await lease.replace([{"summary": 1}])
        say("compacted")
    except TranscriptError as error:
        say(f"{type(error).__name__} {error.errno}: {error}")


async def user(path: str) -> None:
    registry = LockRegistry()
    async with registry.lease(path + ".warm-up"):  # everything is imported: what follows may not read much
        pass
    give_up_root()
    say("ready")
    while line := await to_thread.run_sync(sys.stdin.readline):
        name, n = line.split()
        registry = LockRegistry(sidecar=not name.startswith("plain:"))
        await attempt(registry, os.path.join(os.path.dirname(path), name.removeprefix("plain:")), {"n": int(n)})


async def hangs(path: str, other: str, how: str) -> None:
    registry, write = LockRegistry(grace=0.1), _os.write

    def hang(fd: int, data: Any) -> int:
        sys.stdin.readline()
        return write(fd, data)

    async with registry.lease(path) as lease:
        try:
            async with registry.lease(other, max_hold=0.3):
                say("held")
                sys.stdin.readline()  # on the loop's own thread
                if how == "played":
                    _os.write = hang
                await lease.append({"n": 1})
                say("appended")
        except LockError as error:
            say(type(error).__name__)


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    kinds: dict[str, Callable[..., Awaitable[None]]] = {
        one.__name__: one for one in (stopped, exits, aborts, descriptors, size, user, compacts, hangs)
    }
    anyio.run(kinds[sys.argv[1]], *sys.argv[2:])
