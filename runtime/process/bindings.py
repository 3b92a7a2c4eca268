"""Process-wide resources of a supervisor: signal handlers, service manager, directory lock, status socket.

Each is asked for by a parameter of its own, taken in this order, and given back in reverse.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

import anyio

from ..status.socket_path import in_full, path_for
from ..watch.watchdog import Watchdog
from .notify import Notifier
from .owner import own
from .signals import Signals

if TYPE_CHECKING:
    from ..status.handlers import Supervised


class Bindings:
    """The resources that one supervisor has taken. On the event loop's thread.

    Args:
        sup: the supervisor, which the status socket asks, and SIGUSR1 restarts.
    """

    def __init__(
        self,
        sup: Supervised,
        watchdog: Watchdog,
        *,
        exclusive: bool,
        exclusive_wait: float,
        signals: bool,
        status_socket: str | os.PathLike[str] | bool | None,
        notify: bool,
    ) -> None:
        self._sup, self._watchdog = sup, watchdog
        self._exclusive, self._exclusive_wait = exclusive, exclusive_wait
        self._signals, self._notify = signals, notify
        self._status_socket = in_full(status_socket)
        self._notifier: Notifier | None = None
        self._received: Signals | None = None
        self._taken = ExitStack()

    @property
    def signal(self) -> int:
        """The number of the last signal that asks to stop."""
        return self._received.received[-1] if self._received is not None and self._received.received else 0

    async def take(self, root: str, signalled: Callable[[int], object]) -> None:
        """Take what was asked for. A checkpoint; failed or cancelled, `give_back` gives back what was taken.

        Args:
            root: the directory of the sessions.
            signalled: called with 1, 2, … for each signal to stop.

        Raises:
            SessionsOwned: another supervisor has the directory.
            RuntimeError: signals belong to the main thread, and this is another one.
            StatusSocketError: the socket cannot be had.
        """
        if self._signals:
            self._received = self._taken.enter_context(Signals(required=True))
            self._received.pass_to(signalled, restart=lambda: self._sup.request_restart("SIGUSR1"))
        if self._notify:
            self._notifier = notifier = Notifier.from_environment()
            if notifier is not None:
                self._taken.callback(notifier.close)
                self._watchdog.alive = notifier.watchdog
                self._watchdog.alive_every_s = notifier.watchdog_interval_s or math.inf
                notifier.extend(self._exclusive_wait + self._sup.services_timeout)
        if self._exclusive:
            self._taken.callback((await own(root, self._exclusive_wait)).release)
        if self._status_socket is not None and self._status_socket is not False:
            from ..status.server import StatusServer  # noqa: PLC0415 -- most programs that embed one have no socket

            server = StatusServer(path_for(self._status_socket), self._sup)
            server.open()
            self._taken.callback(server.close)
        await anyio.lowlevel.checkpoint()

    def ready(self) -> None:
        """Report to the service manager that work is taken."""
        if self._notifier is not None:
            self._notifier.ready()

    def restarting(self) -> None:
        """Report to the service manager that work is not taken for a while."""
        if self._notifier is not None:
            self._notifier.reloading()

    def stopping(self) -> None:
        """Report to the service manager that work is not taken any more."""
        if self._notifier is not None:
            self._notifier.stopping()

    def give_back(self) -> None:
        """Give everything back, in reverse. Calling it again does nothing."""
        self._taken.close()
