"""Kills writers amid their appends: `massacre DIRECTORY KILLS SECONDS SEED [MOST_SECONDS]`.

Three writers, on asyncio and trio in turn, append records of 170 B to 64 kB to three files that they share, and tell
each acknowledgement through a pipe. One after the other is killed with SIGKILL at a random moment and replaced. The
writers are forked from this process, which has imported everything, has written once, and runs no event loop any more:
so a life costs a few milliseconds.

It goes on until there were KILLS kills and enough torn tails. On a busy machine, SECONDS end it as soon as there were
LEAST_KILLS kills and LEAST_TORN torn tails; MOST_SECONDS end it in any case.

At the end it says one JSON line: how many kills, and every acknowledgement as `[writer, number, file]`.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import NoReturn

# Before the fork, so that no writer spends its short life on importing them.
import anyio
import anyio._backends._asyncio
import anyio._backends._trio
import structlog  # noqa: F401 -- as above

from locks import LockRegistry

WRITERS = 3
BACKENDS = ("asyncio", "trio")
TORN_WANTED = 55  # goes on beyond its number of kills, within its time, until so many tails were torn
LEAST_KILLS, LEAST_TORN = 500, 50  # goes on beyond its time until there were so many
LOOK = 16  # kills between two looks at how many tails were torn
FILES = ("a.jsonl", "b.jsonl", "c.jsonl")
SIZES = (170, 1_000, 5_000, 20_000, 64_000, 64_000)


async def write(directory: str, writer: int, ack: int) -> None:
    registry = LockRegistry()
    choice = random.Random(writer)
    for number in itertools.count():
        name = choice.choice(FILES)
        text = chr(97 + writer % 26) * choice.choice(SIZES)
        record = {"writer": writer, "number": number, "text": text, "length": len(text)}
        if number % 3:
            await registry.append(os.path.join(directory, name), record)
        else:
            async with registry.lease(os.path.join(directory, name)) as lease:
                await lease.append(record)
        os.write(ack, f"{writer} {number} {name}\n".encode())


async def write_once(directory: str) -> None:
    """What a writer does, so that its interpreter need not make itself at home in the code in each short life."""
    registry = LockRegistry()
    for number, size in enumerate(SIZES):
        path = os.path.join(directory, FILES[number % len(FILES)])
        record = {"writer": 0, "number": number, "text": "a" * size, "length": size}
        await registry.append(path, record)
        async with registry.lease(path) as lease:
            await lease.append(record)


def live(directory: str, writer: int, ack: int) -> NoReturn:
    try:
        os.close(1)
        os.open(os.devnull, os.O_WRONLY)
        anyio.run(write, directory, writer, ack, backend=BACKENDS[writer % 2])
    finally:
        os._exit(1)


class Writer:
    def __init__(self, directory: str, number: int) -> None:
        self.born_at = time.monotonic()
        self.acknowledged = b""
        self.pipe, theirs = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            live(directory, number, theirs)
        os.close(theirs)
        os.set_blocking(self.pipe, False)

    def hear(self) -> bool:
        """Read what it has acknowledged; returns whether it ever has."""
        try:
            while block := os.read(self.pipe, 1 << 16):
                self.acknowledged += block
        except BlockingIOError:
            pass
        return bool(self.acknowledged)

    def kill(self) -> bytes:
        os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL, f"a writer ended by itself: {status}"
        self.hear()
        os.close(self.pipe)
        return self.acknowledged


def torn(directory: str) -> int:
    return sum(path.read_bytes().count(b"\n") for path in Path(directory).glob("*.torn"))


def main(directory: str, kills: int, seconds: float, seed: int, most_seconds: float = 0.0) -> None:
    for backend in BACKENDS:
        with tempfile.TemporaryDirectory() as aside:
            anyio.run(write_once, aside, backend=backend)
    gc.collect()
    gc.freeze()  # else each child copies the pages of every object that it collects
    choice = random.Random(seed)
    numbers = itertools.count()
    writers = [Writer(directory, next(numbers)) for _ in range(WRITERS)]
    acknowledged = []
    begun = time.monotonic()
    done = 0

    def goes_on() -> bool:
        if done % LOOK:
            return True
        took, tails = time.monotonic() - begun, torn(directory)
        enough = done >= LEAST_KILLS and tails >= LEAST_TORN
        return (done < kills or tails < TORN_WANTED) and took < (seconds if enough else max(seconds, most_seconds))

    while goes_on():
        victim = done % WRITERS  # the oldest: it has had time to start up
        # Once it has begun to write: who is killed while starting up shows nothing.
        while not writers[victim].hear() and time.monotonic() < writers[victim].born_at + 10:
            time.sleep(0.0005)
        time.sleep(choice.uniform(0, 0.005))
        acknowledged.append(writers[victim].kill())
        done += 1
        writers[victim] = Writer(directory, next(numbers))
    acknowledged += [writer.kill() for writer in writers]
    acks = [
        (int(w), int(n), name) for w, n, name in (a.split(" ") for a in b"".join(acknowledged).decode().splitlines())
    ]
    print(json.dumps({"kills": done + WRITERS, "acknowledged": acks}))  # noqa: T201 -- what it is for


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]), *map(float, sys.argv[5:]))
