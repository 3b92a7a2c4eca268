"""Where the status socket of a process is, and how its place is taken: one server a path, and none loses it.

A socket stays in the file system when its process is killed, so a path that exists may be the socket of a live server,
that of a dead one, or no socket at all. Only a socket of our own user to which the kernel refuses connections is
removed. A process looks, removes and binds under a lock on the directory, and listens before it unlocks: else two
processes that start at a time both find the dead socket, and the second removes the first one's fresh one. That lock is
the kernel's and leaves no file behind.

Rejected: asking a pid in the socket's name whether it lives, because numbers are used again; sockets without a file
(Linux's abstract names), because those have no owner and no mode.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from locks import _os
from locks.file_kinds import kind_of

LONGEST = 107
"""Bytes of a path that fit into a socket address on Linux, the zero at its end left out."""
END = ".sock"
_PEERCRED = getattr(socket, "SO_PEERCRED", None)
_CREDENTIALS = struct.Struct("3i")
_BACKLOG = 128
_TRIES, _PAUSE_S = 100, 0.005
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class StatusSocketError(ValueError):
    """The status socket cannot be where it should be. Nothing was removed or made but, perhaps, its directory."""

    def __init__(self, path: str, why: str, allowed: str) -> None:
        super().__init__(f"status_socket: {path!r} {why}; allowed: {allowed}")
        self.path = path
        self.why = why
        self.allowed = allowed

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.why, self.allowed)


@dataclass(frozen=True, slots=True)
class Peer:
    """The process at the other end of a connection, by the kernel; at a client's end, the one that listened."""

    pid: int
    uid: int


def peer_of(connection: socket.socket) -> Peer | None:
    """The process at the other end; `None` where the system does not report it."""
    if _PEERCRED is None:
        return None
    pid, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, _PEERCRED, _CREDENTIALS.size))
    return Peer(pid, uid)


def is_allowed(peer: Peer | None) -> bool:
    """Whether a peer may ask: our own user, and root. Where the system reports none, the file's mode decides."""
    return peer is None or peer.uid in (os.geteuid(), 0)


def path_for(given: object) -> str:
    """What `status_socket` means: a path as it is; `True` a path in the default place, which is made.

    Raises:
        StatusSocketError: it is neither, or the default place is not ours alone.
    """
    if given is True:
        return os.path.join(checked(default_directory(), make=True), f"{os.getpid()}{END}")
    if not isinstance(given, str | os.PathLike):
        raise StatusSocketError(f"{given!r:.80}", "is no path", "a path, or True for the default place")
    path = os.fspath(given)
    return check_path(path if isinstance(path, str) else os.fsdecode(path))


def in_full(given: object) -> object:
    """What `status_socket` was given, and a relative path as it leads from the root now, if a socket can have that."""
    if not isinstance(given, str | os.PathLike):
        return given
    path = os.fspath(given)
    path = path if isinstance(path, str) else os.fsdecode(path)
    with contextlib.suppress(OSError, UnicodeEncodeError):  # there is no current directory, or it is no path
        full = os.path.join(os.getcwd(), path)
        if path and len(os.fsencode(full)) <= LONGEST:
            return full
    return given


def check_path(path: str) -> str:
    """The path itself, if a socket can have it.

    Raises:
        StatusSocketError: it is empty, too long, or has a NUL in it.
    """
    if not path or "\0" in path:
        raise StatusSocketError(path[:80], "is no path", "a path without NUL")
    try:
        size = len(os.fsencode(path))
    except UnicodeEncodeError:
        raise StatusSocketError(path[:80], "is no path", "text that a file can be named by") from None
    if size > LONGEST:
        raise StatusSocketError(path, f"has {size} bytes", f"at most {LONGEST} bytes, which is what a socket can have")
    return path


