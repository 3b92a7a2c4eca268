"""Which status sockets are those of one directory: a link to each in the default place, wherever the socket is.

So a process finds the others on its directory without asking every process of its user, and knows of one that does not
answer that it is there. A link is named after the directory and the path of the socket, so a process that takes the
socket of a dead one takes its link too. It is made and removed under the lock of the default place, as sockets are.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket

from locks import _os

from . import socket_path

END = ".at"


def make(root: str, path: str) -> str:
    """Link to the socket at `path`, of a server of the sessions in `root`; returns the link, or "" where none can be.

    Never raises: without it, only other processes on the directory do not find this one.
    """
    try:
        directory = socket_path.checked(socket_path.default_directory(), make=True)
        found(root)  # those that killed processes have left go with the next start
        link = os.path.join(directory, f"{_digest(os.path.realpath(root))}-{_digest(path)}{END}")
        with socket_path.locked(link), contextlib.suppress(FileExistsError):
            os.symlink(path, link)
    except (OSError, ValueError):  # a `StatusSocketError` is one of those
        return ""
    return link


def remove(link: str) -> None:
    """Remove a link, if it is there. Never raises."""
    if link:
        with contextlib.suppress(OSError):
            os.unlink(link)


def found(root: str) -> list[str]:
    """The links to sockets of the sessions in `root`. Those to dead servers are removed. Blocks for a moment.

    Raises:
        StatusSocketError: the default place is not ours alone.
    """
    try:
        directory = socket_path.checked(socket_path.default_directory())
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return []
    start = f"{_digest(os.path.realpath(root))}-"
    links = [os.path.join(directory, name) for name in names if name.startswith(start) and name.endswith(END)]
    return [link for link in links if _leads_to_a_server(link) or not _removed(link)]


def _removed(link: str) -> bool:
    """Remove a link to a dead server; returns whether that was one."""
    with contextlib.suppress(OSError, socket_path.StatusSocketError), socket_path.locked(link):
        if not _leads_to_a_server(link):
            os.unlink(link)
            return True
    return False


def _leads_to_a_server(link: str) -> bool:
    with _os.unix_socket(socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(link)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            pass  # it is there, and has no room for more, say
    return True


def _digest(text: str) -> str:
    return hashlib.blake2b(os.fsencode(text), digest_size=8).hexdigest()
