"""Another process with an engine of one's choice: `engine_contender PATH kernel|filelock|own lease|turn asyncio|trio`.

Says `ready` and obeys lines. `keep` takes the right, says `waiting` if it has to wait, then `held`, and lets go with
the next line, which it says as `left`; if that is `fork`, a forked child comes and goes first, and it says `forked`.
`compete 100` holds as often, as fast as it can, and says when, taken inside the holds, as one line of JSON:
`[[entered_ns, left_ns, epoch], ...]`. `end` ends it.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import sys
import time
from typing import Any

import anyio
from anyio import create_task_group, to_thread

from locks import LockRegistry, Right
from locks.engines.interface import Unordered


class OwnLock(Unordered):
    """What a user might bring along: `flock` on a file of its own, on a descriptor that stays open with the session."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def try_lock(self) -> bool:
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def unlock(self) -> None:
        fcntl.flock(self.fd, fcntl.LOCK_UN)

    def close(self) -> None:
        os.close(self.fd)


class OwnEngine:
    name = "own"

    def lock(self, path: str, fd: int, file_id: tuple[int, int], right: Right) -> OwnLock:
        return OwnLock(f"{os.path.realpath(path)}.{right}.own")


def engine_called(name: str) -> Any:
    """What `LockRegistry(engine=...)` wants."""
    return OwnEngine() if name == "own" else name


def say(line: str) -> None:
    os.write(1, line.encode() + b"\n")


async def hear() -> list[str]:
    return (await to_thread.run_sync(sys.stdin.readline)).split()


def fork() -> None:
    """A child that drops what it inherited, and ends."""
    child = os.fork()
    if child == 0:
        gc.collect()
        os._exit(0)
    os.waitpid(child, 0)


async def keep(registry: LockRegistry, path: str, right: str) -> None:
    async def watch() -> None:
        while not registry.statistics().waiting:
            await anyio.sleep(0.001)
        say("waiting")

    async with create_task_group() as group:
        group.start_soon(watch)
        async with getattr(registry, right)(path, max_hold=600):
            group.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                say("held")
                while await hear() == ["fork"]:
                    fork()
                    say("forked")
    say("left")


async def compete(registry: LockRegistry, path: str, right: str, holds: int) -> None:
    intervals = []
    for _ in range(holds):
        async with getattr(registry, right)(path) as lease:
            entered = time.monotonic_ns()
            await anyio.sleep(0)  # noqa: ASYNC115 -- lets go of the loop, as anyone would who holds
            lease.check()
            intervals.append((entered, time.monotonic_ns(), lease.epoch))
        await anyio.sleep(0.001)
    say(json.dumps(intervals))


async def main(path: str, engine: str, right: str) -> None:
    registry = LockRegistry(engine=engine_called(engine))
    say("ready")
    while True:
        match await hear():
            case ["keep"]:
                await keep(registry, path, right)
            case ["compete", holds]:
                await compete(registry, path, right, int(holds))
            case _:
                return


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2], sys.argv[3], backend=sys.argv[4])