def default_directory() -> str:
    """Where sockets are by default. Not made, not checked."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime) and os.path.isdir(runtime):
        return os.path.join(runtime, "lanes")
    import tempfile  # noqa: PLC0415 -- it brings many others along, and most users have a directory of their own

    return os.path.join(tempfile.gettempdir(), f"lanes-{os.geteuid()}")


def checked(directory: str, *, make: bool = False) -> str:
    """The directory itself, if it is ours alone: in a place that all users may write to, another may have made it.

    Raises:
        StatusSocketError: it is not.
        FileNotFoundError: it does not exist, and was not to be made.
    """
    mine = "a directory of one's own that nobody else may write to"
    try:
        if make:
            with contextlib.suppress(FileExistsError):
                os.mkdir(directory, 0o700)
        there = os.lstat(directory)
    except FileNotFoundError:
        if make:
            raise StatusSocketError(directory, "cannot be made: its parent does not exist", mine) from None
        raise
    except OSError as error:
        raise StatusSocketError(directory, f"cannot be used ({error.strerror})", mine) from error
    if not stat.S_ISDIR(there.st_mode):
        raise StatusSocketError(directory, f"is {kind_of(there.st_mode)}", mine)
    if there.st_uid != os.geteuid():
        raise StatusSocketError(directory, f"belongs to user {there.st_uid}", mine)
    if there.st_mode & _WRITABLE_BY_OTHERS:
        raise StatusSocketError(directory, f"has mode {stat.S_IMODE(there.st_mode):04o}", mine)
    return directory


def listen(path: str) -> socket.socket:
    """A listening socket at `path`, for its owner only; takes the place of a dead server. Does not block.

    Raises:
        StatusSocketError: the path cannot be used, or is taken; what is there is left alone.
    """
    check_path(path)
    listener = _os.unix_socket(socket.SOCK_STREAM)
    try:
        with locked(path):
            _make_room(path)
            with contextlib.suppress(OSError):  # not everywhere
                os.fchmod(listener.fileno(), 0o600)  # before it has a name: there is no moment in which others connect
            listener.bind(path)
            os.chmod(path, 0o600)
            listener.listen(_BACKLOG)
        listener.setblocking(False)
    except BaseException as error:
        listener.close()
        if isinstance(error, OSError):
            why = f"cannot be used ({error.strerror})"
            raise StatusSocketError(path, why, "a path in a directory that can be written to") from error
        raise
    return listener


def remove_dead(path: str) -> bool:
    """Remove a socket of ours whose server is dead; returns whether none is there now. Never raises."""
    try:
        with locked(path):
            _make_room(path)
    except (OSError, StatusSocketError):
        return False
    return True


def _make_room(path: str) -> None:
    """Remove a socket of ours without a listener. To be called under the directory's lock."""
    free = "a free path, or one of a server that is dead"
    try:
        there = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(there.st_mode):
        raise StatusSocketError(path, f"is {kind_of(there.st_mode)}, which is left alone", free)
    if there.st_uid != os.geteuid():
        raise StatusSocketError(path, f"belongs to user {there.st_uid}, and is left alone", free)
    with _os.unix_socket(socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
            who = _owner(peer_of(probe))
        except (ConnectionRefusedError, FileNotFoundError):
            who = None
        except BlockingIOError:
            who = "a process that does not get round to answering"  # more wait for it than the kernel queues
        except OSError as error:
            who = f"another program ({error.strerror})"
    if who is not None:
        raise StatusSocketError(path, f"is taken by {who}", free)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _owner(peer: Peer | None) -> str:
    if peer is None:
        return "a live server"
    return f"process {peer.pid}" + (", which is this one" if peer.pid == os.getpid() else "")


@contextlib.contextmanager
def locked(path: str) -> Iterator[None]:
    """The lock on the directory of a path. Its holders need microseconds, so it is tried again for a moment.

    Raises:
        StatusSocketError: there is no such directory, or another process keeps its lock.
    """
    directory = os.path.dirname(path) or "."
    try:
        descriptor = _os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise StatusSocketError(path, "has no directory", "a path in a directory that exists") from None
    except OSError as error:
        why = f"cannot be used ({directory!r}: {error.strerror})"
        raise StatusSocketError(path, why, "a path in a directory that can be written to") from error
    try:
        for left in reversed(range(_TRIES)):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not left:
                    why = f"cannot be taken: somebody keeps {directory!r} locked"
                    raise StatusSocketError(path, why, "a directory of one's own") from None
                time.sleep(_PAUSE_S)
        yield
    finally:
        os.close(descriptor)
