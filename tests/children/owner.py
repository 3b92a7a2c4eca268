"""Owns a sessions directory: `owner ROOT [fork]`. Says `owned`, and does what it is told: `leave`, `_exit` or `abort`.

With `fork` it first forks a child, which says `child: ` and its process, and lives on until it is killed.
"""

from __future__ import annotations

import os
import resource
import signal
import sys

from runtime.process.owner import Ownership


def main(root: str, *how: str) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # `abort` is planned
    ownership = Ownership.take(root)
    if how and os.fork() == 0:
        os.write(1, f"child: {os.getpid()} {ownership!r}\n".encode())
        signal.alarm(120)  # it outlives nobody for longer
        signal.pause()
    os.write(1, b"owned\n")
    match sys.stdin.readline().strip():
        case "leave":
            ownership.release()
            os.write(1, b"left\n")
            sys.stdin.readline()
        case "_exit":
            os._exit(3)
        case "abort":
            os.abort()


if __name__ == "__main__":
    main(*sys.argv[1:])
