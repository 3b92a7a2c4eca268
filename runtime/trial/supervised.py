"""The supervisor of a run of the harness, and what stands beside it: its status socket and its trace."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from lanes import LaneSpec
from locks._events import log
from runtime.export.trace import SupervisorHooks, Trace
from runtime.status.server import StatusServer
from runtime.status.socket_path import StatusSocketError, check_path, path_for
from runtime.supervisor import Supervisor

from ..usage_error import UsageError
from . import harness
from .output import Output
from .report import Result
from .scenario import Plan


def supervisor_of(
    result: Result, lanes: list[LaneSpec], todo: Plan | None, trace: Trace | None, **options: Any
) -> Supervisor:
    """The supervisor of a run, whose hooks fill the ledger."""
    hooks: SupervisorHooks = {"on_run_start": result.ledger.run_started, "on_run_end": result.ledger.run_ended}
    sup = Supervisor(
        result.sessions_dir,
        lanes=lanes,
        groups=todo.groups if todo is not None else (),
        **{"drain_timeout": harness.DRAIN_S, **options},
        **(hooks if trace is None else trace.hooks(**hooks)),
    )
    if trace is not None:
        trace.watch(sup.registry)
    return sup


def check_socket(given: str | None) -> None:
    """See that `--socket` can be a path of a socket.

    Raises:
        UsageError: it cannot.
    """
    try:
        _ = None if given is None else check_path(given)
    except StatusSocketError as error:
        raise _bad_socket(error) from error


def _bad_socket(error: Exception) -> UsageError:
    return UsageError(f"--socket: {str(error).removeprefix('status_socket: ')}")


@contextmanager
def opened_socket(given: str | None, sup: Supervisor) -> Iterator[str | None]:
    """Answer `lanes status` and its like while the block runs. On the event loop's thread.

    Returns:
        The path of the socket; `None` without one.

    Raises:
        UsageError: the place that was asked for cannot be had. Without the default one, it goes on, and logs that.
    """
    server: StatusServer | None = None
    try:
        server = StatusServer(path_for(True if given is None else given), sup)
        server.open()
    except (StatusSocketError, OSError) as error:
        if given is not None:
            raise _bad_socket(error) from error
        server = None
        log("status_unavailable", level="warning", error=str(error))
    try:
        yield server.path if server is not None else None
    finally:
        if server is not None:
            server.close()


def check_web(port: int | None, *, service: bool) -> socket.socket | None:
    """A listening socket for `--web`.

    Raises:
        UsageError: it cannot be had, or nothing could be shown there.
    """
    if port is None:
        return None
    if service:
        raise UsageError("--web: this scenario starts processes of its own; allowed: `lanes web` beside it")
    try:
        from ..web import serve  # noqa: PLC0415 -- an extra
    except ImportError as error:
        raise UsageError(f"--web needs the extra `web` ({error}); allowed: with `session-lanes[web]`") from error
    return serve.listening("127.0.0.1", port, "--web")


def opened_web(listener: socket.socket | None, path: str | None, output: Output) -> AbstractContextManager[None]:
    """Show the process that has this status socket in a browser, while the block runs."""
    if listener is None:
        return nullcontext()
    from ..web import guard, serve  # noqa: PLC0415 -- an extra

    if path is None:
        listener.close()
        output.line("no dashboard: it needs the status socket")
        return nullcontext()
    output.line(f"dashboard: {serve.url_of(listener, '127.0.0.1')}")
    server = serve.server_of(path, guard.Guard(None, (), allow_control=False), show_content=False)
    return serve.beside(server, listener)


def opened_trace(path: str | None) -> Trace | nullcontext[None]:
    """Where what ran is written to, if anywhere.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        return nullcontext() if path is None else Trace(path)
    except (OSError, ValueError) as error:
        why = (isinstance(error, OSError) and error.strerror) or error
        raise UsageError(f"--trace: {path!r} cannot be written: {why}; allowed: a file") from error
