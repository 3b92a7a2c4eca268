"""A TCP proxy that fails as networks do: it passes on, holds, swallows, delays or resets what goes through it.

Unlike a proxy that is closed, one that holds or swallows tells neither end: both find out by their own deadlines, as
with a cable that was cut. It has a thread with an event loop of its own, so that a loop under test cannot slow it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

Way = Literal["up", "down"]
"""`up` is from the client to the server, `down` the answers."""
BOTH: tuple[Way, ...] = ("up", "down")

_CHUNK = 65_536
_WITHIN_S = 10.0
_FLUSH_S = 1.0
_RESET = struct.pack("ii", 1, 0)
"""Linger for no time: what closes such a socket is RST, not FIN."""


@dataclass(frozen=True, slots=True)
class _Mode:
    name: Literal["pass", "hold", "swallow", "delay", "reset"]
    ways: tuple[Way, ...] = BOTH
    delay_s: float = 0.0

    def applies(self, name: str, way: Way) -> bool:
        return self.name == name and way in self.ways


_PASS = _Mode("pass")


class _Link:
    """One connection of a client, and the one to the server that belongs to it."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.ends = (client, server)
        self.lost = False
        """Bytes are missing in it: nothing more goes through, whatever the mode is."""

    def reset(self) -> None:
        for end in self.ends:
            _reset(end)


def _reset(end: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    end.transport.abort()


class CutProxy:
    """Listens on a free port of 127.0.0.1 and connects each client with a server. Passes on at first.

    Its methods may be called on any thread; each has taken effect when it returns, which is within microseconds. While
    the server is away, connections are reset.
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._to = (host, port)
        self._mode = _PASS
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed: asyncio.Event
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cut-proxy", daemon=True)
        self._thread.start()
        self._ready.wait(_WITHIN_S)
        self.port: int = self._listening

    # How it fails, from any thread

    def pass_on(self) -> None:
        """From now on everything goes through, and first what was held."""
        self._set(_PASS)

    def hold(self, *ways: Way) -> None:
        """A cut that heals: nothing goes through, an end of a connection neither; `pass_on` delivers all of it."""
        self._set(_Mode("hold", ways or BOTH))

    def swallow(self, *ways: Way) -> None:
        """A cut for good: what is sent is lost. `swallow("down")` loses the answers only.

        A connection that has lost something stays dead and open until `reset`, or until one end has closed it and
        `pass_on` was called.
        """
        self._set(_Mode("swallow", ways or BOTH))

    def delay(self, seconds: float, *ways: Way) -> None:
        """Everything goes through that much later."""
        self._set(_Mode("delay", ways or BOTH, seconds))

    def reset(self) -> None:
        """Reset all connections, and each new one, until another mode is set."""
        self._set(_Mode("reset"))

    @property
    def connections(self) -> int:
        """How many go through it, dead ones included."""
        return len(self._links)

    @property
    def dead(self) -> int:
        """How many of them have lost something."""
        return sum(link.lost for link in tuple(self._links))

    def close(self) -> None:
        """Reset all connections, and end. Repeatable."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join(_WITHIN_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _set(self, mode: _Mode) -> None:
        done = threading.Event()

        def change() -> None:
            self._mode = mode
            self._changed.set()
            self._changed = asyncio.Event()
            if mode.name == "reset":
                for link in self._links:
                    link.reset()
            done.set()

        self._loop.call_soon_threadsafe(change)
        done.wait(_WITHIN_S)

    # On its own thread

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._changed, self._closing = asyncio.Event(), asyncio.Event()
        listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self._listening: int = listener.sockets[0].getsockname()[1]
        self._ready.set()
        await self._closing.wait()
        listener.close()
        for link in self._links:
            link.reset()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._connect(reader, client)
        except asyncio.CancelledError:
            _reset(client)  # the proxy is closed; asyncio would report the cancellation of its handler as an error
        finally:
            self._tasks.discard(task)
            await _gone(client)

    async def _connect(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        if self._mode.name == "reset":
            _reset(client)
            return
        try:
            answers, server = await asyncio.open_connection(*self._to)
        except OSError:
            _reset(client)
            return
        link = _Link(client, server)
        self._links.add(link)
        try:
            await asyncio.gather(self._pump(link, "up", reader, server), self._pump(link, "down", answers, client))
        finally:
            self._links.discard(link)
            await _gone(server)

    async def _pump(self, link: _Link, way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry bytes one way until that end closes; an error at one end resets both."""
        try:
            while data := await self._read(link, way, reader):
                if link.lost:
                    continue
                if self._mode.applies("delay", way):
                    await asyncio.sleep(self._mode.delay_s)
                writer.write(data)
                await writer.drain()
            if link.lost:
                await self._until(lambda: not self._mode.applies("swallow", way))
                link.reset()  # what a peer that knows nothing of a connection answers
            else:
                writer.write_eof()
        except OSError:
            link.reset()

    async def _read(self, link: _Link, way: Way, reader: asyncio.StreamReader) -> bytes:
        data = await reader.read(_CHUNK)
        # Checked only now: the cut may have come while nothing was sent. The kernel's buffers hold what comes next.
        await self._until(lambda: not self._mode.applies("hold", way))
        link.lost = link.lost or self._mode.applies("swallow", way)
        return data

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            await self._changed.wait()


async def _gone(end: asyncio.StreamWriter) -> None:
    """Close it, with what was written to it; at once if the peer does not take that."""
    end.close()
    try:
        async with asyncio.timeout(_FLUSH_S):
            await end.wait_closed()
    except (OSError, TimeoutError):
        end.transport.abort()
