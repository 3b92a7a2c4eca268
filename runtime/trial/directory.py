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
    # Without a name where the kernel can do that: a killed process leaves nothing behind.
    with tempfile.TemporaryFile(prefix=".lanes-", dir=directory, buffering=0) as file:
        left = _PROBE
        while left:
            left = left[file.write(left) :]
        os.fsync(file.fileno())
