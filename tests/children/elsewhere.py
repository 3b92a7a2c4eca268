"""Works on a session where the system offers less than Linux: `elsewhere PATH macos|windows asyncio|trio`.

What the platform lacks is taken out of the modules that `locks` is going to import. Whatever was imported before, the
event loops and `filelock` above all, keeps what it needs in order to run here.

Says which engine was chosen and whether it sees an operating system without the rest, then `held` while it has turn and
lease, and, when it has heard a line, `left`; then the records of the session, as one line of JSON.
"""

from __future__ import annotations

import asyncio
import fcntl
import importlib
import json
import os
import socket
import sys
import tempfile
from types import ModuleType

import anyio.lowlevel
import filelock
import msgspec
import psutil
import structlog
import trio
from anyio import to_thread

LOADED = (asyncio, anyio, filelock, msgspec, psutil, structlog, tempfile, trio)
"""With all that they import themselves, and the two event loops' sides of anyio."""
importlib.import_module("anyio._backends._asyncio")
importlib.import_module("anyio._backends._trio")

MACOS = {
    os: "fdatasync posix_fadvise posix_fallocate memfd_create eventfd pidfd_open pipe2 sched_getaffinity O_DIRECT"
    " O_LARGEFILE O_NOATIME O_PATH O_RSYNC O_TMPFILE",
    fcntl: "F_OFD_GETLK F_OFD_SETLK F_OFD_SETLKW F_SETLEASE F_GETLEASE F_NOTIFY",
    socket: "SOCK_CLOEXEC SOCK_NONBLOCK AF_NETLINK SO_PEERCRED",
}
WINDOWS = {
    os: MACOS[os] + " fchdir fchmod fchown fork forkpty fstatvfs getegid geteuid getgid getgroups getloadavg getpgid"
    " getuid lchown lockf mkfifo openpty pread preadv pwrite pwritev register_at_fork sendfile setsid statvfs sync"
    " sysconf uname O_ACCMODE O_ASYNC O_CLOEXEC O_DIRECTORY O_DSYNC O_NDELAY O_NOCTTY O_NOFOLLOW O_NONBLOCK O_SYNC",
    socket: MACOS[socket] + " AF_UNIX",
}
ABSENT = ("fcntl", "grp", "pwd", "resource", "termios", "uvloop")
"""Modules that Windows has not got."""


def less(module: ModuleType, names: str, **others: object) -> None:
    """Let whoever imports a module from now on find it without some names, and with others."""
    view = ModuleType(module.__name__, module.__doc__)
    view.__dict__.update({name: value for name, value in vars(module).items() if name not in names.split()}, **others)
    sys.modules[module.__name__] = view


def say(line: str) -> None:
    os.write(1, line.encode() + b"\n")


def tear(path: str) -> None:
    with open(path, "ab") as file:
        file.write(b'{"n": "torn')


async def main(path: str) -> None:
    locks = importlib.import_module("locks")
    registry, other = locks.LockRegistry(max_hold=60.0), locks.LockRegistry(engine="filelock")
    say(f"engine={registry.engine}")

    async with registry.turn(path) as turn, registry.lease(path) as lease:
        await turn.append({"n": 1})
        await to_thread.run_sync(lease.append_sync, {"n": 2})
        try:
            async with other.lease(path, wait_timeout=0.01):
                say("no exclusion")
        except locks.LeaseTimeout:
            say("held")
        await to_thread.run_sync(sys.stdin.readline)
    say("left")

    async with registry.lease(path) as lease:
        tear(path)
        await lease.append({"n": 3})
    try:
        async with registry.lease(path) as lease:
            registry.revoke(path, "by hand")
            await anyio.lowlevel.checkpoint()
    except locks.Revoked:
        await other.append(path, {"n": 4})
    say(json.dumps(await registry.read(path, on_error="raise")))


if __name__ == "__main__":
    _, path, platform, backend = sys.argv
    if platform == "windows":
        less(os, WINDOWS[os], name="nt", O_BINARY=0)
        less(socket, WINDOWS[socket])
        for absent in ABSENT:
            sys.modules[absent] = None  # type: ignore[assignment]  # how the import system is told that there is none
    else:
        for module, names in MACOS.items():
            less(module, names)
    less(sys, "", platform={"macos": "darwin", "windows": "win32"}[platform])
    anyio.run(main, path, backend=backend)
