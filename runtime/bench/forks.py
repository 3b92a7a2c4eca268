"""Processes forked from a worker, which has imported the peer already: eight that import would take longer to start
than to measure. They end with the block, by SIGKILL if need be.
"""

from __future__ import annotations

import os
import select
import signal
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NoReturn, Self, TypeVar

import anyio
import msgspec

from .peers.interface import Backend, Peer
from .questions.interface import NotMeasured

T = TypeVar("T")
_INSTANT = struct.Struct("d")
_START_WITHIN_S = 30.0
_START_AFTER_S = 0.05
_POLL_S = 0.05


class Channel:
    """A pipe for instants of the monotonic clock, which processes of one host share."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    def send(self, instant: float) -> None:
        """Send one; atomic, so that several processes may send."""
        os.write(self._write, _INSTANT.pack(instant))

    def now(self) -> None:
        """Send the present instant."""
        self.send(time.monotonic())

    def receive(self, within_s: float) -> float | None:
        """The next instant that was sent; `None` if none is within that time."""
        ready, _, _ = select.select([self._read], [], [], max(0.0, within_s))
        return _INSTANT.unpack(os.read(self._read, _INSTANT.size))[0] if ready else None

    def close(self) -> None:
        """Close both ends in this process."""
        os.close(self._read)
        os.close(self._write)


@dataclass(slots=True)
class Forks:
    """The children of one measurement."""

    _children: list[int] = field(default_factory=list)
    _channels: list[Channel] = field(default_factory=list)

    def channel(self) -> Channel:
        """A pipe for children that are forked later."""
        self._channels.append(Channel())
        return self._channels[-1]

    def fork(self, work: Callable[[], None]) -> int:
        """Run `work` in a child, which exits with 1 if it raises; returns its process id."""
        child = os.fork()
        if child == 0:
            _run(work)
        self._children.append(child)
        return child

    def kill(self, child: int, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to a child."""
        os.kill(child, number)

    def failed(self) -> list[int]:
        """The exit codes, other than 0, of children that have ended by themselves."""
        return [code for child in self._children if (code := _exit_code(child)) not in (None, 0)]

    def wait(self) -> None:
        """Wait until all have ended by themselves.

        Raises:
            NotMeasured: a child failed.
        """
        codes = []
        while self._children:
            codes.append(os.waitstatus_to_exitcode(os.waitpid(self._children.pop(), 0)[1]))
        if any(codes):
            raise NotMeasured(f"{sum(map(bool, codes))} of {len(codes)} processes failed: exit codes {sorted(codes)}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        for channel in self._channels:
            channel.close()


def imported(peer: Peer, backend: Backend) -> None:
    """Import the peer and its event loop in this process, so that no child has to."""
    peer.make()
    if backend != "blocking":
        anyio.run(anyio.sleep, 0, backend=backend)


def together(count: int, work: Callable[[int, Callable[[], float]], T], kind: type[T], directory: str) -> list[T]:
    """Run `work(number, ready)` in so many children at once, and return what they returned.

    `ready()` waits until all children have called it, then returns the instant at which all shall begin.

    Raises:
        NotMeasured: a child died.
    """
    with Forks() as forks:
        readies, starts = forks.channel(), forks.channel()

        def child(number: int) -> None:
            def ready() -> float:
                readies.now()
                start = starts.receive(_START_WITHIN_S)
                assert start is not None
                return start

            found = work(number, ready)
            with open(os.path.join(directory, f"{number}.json"), "wb") as file:
                file.write(msgspec.json.encode(found))

        for number in range(count):
            forks.fork(partial(child, number))
        for _ in range(count):
            _await_ready(forks, readies)
        start = time.monotonic() + _START_AFTER_S
        for _ in range(count):
            starts.send(start)
        forks.wait()
    return [_read(os.path.join(directory, f"{number}.json"), kind) for number in range(count)]


def _await_ready(forks: Forks, readies: Channel) -> None:
    until = time.monotonic() + _START_WITHIN_S
    while readies.receive(_POLL_S) is None:
        codes = forks.failed()
        if codes or time.monotonic() > until:
            raise NotMeasured(f"a process did not get ready: exit codes {codes}")


def _read(path: str, kind: type[T]) -> T:
    with open(path, "rb") as file:
        return msgspec.json.decode(file.read(), type=kind)


def _exit_code(child: int) -> int | None:
    found = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    return None if found is None else found.si_status


def _run(work: Callable[[], None]) -> NoReturn:
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)  # not back into the worker's loop
