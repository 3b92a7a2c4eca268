"""The other end of the status socket: finding a process, and asking it. For commands: it blocks, in a bounded way."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from locks import _os

from . import links, protocol, socket_path

ANSWERS_WITHIN_S = 8.0
"""Longer than a server waits for a loop that is frozen."""
_FOUND_WITHIN_S = 1.0
_AT_A_TIME = 16
_CHUNK = 256 * 1024
_LONGEST_ANSWER = 64 * 1024 * 1024


class NoProcess(Exception):
    """There is no process to ask, or there are several. The message is one line."""


class NoAnswer(Exception):
    """A process was asked, and does not answer. The message is one line."""


@dataclass(frozen=True, slots=True)
class Found:
    """A live process."""

    path: str
    """Of its socket."""
    pid: int | None
    sessions: str | None
    """Its directory; `None` when it does not answer."""


class Client:
    """One connection. Use it as a context manager, on one thread.

    Raises:
        NoProcess: there is no live server at that path, or it may not be asked.
    """

    def __init__(self, path: str, *, within_s: float = ANSWERS_WITHIN_S) -> None:
        self.path = path
        self._within_s = within_s
        self._socket = _os.unix_socket(socket.SOCK_STREAM)
        self._socket.settimeout(within_s)
        try:
            self._socket.connect(path)
            self.peer = socket_path.peer_of(self._socket)
            self.pid = None if self.peer is None else self.peer.pid
        except BaseException as error:
            self._socket.close()
            if isinstance(error, OSError):
                raise NoProcess(_why_none(path, error)) from error
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def ask(self, question: protocol.Question) -> protocol.Answer:
        """Ask, and wait for the answer.

        Raises:
            NoAnswer: it has gone, does not answer in time, or answers something else. It may have done what was asked.
        """
        who = "the process" if self.pid is None else f"process {self.pid}"
        deadline = time.monotonic() + self._within_s
        try:
            with contextlib.suppress(ConnectionError):  # it has hung up, but perhaps sent the reason before that
                self._socket.sendall(protocol.encoded(question))
            line = self._line(deadline)
        except TimeoutError:
            late = f"{who} does not answer within {self._within_s:g} s: it is stopped, or holds its interpreter lock"
            raise NoAnswer(late) from None
        except OSError as error:
            raise NoAnswer(f"{who} has gone ({error.strerror or error})") from error
        if not line.endswith(b"\n"):
            raise NoAnswer(f"{who} has gone, or was told to stop")
        try:
            return protocol.answer_of(line)
        except ValueError as error:
            raise NoAnswer(f"{who} does not speak this protocol: {error}") from error

    def _line(self, deadline: float) -> bytes:
        parts: list[bytes] = []
        size = 0
        while size < _LONGEST_ANSWER:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            part = self._socket.recv(_CHUNK)
            parts.append(part)
            size += len(part)
            if not part or part.endswith(b"\n"):
                break
        return b"".join(parts)


def locate(given: str | None) -> str:
    """The socket to ask: the one that was given, or `$LANES_SOCKET`, or that of the only live process of this user.

    Raises:
        NoProcess: there is none, there are several, or what was given is no path of a socket.
    """
    chosen = given if given is not None else os.environ.get("LANES_SOCKET") or None
    if chosen is not None:
        try:
            return socket_path.check_path(chosen)
        except socket_path.StatusSocketError as error:
            name = "--socket" if given is not None else "$LANES_SOCKET"
            raise NoProcess(f"{name}: {error.path!r} {error.why}; allowed: {error.allowed}") from error
    found = live()
    if len(found) == 1:
        return found[0].path
    directory = socket_path.default_directory()
    if not found:
        raise NoProcess(
            f"no process is found in {directory}; start it with a status socket, or name its socket: --socket PATH"
        )
    names = ", ".join(
        f"{os.path.basename(one.path)} of process {one.pid} ({one.sessions or 'does not answer'})" for one in found
    )
    raise NoProcess(f"{len(found)} processes are found: name one, --socket {directory}/…: {names}")


def live() -> list[Found]:
    """The live processes in the default place. Sockets of dead ones that are found there are removed.

    Raises:
        NoProcess: the place is not ours alone, so nothing in it can be trusted.
    """
    try:
        directory = socket_path.checked(socket_path.default_directory())
        names = sorted(name for name in os.listdir(directory) if name.endswith(socket_path.END))
    except FileNotFoundError:
        return []
    except socket_path.StatusSocketError as error:
        raise NoProcess(f"{error.path} {error.why}; allowed: {error.allowed}, or --socket PATH") from error
    paths = [os.path.join(directory, name) for name in names]
    if len(paths) < 2:
        looked = list(map(_found_at, paths))
    else:
        from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 -- it brings `logging` along

        with ThreadPoolExecutor(min(_AT_A_TIME, len(paths)), "lanes-live") as pool:  # a deaf one delays no other
            looked = list(pool.map(_found_at, paths))
    return [one for one in looked if one is not None]


def _found_at(path: str) -> Found | None:
    """The process that answers at a socket; a socket without one is removed."""
    try:
        with Client(path, within_s=_FOUND_WITHIN_S) as client:
            return _found(client)
    except NoProcess:
        socket_path.remove_dead(path)
        return None


def beside(root: str) -> list[Found]:
    """The live processes that serve the sessions in a directory, wherever their sockets are. Asks them nothing.

    Raises:
        NoProcess: the default place is not ours alone, so nothing in it can be trusted.
    """
    try:
        paths = links.found(root)
    except socket_path.StatusSocketError as error:
        raise NoProcess(f"{error.path} {error.why}; allowed: {error.allowed}") from error
    found = []
    for path in paths:
        with contextlib.suppress(NoProcess), Client(path, within_s=_FOUND_WITHIN_S) as client:
            # A link outlives its socket, and where many may write, another user may listen there since.
            if socket_path.is_allowed(client.peer):
                found.append(Found(path, client.pid, root))
    return found


def successor(before: protocol.Pong, path: str) -> Found | None:
    """The process that serves the sessions of another that has gone: at its socket, or in the default place."""
    found: list[Found] = []
    with contextlib.suppress(NoProcess), Client(path, within_s=_FOUND_WITHIN_S) as client:
        found.append(_found(client))
    with contextlib.suppress(NoProcess):
        found += live()
    return next((one for one in found if one.sessions == before.sessions and one.pid != before.pid), None)


def _found(client: Client) -> Found:
    with contextlib.suppress(NoAnswer):
        pong = client.ask(protocol.Ping()).pong
        if pong is not None:
            return Found(client.path, pong.pid, pong.sessions)
    return Found(client.path, client.pid, None)


def _why_none(path: str, error: OSError) -> str:
    match error:
        case FileNotFoundError():
            why = "does not exist"
        case ConnectionRefusedError():
            why = "is not listened at: its process is dead, or it is no socket"
        case TimeoutError() | BlockingIOError():
            why = "is asked by too many at a time"
        case _:
            why = f"cannot be connected to ({error.strerror})"
    return f"--socket: {path!r} {why}; allowed: the status socket of a live process"
