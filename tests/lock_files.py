"""Lock files that tests put beside a session: ours, of a foreign gateway, and what is none."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

from locks import process
from locks.sidecar.payload import Terms, encode, parse

TERMS = Terms("session:a", 17, 3, 302_000)
ODD = ["symlink", "dangling symlink", "directory", "fifo", "socket", "huge"]


def foreign(pid: int, *, created_at: float = 0.0, **fields: object) -> bytes:
    """The lock file of a foreign gateway, made `created_at` seconds from now."""
    read = parse(encode(TERMS, process.wall() + created_at))
    assert read is not None and read.created_at is not None
    instant = json.loads(encode(TERMS, read.created_at + 0.0005))["createdAt"]
    known = {"pid": pid, "createdAt": instant, "maxHoldMs": 300_000, "starttime": process.starttime(pid), **fields}
    return json.dumps({key: value for key, value in known.items() if value is not None}, indent=2).encode() + b"\n"


def dead() -> int:
    """The number of a process that has ended."""
    with subprocess.Popen(["true"]) as child:
        return child.pid


def ours(**fields: object) -> bytes:
    """A lock file of lanes, with some fields changed."""
    return json.dumps({**json.loads(encode(TERMS, process.wall())), **fields}).encode()


def put(path: Path, kind: str) -> None:
    """Put something at `path` that is no small regular file."""
    match kind:
        case "symlink":
            path.with_name("elsewhere").write_bytes(b"precious")
            path.symlink_to(path.with_name("elsewhere"))
        case "dangling symlink":
            path.symlink_to(path.with_name("nowhere"))
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as bound, pytest.MonkeyPatch.context() as patch:
                patch.chdir(path.parent)  # its name must be short
                bound.bind(path.name)
        case "huge":
            path.touch()
            os.truncate(path, 1 << 30)
