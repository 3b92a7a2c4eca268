"""`lanes web`: the dashboard of a process, in a browser."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from runtime.status.client import Client, NoProcess, locate

from ..trial.output import Output
from ..usage_error import UsageError
from . import fleet

_NEEDS = "lanes web needs the extra `web` ({}); allowed: with `pip install 'session-lanes[web]'`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What `lanes web` was asked for."""

    host: str
    port: int
    token: str | None
    allow_control: bool
    show_content: bool


def run(path: str | None, which: fleet.Which, options: Options) -> int:
    """Serve until Ctrl-C; returns the exit code.

    Args:
        path: the process's socket.
        which: the fleet to show instead.

    Raises:
        UsageError: there is no process to show, or the address, the port or the token cannot be used.
    """
    try:
        from ..web import guard, serve  # noqa: PLC0415 -- an extra
    except ImportError as error:
        raise UsageError(_NEEDS.format(error)) from error
    output = Output(json=False)
    if options.token is not None and not guard.is_good(options.token):
        given = f"has {len(options.token)} characters"
        raise UsageError(f"--token: {given}, which is not allowed; allowed: {guard.ALLOWED_TOKEN}")
    if options.token is None and not guard.is_local(options.host):
        raise UsageError(
            f"--host: {options.host!r} can be reached by others, which is not allowed without --token; "
            "allowed: 127.0.0.1, ::1, or a token"
        )
    if which.node is not None:
        raise UsageError(f"--node: {which.node!r} is a page of its own here; allowed: --store without it")
    several = fleet.fleet_of(path, which)
    found = _found(path) if several is None else ""
    token = options.token
    if token is None and (options.allow_control or options.show_content):
        token = secrets.token_urlsafe(24)  # a port of this machine is open to all its users
    allowed = guard.Guard(token, (), allow_control=options.allow_control, passing=options.token is None)
    with serve.listening(options.host, options.port, "--port") as listener:
        if several is None:
            server = serve.server_of(found, allowed, show_content=options.show_content)
        else:
            server = serve.server_of_fleet(several, allowed, show_content=options.show_content)
        entrance = "" if token is None else "?token=…" if token == options.token else f"?token={token}"
        output.line(f"dashboard: {serve.url_of(listener, options.host)}{entrance}   (Ctrl-C ends it)")
        server.run([listener])
    return int(output.failed)


def _found(path: str | None) -> str:
    """The socket of a process that answers.

    Raises:
        UsageError: there is none.
    """
    try:
        found = locate(path)
        Client(found).close()
    except NoProcess as error:
        raise UsageError(str(error)) from error
    return found
