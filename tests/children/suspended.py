"""Holds a lease in a process that is stopped and goes on: `suspended PATH asyncio|trio MAX_HOLD GRACE own|scope`.

Says `held`, and when the block is cancelled `cancelled`, then what its last append did, how the block ended, and
`left`. The block is ended by the lease's own limit or by that of an enclosing scope.
"""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext

import anyio
from anyio import CancelScope, move_on_after

from locks import LockError, LockRegistry


def say(line: str) -> None:
    os.write(1, line.encode() + b"\n")


async def main(path: str, max_hold: float, grace: float, by: str) -> None:
    registry = LockRegistry(max_hold=max_hold if by == "own" else 300.0, grace=grace)
    try:
        with move_on_after(max_hold) if by == "scope" else nullcontext():
            async with registry.lease(path) as lease:
                await lease.append({"by": "suspended", "n": 1})
                say("held")
                try:
                    await anyio.sleep_forever()
                finally:
                    say("cancelled")
                    with CancelScope(shield=True):
                        try:
                            await lease.append({"by": "suspended", "n": 2})
                            say("append went through")
                        except LockError as error:
                            say(f"append: {type(error).__name__}")
    except LockError as error:
        say(f"block: {type(error).__name__}")
    say(f"left revoked={registry.statistics().revoked}")


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], float(sys.argv[3]), float(sys.argv[4]), sys.argv[5], backend=sys.argv[2])
