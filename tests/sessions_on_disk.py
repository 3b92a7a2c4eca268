"""A directory of sessions as others leave it: lock files, what stands beside a session, and who holds it."""

from __future__ import annotations

import json
import os
import stat
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import PIPE

from locks import process
from locks.sidecar.payload import Terms, encode
from tests import ROOT, forks

RECORD = b'{"n": 1}\n'


def ours(**changed: object) -> bytes:
    """A lock file of lanes, as this process writes it, with some fields changed."""
    fields = json.loads(encode(Terms("main", 7, 3, 1_800_000), process.wall()))
    return json.dumps({**fields, **changed}).encode()


def foreign(pid: int | None = None, **changed: object) -> bytes:
    """A lock file of a foreign gateway; without a number, that of a process that lives."""
    fields = json.loads(ours(pid=os.getppid() if pid is None else pid, **changed))
    return json.dumps({name: fields[name] for name in ("pid", "createdAt", "maxHoldMs")}).encode()


DEAD = (1 << 31) - 1


def beside(path: str, end: str, data: bytes) -> None:
    Path(path + end).write_bytes(data)


def everything(directory: str | Path) -> dict[str, tuple[int, bytes, int]]:
    """Each file by name: its kind, content, and when it was changed."""
    found = {}
    for name in os.listdir(directory):
        path = Path(directory, name)
        with suppress(FileNotFoundError):  # a live process removes its lock files
            there = path.lstat()
            found[name] = (there.st_mode, path.read_bytes() if stat.S_ISREG(there.st_mode) else b"", there.st_mtime_ns)
    return found


@contextmanager
def holding(path: str, right: str, backend: str = "asyncio"):
    """Another process has a right of a session."""
    command, streams = ["-m", "tests.children.holder", path, right, backend], {"stdin": PIPE, "stdout": PIPE}
    with forks.python(command, cwd=ROOT, text=True, **streams) as child:
        try:
            assert child.stdout is not None
            assert "held\n" in iter(child.stdout.readline, "")
            yield child
        finally:
            child.kill()
