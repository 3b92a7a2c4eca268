"""What the tests inherit from whoever starts them, and what they need instead.

A process hands on to its children which signals are ignored or blocked, its `umask` and its environment. Under `nohup`
SIGHUP is ignored, in the background of a script SIGINT and SIGQUIT are, and both go on to each child that a test starts
in order to send it such a signal. `as_in_a_terminal` gives the process that runs the tests, and so its children, what a
shell in a terminal gives.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

HANDED_ON = (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM)
"""Signals that a child gets with their default, because this process has a handler that does nothing."""

UNWANTED = (
    "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "CLICOLOR", "CLICOLOR_FORCE",
    "LANES_SOCKET", "LANES_STORE", "LANES_SCHEMA", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID",
    "PYTHONWARNINGS", "PYTHONOPTIMIZE", "PYTHONDEVMODE", "PYTHONASYNCIODEBUG", "PYTHONIOENCODING", "PYTEST_ADDOPTS",
    "PYTHONDONTWRITEBYTECODE",
    "PGHOST", "PGHOSTADDR", "PGPORT", "PGDATABASE", "PGUSER", "PGPASSWORD", "PGPASSFILE", "PGSERVICE", "PGSERVICEFILE",
    "PGOPTIONS", "PGAPPNAME", "PGSSLMODE", "PGSSLNEGOTIATION", "PGGSSENCMODE", "PGCHANNELBINDING", "PGREQUIREAUTH",
    "PGCONNECT_TIMEOUT", "PGTARGETSESSIONATTRS", "PGLOADBALANCEHOSTS", "PGCLIENTENCODING", "PGDATESTYLE", "PGTZ",
)  # fmt: skip
"""Variables that change what a program prints or does, or make each child compile all that it imports. A test that is
about one of them sets it itself."""


@contextmanager
def as_in_a_terminal() -> Iterator[None]:
    """Signals, `umask` and environment as a shell in a terminal gives them, for the process that runs the tests.

    A signal that is ignored here harms this process no more than before: it gets a handler that does nothing, which a
    new program does not inherit. So `nohup` keeps its effect on the tests. SIGINT gets Python's own handler.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # nothing can be set here
        return
    ignored = [number for number in HANDED_ON if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, _deaf)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        ignored.append(signal.SIGINT)
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:  # else no exit code of a child is known
        ignored.append(signal.SIGCHLD)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    blocked = signal.pthread_sigmask(signal.SIG_SETMASK, ())
    mask = os.umask(0o022)
    kept = {name: os.environ.pop(name) for name in UNWANTED if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
        os.umask(mask)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)


def _deaf(number: int, frame: FrameType | None) -> None:
    """Hears a signal, and does nothing."""
