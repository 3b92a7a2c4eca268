"""The sessions directory of a run: usable, or refused with the reason before anything is started."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from ..usage_error import UsageError

_PROBE = b"x" * 4096


def prepare(given: str | None) -> str:
    """The directory, made when missing; without one, a temporary one that is kept.

    Raises:
        UsageError: it is a file, cannot be written to, or its disk is full.
    """
    if given is None:
        return tempfile.mkdtemp(prefix="lanes-")
    if not given or "\0" in given:
        raise UsageError(f"--sessions: {given!r} is not allowed; allowed: a directory")
    if Path(given).exists() and not Path(given).is_dir():
        raise UsageError(f"--sessions: {given!r} is no directory")
    try:
        Path(given).mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_something(given)
    except OSError as error:
        raise UsageError(f"--sessions: {given!r} cannot be used: {error.strerror or error}") from error
    return given


def _write_something(directory: str) -> None:
    """Whether a directory can be written to is only known by writing: root, full disks and quotas see to that."""
    fd, path = tempfile.mkstemp(prefix=".lanes-", dir=directory)
    try:
        left = _PROBE
        while left:
            left = left[os.write(fd, left) :]
        os.fsync(fd)
    finally:
        os.close(fd)
        Path(path).unlink()
