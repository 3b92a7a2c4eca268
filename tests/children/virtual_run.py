"""The command `lanes` in virtual time, with a defect: `virtual_run PATCH ARGS…`, PATCH being Python code.

What is done when is then a matter of the scenario alone: no other process on the machine changes the order of a message
that comes 10 ms after another one. A body that swallows its cancellation waits in a shield here: one that is cancelled
again and again would spin without end in a time that stands still meanwhile.
"""

from __future__ import annotations

import sys
from typing import Any

import anyio

from runtime.cli import main
from runtime.testing import virtual
from runtime.trial.model_bodies import ModelBodies
from runtime.trial.traffic import Line

real_run = anyio.run


async def swallow(self: ModelBodies, line: Line) -> None:
    """Go on for as long as the line says, whatever comes."""
    with anyio.CancelScope(shield=True):
        await anyio.sleep(line.hold or 0.0)


def run_virtually(fn: Any, *args: Any, backend: str = "asyncio") -> Any:
    """As `anyio.run`."""
    with virtual.virtual_time() as clock:
        return real_run(fn, *args, backend=backend, backend_options=clock.backend_options(backend))


if __name__ == "__main__":
    ModelBodies._swallow = swallow  # type: ignore[method-assign]
    exec(sys.argv[1])  # the defect is the argument of a test
    anyio.run = run_virtually  # type: ignore[assignment]
    sys.exit(main(sys.argv[2:]))
