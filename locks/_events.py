"""Log lines of all floors: an event name in snake case plus fields, through structlog.

A log line never harms what it reports on: an exception in the host's logging set-up is swallowed after one note on
stderr, which may have no reader. Only what ends the process, `KeyboardInterrupt` and `SystemExit`, goes on to
the caller, as it does from any other line.

structlog is imported by the first registry or event, not with this module, because that takes longer than a
command line may take to answer `--help`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from . import _effects

_noted = False

observers: tuple[Callable[[str, str, Mapping[str, Any]], object], ...] = ()
"""Called with each event, its level and its fields, on the thread that logs it, whatever the host's set-up shows.
Replaced whole, never changed."""


def prepare() -> None:
    """Import what the first event needs: no event loop should stand still for the tens of milliseconds that takes."""
    with contextlib.suppress(Exception):
        import structlog  # noqa: F401, PLC0415 -- see the module's text


def log(event: str, /, *, level: str = "info", **fields: Any) -> None:
    """Write one event, after the change of state that the caller may be in. Callable from any thread.

    No fault of the logging set-up is raised.
    """
    _effects.after(_write, event, level, fields)


def _write(event: str, level: str, fields: Mapping[str, Any]) -> None:
    for observer in observers:
        try:
            observer(event, level, fields)
        except Exception as error:
            _note(error)
    try:
        import structlog  # noqa: PLC0415 -- see the module's text

        getattr(structlog.get_logger("lanes"), level)(event, **fields)
    except Exception as error:
        _note(error)


def _note(error: Exception) -> None:
    """Say once per process on stderr, if that is open, that log lines are lost."""
    global _noted  # noqa: PLW0603 -- one note per process is the point
    if _noted:
        return
    _noted = True
    with contextlib.suppress(Exception):  # closed, as a daemon's is; its reader has gone; the disk is full
        print(f"lanes: cannot write log lines: {described(error)}", file=sys.stderr)


def described(error: BaseException) -> str:
    """An exception in words; never raises, whatever its `__str__` does."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return f"{type(error).__name__} (it cannot be printed)"
