"""Forks inside a lease; the child tries to write, then lives on until its input ends: `forking PATH asyncio|trio`.

Says `child: ` and what its append raised.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import anyio

from locks import Lease, LockRegistry


async def main(path: str) -> None:
    async with LockRegistry().lease(path) as lease:
        if os.fork() == 0:
            child(lease)
        await anyio.sleep_forever()


def child(lease: Lease) -> NoReturn:
    try:
        lease.append_sync({"by": "the child"})
        said = "appended"
    except BaseException as error:
        said = type(error).__name__
    os.write(1, f"child: {said}\n".encode())
    os.read(0, 1)
    os._exit(0)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], backend=sys.argv[2])
