"""Which engine excludes processes from each other here."""

from __future__ import annotations

import os
import tempfile
from functools import cache
from typing import Literal

from .. import _os
from .kernel import KernelEngine
from .seam import LeaseEngine

EngineName = Literal["auto", "kernel", "filelock", "none"]
NAMES = ("auto", "kernel", "filelock", "none")


def engine_for(engine: EngineName | LeaseEngine) -> LeaseEngine | None:
    """The engine that a name stands for; an object is its own. `None` excludes within this process only.

    `auto` is the strongest that works here: kernel locks where they are what they should be, else `filelock`.

    Raises:
        ValueError: there is no such engine, or it does not work here.
    """
    if not isinstance(engine, str):
        if callable(getattr(engine, "lock", None)) and isinstance(getattr(engine, "name", None), str):
            return engine
        raise ValueError(
            f"engine: {engine!r:.80} has no `lock` and `name`; allowed: {', '.join(NAMES)} or a LeaseEngine"
        )
    if engine not in NAMES:
        raise ValueError(f"engine: {engine!r} is unknown; allowed: {', '.join(NAMES)} or a LeaseEngine")
    if engine == "none":
        return None
    if engine != "filelock" and kernel_locks_work():
        return KernelEngine()
    if engine == "kernel":
        raise ValueError("engine: 'kernel' needs Linux open-file-description locks; allowed here: 'filelock', 'none'")
    from .filelock import FileLockEngine  # noqa: PLC0415 -- only where it is needed

    return FileLockEngine()


@cache
def kernel_locks_work() -> bool:
    """Whether two descriptors of one file exclude each other here, tried once on a temporary file."""
    first = second = -1
    try:
        first, path = tempfile.mkstemp(prefix="lanes-probe-")
        try:
            second = os.open(path, os.O_RDWR)
        finally:
            os.unlink(path)
        if not _os.ofd_lock(first, 1 << 62) or _os.ofd_lock(second, 1 << 62):
            return False
        if _os.ofd_conflict(second, 1 << 62, 2) != 1 << 62:
            return False
        _os.ofd_unlock(first, 1 << 62)
        return _os.ofd_lock(second, 1 << 62)
    except (OSError, AttributeError, ValueError):
        return False
    finally:
        for fd in (first, second):
            if fd >= 0:
                os.close(fd)
