"""Small disks: mounted ones where that can be done, and files that cannot grow where not."""

from __future__ import annotations

import errno
import functools
import os
import subprocess
import tempfile
from functools import partial

import pytest

from locks import _os


def run(*command: object) -> bool:
    """Whether a command worked."""
    try:
        return subprocess.run(list(map(str, command)), capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def must_run(*command: object) -> None:
    assert run(*command), command


@functools.cache
def can_mount() -> bool:
    with tempfile.TemporaryDirectory() as place:
        return run("mount", "-t", "tmpfs", "-o", "size=16k", "none", place) and run("umount", place)


DISKS = ["quota", "tmpfs"] if can_mount() else ["quota"]


@pytest.fixture(params=DISKS)
def small_disk(request, tmp_path, monkeypatch):
    """A directory of 64 KiB: a mounted one, or, where nothing can be mounted, files that cannot grow beyond that.

    Yields it and what gives or takes room there: `fill(room)` leaves so many bytes.
    """
    disk = tmp_path / "disk"
    disk.mkdir()
    if request.param == "tmpfs":
        assert run("mount", "-t", "tmpfs", "-o", "size=64k", "none", disk)
        filler = disk / "filler"

        def fill(room):
            filler.write_bytes(b"")
            free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize
            filler.write_bytes(b"x" * max(0, free - room))

        yield disk, fill
        run("umount", "-l", disk)
        return
    room_left, write = [1 << 16], _os.write

    def limited(fd, data):
        if not room_left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        length = write(fd, data[: room_left[0]])
        room_left[0] -= length
        return length

    monkeypatch.setattr(_os, "write", limited)
    yield disk, partial(room_left.__setitem__, 0)
