"""Receives signals: `signalled early|frozen|fork asyncio|trio`.

- `early` says `entered`, waits for a line without a loop, then says in the loop what it is told, until told twice.
- `frozen` says `frozen` in a loop that it does not let go of.
- `fork` says which signal has ended a child that it has forked in the loop, and how many itself has received.
"""

from __future__ import annotations

import os
import signal
import sys
import time

import anyio

from runtime.process.signals import Signals


def say(line: str) -> None:
    os.write(1, line.encode() + b"\n")


async def early(signals: Signals) -> None:
    told = anyio.Event()

    def tell(count: int) -> None:
        say(f"told {count}")
        if count == 2:
            told.set()

    signals.pass_to(tell, restart=lambda: say("restart"))
    await told.wait()


async def frozen(signals: Signals) -> None:
    signals.pass_to(lambda count: say("never told"))
    say("frozen")
    while True:
        time.sleep(60)  # noqa: ASYNC251 -- on purpose


async def fork(signals: Signals) -> None:
    signals.pass_to(lambda count: say("never told"))
    fork_and_terminate()
    say(f"{len(signals.received)} received")


def fork_and_terminate() -> None:
    ours, its = os.pipe()
    if (child := os.fork()) == 0:
        signal.alarm(30)  # it outlives nobody for long
        os.write(its, b"!")  # a signal that comes before Python is itself again would be lost
        signal.pause()
    os.read(ours, 1)
    os.kill(child, signal.SIGTERM)
    _, status = os.waitpid(child, 0)
    say(f"child ended by {os.WTERMSIG(status)}")


def main(what: str, backend: str) -> None:
    with Signals() as signals:
        if what == "early":
            say("entered")
            sys.stdin.readline()
        anyio.run({"early": early, "frozen": frozen, "fork": fork}[what], signals, backend=backend)
    say("left")


if __name__ == "__main__":
    main(*sys.argv[1:])
