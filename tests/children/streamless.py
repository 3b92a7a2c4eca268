"""Works on sessions without standard streams: `streamless DIRECTORY CLOSED WHEN asyncio|trio REPORT`.

CLOSED: the numbers of the streams to close, as in `12`. WHEN: `early`, before anything is imported, or `late`, before
the first session is opened. A thread of the program prints all the time. REPORT: the file for what went wrong: a line
for each stream whose number was seen to lead to a file of ours, and for each record that was not acknowledged.
"""

from __future__ import annotations

import os
import sys

DIRECTORY, CLOSED, WHEN, BACKEND, REPORT = sys.argv[1:]
NOISE = b"NOISE of some library"


def close() -> None:
    for number in CLOSED:
        os.close(int(number))


report = os.open(REPORT, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
if report < 10:
    report = os.dup2(report, 10)
if WHEN == "early":
    close()

import contextlib  # noqa: E402 -- what is imported may open files, too
import threading  # noqa: E402
import time  # noqa: E402
from contextlib import AsyncExitStack  # noqa: E402

import anyio  # noqa: E402
import structlog  # noqa: E402
from anyio import to_thread  # noqa: E402

from lanes import LaneSpec  # noqa: E402
from locks import LockRegistry, _os  # noqa: E402
from locks.doctor.mending import mend  # noqa: E402
from runtime import Supervisor  # noqa: E402
from runtime.export.trace import Trace  # noqa: E402
from runtime.status.client import Client  # noqa: E402


def say(line: str) -> None:
    os.write(report, line.encode() + b"\n")


def print_all_the_time(ended: threading.Event, told: set[str]) -> None:
    while not ended.is_set():
        for number in map(int, CLOSED):
            with contextlib.suppress(OSError):
                leads_to = os.readlink(f"/proc/self/fd/{number}")
                # What `psutil` reads in /proc for a moment can be neither written nor ours; nor can an epoll.
                ours = leads_to.startswith((DIRECTORY, "socket:", "pipe:"))
                if ours and leads_to not in told:
                    told.add(leads_to)
                    say(f"{number} leads to {leads_to}")
            with contextlib.suppress(OSError):
                os.write(number, NOISE)
        time.sleep(0)


async def answer(ctx, messages):
    for message in messages:
        await ctx.session.append({"text": message.body})
    result = await ctx.run_process(["cat"], input=b"given", check=True)
    if result.stdout != b"given":
        say(f"the process read {result.stdout!r}")


async def work() -> None:
    of_the_loop = {os.path.realpath(f"/proc/self/fd/{number}").rpartition("/")[2] for number in range(3)}  # noqa: ASYNC240 -- on the spot
    registry = LockRegistry(durability="sync")
    if WHEN == "late":
        close()
        await registry.append(os.path.join(DIRECTORY, "first.jsonl"), {"n": 0})
    async with AsyncExitStack() as stack:
        trace = stack.enter_context(Trace(os.path.join(DIRECTORY, "trace.json")))
        sup = Supervisor(
            DIRECTORY,
            lanes=[LaneSpec("session:*", handler=answer)],
            registry=registry,
            exclusive=True,
            status_socket=os.path.join(DIRECTORY, "status.sock"),
            **trace.hooks(),
        )
        trace.watch(registry)
        await stack.enter_async_context(sup)
        ended = threading.Event()
        printing = threading.Thread(target=print_all_the_time, args=(ended, of_the_loop))
        printing.start()
        try:
            for n in range(10):
                await use(sup, registry, n)
        finally:
            ended.set()
            printing.join()


async def use(sup: Supervisor, registry: LockRegistry, n: int) -> None:
    path = os.path.join(DIRECTORY, f"plain-{n}.jsonl")
    async with registry.turn(path), registry.lease(path) as lease:
        await lease.append({"n": 1})
        fd = _os.open(path, os.O_WRONLY | os.O_APPEND)  # this program's own files should not be found out either
        os.write(fd, b'{"torn')
        os.close(fd)
        await lease.append({"n": 2})
        await to_thread.run_sync(lease.append_sync, {"n": 3})
        await lease.replace([{"n": 4}], through=(await lease.read()).position)
        if await registry.read(path) != [{"n": 4}]:
            say(f"{path} is not what was written")
    await to_thread.run_sync(mend, path)
    outcome = await sup.post(f"session:{n}", "hello").wait()
    if outcome.state != "done":
        say(f"the run ended {outcome.state}: {outcome.traceback}")
    await sup.reset(str(n), archive=bool(n % 2))
    await to_thread.run_sync(lambda: Client(os.path.join(DIRECTORY, "status.sock")).close())


structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
try:
    anyio.run(work, backend=BACKEND)
except BaseException as error:
    say(f"{type(error).__name__}: {error}")
    raise
say("done")
