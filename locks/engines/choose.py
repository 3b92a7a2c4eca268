"""Which engine excludes processes from each other here."""

from __future__ import annotations

from functools import cache
from typing import Literal

from .. import _os
from .interface import LeaseEngine, ProcessLock
from .kernel import KernelEngine

EngineName = Literal["auto", "kernel", "filelock", "none"]
_METHODS = sorted(name for name in vars(ProcessLock) if not name.startswith("_"))
seen_whole: set[type] = set()
"""The types of locks that `check_lock` has found to have every method."""
NAMES = ("auto", "kernel", "filelock", "none")
_BYTE = 1 << 62


def engine_for(engine: EngineName | LeaseEngine) -> LeaseEngine | None:
    """The engine that a name stands for; an object is its own. `None` excludes within this process only.

    `auto` is the strongest that works here: kernel locks where they are what they should be, else `filelock`.

    Raises:
        ValueError: there is no such engine, or it does not work here.
    """
    if not isinstance(engine, str):
        made = not isinstance(engine, type)
        if made and callable(getattr(engine, "lock", None)) and isinstance(getattr(engine, "name", None), str):
            return engine
        raise ValueError(
            f"engine: {engine!r:.80} is no object with `lock` and `name`; allowed: {', '.join(NAMES)} or a LeaseEngine"
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


def check_lock(engine: LeaseEngine, lock: ProcessLock) -> None:
    """See that an engine's lock has what is asked of it; `Unordered` has all but three methods. Once per type will do.

    Raises:
        TypeError: it lacks some.
    """
    lacking = [name for name in _METHODS if not callable(getattr(lock, name, None))]
    if lacking:
        raise TypeError(f"engine: the locks of {engine.name!r} lack {', '.join(lacking)}; allowed: a ProcessLock")
    seen_whole.add(type(lock))


@cache
def kernel_locks_work() -> bool:
    """Whether two descriptors of one file exclude each other here, tried once on a temporary file.

    What counts is what happens, not the platform's name. Only locks that fail speak against themselves: a process that
    has no descriptor left, or nowhere to try, must not settle for an engine that all the others do not see. If it was
    wrong not to, its first lock says so.
    """
    import tempfile  # noqa: PLC0415 -- it brings many others along, and this is tried once

    if not _os.HAS_OFD_LOCKS:
        return False
    try:
        with (
            _os.standard_streams_taken(),
            tempfile.NamedTemporaryFile(prefix="lanes-probe-") as file,
            open(file.name, "r+b") as again,
        ):
            return _exclude_each_other(file.fileno(), again.fileno())
    except OSError:
        return True


def _exclude_each_other(first: int, second: int) -> bool:
    try:
        if not _os.ofd_lock(first, _BYTE) or _os.ofd_lock(second, _BYTE):
            return False
        if _os.ofd_conflict(second, _BYTE, 2) != _BYTE:
            return False
        _os.ofd_unlock(first, _BYTE)
        return _os.ofd_lock(second, _BYTE)
    except (OSError, ValueError):
        return False
