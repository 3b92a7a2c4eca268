"""systemd's notify protocol: report to the service manager what this process does.

The whole protocol is a datagram of `NAME=value` lines to the socket that `NOTIFY_SOCKET` names; a path, or `@` and a
name in Linux's abstract namespace. (`vsock:`, for virtual machines, is not spoken.)

Every message may get lost: the manager may be gone, or its queue full, and nothing here waits for it. So every method
returns whether the message was handed over, and none raises.

The environment is left as it is, so child programs see `NOTIFY_SOCKET` too. systemd listens to the main process only
(`NotifyAccess=main`), and `WATCHDOG_PID` says which process its watchdog waits for. A forked child that is to keep
quiet must not be given the notifier.

Sources: sd_notify(3), sd_watchdog_enabled(3), systemd.service(5).
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping
from typing import Self

from locks import _clock, _os
from locks._events import log

_LONGEST_PATH = 107  # bytes, with which a `sockaddr_un` ends in the zero that a path needs; an abstract name does not
_LONGEST_STATUS = 1000
_LARGEST_USEC = (1 << 64) - 2  # the largest number of all stands for "never"
_LONGEST_EXTENSION_S = 10 * 366 * 86400.0


class Notifier:
    """Sends to the service manager that has started this process. Callable from any thread.

    Its maker closes it. It keeps one descriptor, so that it can send also when the process has none left.
    """

    watchdog_interval_s: float | None
    """How often `watchdog` has to be called: twice as often as the manager loses patience. `None`: it does not wait."""

    def __init__(self, address: str | bytes, watchdog_s: float | None = None) -> None:
        self.watchdog_interval_s = None if watchdog_s is None else watchdog_s / 2
        self._address = address
        self._failed = False
        self._socket: socket.socket | None = _os.unix_socket(socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def __repr__(self) -> str:
        watchdog = "" if self.watchdog_interval_s is None else f", watchdog every {self.watchdog_interval_s:g} s"
        return f"<Notifier to {self._address!r}{watchdog}{', closed' if self._socket is None else ''}>"

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Self | None:
        """The one that the environment names; `None` without a service manager that listens. Never raises.

        Values that cannot be used are logged, `notify_unusable`; then there is none.
        """
        if not (given := environ.get("NOTIFY_SOCKET")):
            return None
        try:
            return cls(_address(given), _watchdog_s(environ))
        except (ValueError, OSError) as error:
            log("notify_unusable", level="warning", error=str(error))
            return None

    def ready(self) -> bool:
        """Start-up, or a reload, is complete."""
        return self._send("READY=1")

    def reloading(self) -> bool:
        """The process begins to reload. `ready` must follow."""
        return self._send(f"RELOADING=1\nMONOTONIC_USEC={int(_clock.clock.now() * 1e6)}")

    def stopping(self) -> bool:
        """The process begins to stop."""
        return self._send("STOPPING=1")

    def watchdog(self) -> bool:
        """The process still works."""
        return self._send("WATCHDOG=1")

    def status(self, text: str) -> bool:
        """A line for people, shown by `systemctl status`; line breaks become blanks, and what is long is cut."""
        return self._send(f"STATUS={' '.join(text[:_LONGEST_STATUS].split())}")

    def extend(self, seconds: float) -> bool:
        """The present step, starting or stopping, takes up to `seconds` more, from now. Repeat it before they pass."""
        return self._send(f"EXTEND_TIMEOUT_USEC={int(min(max(0.0, seconds), _LONGEST_EXTENSION_S) * 1e6)}")

    def close(self) -> None:
        """Close the descriptor. Later messages are not sent. Calling it again does nothing."""
        closing, self._socket = self._socket, None
        if closing is not None:
            with contextlib.suppress(OSError):  # nothing is lost by it
                closing.close()

    def _send(self, message: str) -> bool:
        speaking = self._socket
        if speaking is None:
            return False
        try:
            # Addressed each time: a manager that was restarted has another socket of that name.
            speaking.sendto(message.encode(errors="replace"), self._address)
        except OSError as error:
            if not self._failed:
                self._failed = True  # a watchdog that is fed in vain would fill the log
                log("notify_failed", level="warning", message=message, error=error.strerror or str(error))
            return False
        return True


def _address(given: str) -> str | bytes:
    abstract = given.startswith("@")
    if len(given) < 2 or not (abstract or given.startswith("/")):
        raise ValueError(f"NOTIFY_SOCKET: {given!r:.80} is not allowed; allowed: an absolute path, or @ and a name")
    if len(os.fsencode(given)) > _LONGEST_PATH + abstract:
        raise ValueError(f"NOTIFY_SOCKET: {given!r:.80} is too long; allowed: {_LONGEST_PATH + abstract} bytes")
    if "\0" in given:
        raise ValueError(f"NOTIFY_SOCKET: {given!r:.80} has a zero byte; allowed: an absolute path, or @ and a name")
    if not hasattr(socket, "AF_UNIX"):
        raise ValueError(f"NOTIFY_SOCKET: {given!r:.80} cannot be reached: there are no Unix sockets here")
    return b"\0" + os.fsencode(given[1:]) if abstract else given


def _watchdog_s(environ: Mapping[str, str]) -> float | None:
    """The patience of the manager in seconds; `None` when it has no watchdog for this process."""
    usec = environ.get("WATCHDOG_USEC")
    if not usec:
        return None
    patience_s = _number("WATCHDOG_USEC", usec) / 1e6
    pid = environ.get("WATCHDOG_PID")
    return patience_s if not pid or _number("WATCHDOG_PID", pid) == os.getpid() else None


def _number(name: str, given: str) -> int:
    if given.isascii() and given.isdecimal() and len(given) <= 20 and 0 < int(given) <= _LARGEST_USEC:
        return int(given)
    raise ValueError(f"{name}: {given!r:.80} is not allowed; allowed: a whole number from 1 to {_LARGEST_USEC}")
