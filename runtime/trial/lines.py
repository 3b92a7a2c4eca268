"""Progress for a pipe: a plain line a second."""

from __future__ import annotations

import time

import anyio

from lanes import RunState
from runtime.supervisor import Supervisor

from .harness import Display
from .ledger import Ledger
from .output import Output
from .report import policies

_EVERY_S = 1.0


def plain(output: Output, ledger: Ledger) -> Display:
    """A display that prints how far it is; silent when standard output is for a machine."""

    async def serve(sup: Supervisor) -> None:
        started = time.monotonic()
        while not output.json:
            await anyio.sleep(_EVERY_S)
            output.line(progress(sup, ledger, time.monotonic() - started))

    return serve


def progress(sup: Supervisor, ledger: Ledger, elapsed_s: float) -> str:
    """How far it is, in one line."""
    now, told = sup.statistics(), ledger.told
    done = "".join(f"{number} {name}, " for name, number in policies(now, ledger).items())
    return (
        f"t={elapsed_s:.1f}s  {now.runs[RunState.RUNNING]} running, {now.runs[RunState.QUEUED]} queued, "
        f"{told['answered']} answered, {told['timed_out']} timed out, {told['failed']} failed, "
        f"{done}{now.abandoned} abandoned, loop lag p99 {now.loop_lag.p99 * 1000:.1f} ms"
    )
