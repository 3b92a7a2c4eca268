"""Opens a status socket, forks, and dies; the child tells whether the kernel then refuses connections to it."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import warnings

import anyio

from runtime import Supervisor


def told(path: str, parent: int) -> str:
    """What becomes of a connection once the parent is dead."""
    while os.getppid() == parent:
        time.sleep(0.002)
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return "refused"
    return "taken"


async def main(path: str) -> None:
    async with Supervisor(path + ".d", status_socket=path):
        parent = os.getpid()
        warnings.simplefilter("ignore", DeprecationWarning)  # it forks with threads: that is what is tested
        if os.fork() == 0:
            sys.stdout.write(told(path, parent) + "\n")
            sys.stdout.flush()
            os._exit(0)
        os.kill(parent, signal.SIGKILL)


anyio.run(main, sys.argv[1])
