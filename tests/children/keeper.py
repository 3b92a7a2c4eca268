"""A gateway that keeps the sessions `a` and `b`, each with turn and write lease: `keeper DIRECTORY asyncio|trio`.

Says `kept` when it has them all and they are noted, and then does what it hears: `append` (to both; says `appended`),
`leave` (says `left NS`, by a clock that all processes share), or ends without a word to
anybody: `exit`, `abort`, `crash`.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
import time

import anyio
import structlog
from anyio import create_task_group, to_thread

from lanes import LaneSpec
from locks import LockRegistry
from runtime import Supervisor

KEYS = ("a", "b")
LANES = [LaneSpec("session:*", timeout=600.0)]


def say(line: str) -> None:
    os.write(1, line.encode() + b"\n")


async def main(directory: str) -> None:
    leave, leases = anyio.Event(), []

    async def keep(ctx) -> None:
        async with ctx.session.lease() as lease:
            await lease.append({"by": "keeper"})
            leases.append(lease)
            if len(leases) == len(KEYS):
                while sum(name.endswith(".turn") for name in os.listdir(directory)) < len(KEYS):
                    await anyio.sleep(0.002)
                say("kept")
            await leave.wait()

    async with (
        Supervisor(directory, lanes=LANES, registry=LockRegistry(sidecar=True)) as sup,
        create_task_group() as group,
    ):
        for key in KEYS:
            group.start_soon(sup.run, f"session:{key}", keep)
        while not leave.is_set():
            match (await to_thread.run_sync(sys.stdin.readline)).strip():
                case "append":
                    for lease in leases:
                        await lease.append({"by": "keeper"})
                    say("appended")
                case "leave":
                    say(f"left {time.monotonic_ns()}")
                    leave.set()
                case "exit":
                    os._exit(3)
                case "abort":
                    os.abort()
                case "crash":
                    ctypes.string_at(0)


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # standard output is for the parent
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    anyio.run(main, sys.argv[1], backend=sys.argv[2])
