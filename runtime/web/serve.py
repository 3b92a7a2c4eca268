"""The dashboard by itself, under uvicorn: `lanes web`, and `lanes run --web` on a thread of its own."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import uvicorn
from starlette.types import ASGIApp

from ..fleet.seen import Fleet
from ..usage_error import UsageError
from .app import Dashboard
from .fleet import FleetDashboard
from .guard import Guard
from .source import Outside
from .views import Views

_START_S = 10.0
_GRACE_S = 1
"""What open pages get when it ends: their streams have no end of their own."""


def listening(host: str, port: int, option: str) -> socket.socket:
    """A listening socket.

    Args:
        option: what the port was asked for with, for the error.

    Raises:
        UsageError: the address cannot be had.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--host: {host!r} cannot be listened at: {error}; allowed: an address of here") from error
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(100)
    except OSError as error:
        made.close()
        why = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be had at {host!r} ({error.strerror})"
        raise UsageError(f"{option}: {port} {why}; allowed: a free port, or 0 for any") from error
    return made


def url_of(listener: socket.socket, host: str) -> str:
    """Where a browser finds it."""
    port = listener.getsockname()[1]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def server_of(path: str | None, guard: Guard, *, show_content: bool) -> uvicorn.Server:
    """A server for the process that has this status socket."""
    return _server(Dashboard(Views(Outside(path), show_content=show_content), guard))


def server_of_fleet(fleet: Fleet, guard: Guard, *, show_content: bool) -> uvicorn.Server:
    """A server for several processes. It closes the fleet when it ends."""
    return _server(FleetDashboard(fleet, guard, show_content=show_content), lifespan="on")


def _server(app: ASGIApp, lifespan: Literal["on", "off"] = "off") -> uvicorn.Server:
    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="error",
            access_log=False,
            lifespan=lifespan,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=_GRACE_S,
        )
    )


@contextmanager
def beside(server: uvicorn.Server, listener: socket.socket) -> Iterator[None]:
    """Serve on a thread while the block runs, this process itself perhaps. The thread has an event loop of its own."""
    thread = threading.Thread(target=server.run, args=([listener],), name="lanes-web", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(_START_S)
        listener.close()
