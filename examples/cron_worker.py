"""A worker that does its work by the clock, and no framework: what a crontab does, without what goes wrong there.

    pip install 'session-lanes[cron]'
    python -m examples.cron_worker jobs/

Each instant's job is done once, over restarts too: what was missed while no worker ran is done `once` for all. A job
that fails is tried again, then parked; one that hangs ends at its deadline; one that still runs when it is due again is
not started twice (`capacity=1`). A job that was cut off by a crash is done again (`repeat=True`), for all that it does
can be done twice.

The process is the supervisor's: Ctrl-C and SIGTERM let running jobs finish for `drain_timeout` seconds, a second signal
cancels them. `notify=True` reports to systemd (`Type=notify`), and `lanes status` asks the worker from outside.
`lanes inbox list jobs/` shows what was done, `lanes inbox requeue jobs/ ID` does it again.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import anyio

from lanes import LaneSpec, Message, RetrySpec, RunContext
from runtime import Inbox, Schedule, Supervisor
from runtime.log import configure

SCHEDULES = [
    Schedule("reports", {"job": "report"}, cron="0 9 * * 1-5", timezone="Europe/Berlin", missed="once"),
    Schedule("tidying", {"job": "tidy"}, every=float(os.environ.get("TIDY_EVERY_S", "3600")), jitter=0.1),
]


async def report(ctx: RunContext, messages: Sequence[Message]) -> str:
    """Write the report that a message asks for."""
    await anyio.sleep(0.05)
    return "written"


async def tidy(ctx: RunContext, messages: Sequence[Message]) -> str:
    """Run a program as a tool: it ends with the run, with all that it has started."""
    done = await ctx.run_process([sys.executable, "-c", "print('tidy')"])
    return done.stdout.decode().strip()


LANES = [
    LaneSpec("reports", handler=report, timeout=600, repeat=True, retry=RetrySpec(attempts=3, wait=60)),
    LaneSpec("tidying", handler=tidy, timeout=60, repeat=True, queue_limit=1, when_full="drop_oldest"),
]


async def main(directory: str) -> None:
    """Work until a signal stops the process."""
    async with Supervisor(
        directory,
        lanes=LANES,
        inbox=Inbox(schedules=SCHEDULES),
        signals=True,
        notify=True,
        status_socket=True,
        drain_timeout=30,
    ):
        await anyio.sleep_forever()  # a signal cancels this block


if __name__ == "__main__":
    configure("console")
    anyio.run(main, sys.argv[1] if sys.argv[1:] else "jobs")
