"""Waking the next waiter of another process: a datagram as a hint, polling as the net.

Polling alone hands a lock over in 0.7 ms on average, because an event loop's shortest sleep is a millisecond. So the
waiter that is looked after first binds an abstract Unix datagram socket whose name says which file and which ticket it
stands for, and the process that unlocks sends one empty datagram to the lowest ticket: exactly one process wakes. A
datagram that no process receives, or that no process should have sent, does no harm: the lock byte decides, and all
still poll.

Waking up takes a process about as long as removing a lock file takes another. So a process that still has such a file
to remove sends a first datagram before that, and the second one when it has unlocked. Then it gives up its core for a
moment (`sched_yield`): Linux likes to wake the receiver of a datagram on the core of its sender, where it would wait
for the rest of the sender's time slice. With eight processes that was a third of the time from hand to hand.

Rejected: waking all waiters (inotify), which costs two thirds of the throughput. Source: unix(7), "abstract".
"""

from __future__ import annotations

import socket
from contextlib import suppress

from .. import _os
from .._os import FileId

# Bells belong to kernel locks, so they are on Linux only; elsewhere this module must merely be importable.
_KIND = socket.SOCK_DGRAM | getattr(socket, "SOCK_NONBLOCK", 0) | getattr(socket, "SOCK_CLOEXEC", 0)


class Bell:
    """The socket of one ticket."""

    __slots__ = ("heeded", "socket")

    def __init__(self, file_id: FileId, ticket: int) -> None:
        self.heeded = False
        """Whether a task waits for it to ring."""
        self.socket = _os.unix_socket(_KIND)
        try:
            self.socket.bind(_name(file_id, ticket))
        except OSError:
            self.socket.close()
            raise

    def drain(self) -> None:
        """Forget one ring."""
        with suppress(OSError):
            self.socket.recv(1)

    def close(self) -> None:
        """No claim waits with this ticket any more."""
        self.socket.close()


def ring(file_id: FileId, ticket: int) -> bool:
    """Wake the process that waits with a ticket; returns whether it listens. Never blocks, never raises."""
    try:
        with _os.unix_socket(_KIND) as sender:
            sender.sendto(b"", _name(file_id, ticket))
    except BlockingIOError:
        return True  # it has been woken often enough
    except OSError:
        return False  # it does not listen, or has gone; it polls
    return True


def _name(file_id: FileId, ticket: int) -> bytes:
    return b"\0lanes:%x:%x:%x" % (*file_id, ticket)
