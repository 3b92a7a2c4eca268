"""A process of a service, from its parent's side: it gets a job, its reports are noted, and it does not outlive us.

It has a pipe from here as its standard input, and ends when that does.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

import anyio
import msgspec
from anyio.abc import Process

from locks._events import log

from . import wire

_COMMAND = [sys.executable, "-P", "-m", "runtime.trial.child"]
_SILENT_S = 40.0
"""The longest time without a word; while the process works, its probe alone speaks ten times a second."""


class Served:
    """One process at a time. On the event loop's thread.

    Args:
        note: called with each report.
        give_up: called when a process has reported nothing for too long; it is to be killed.
    """

    def __init__(self, note: Callable[[wire.Event], None], give_up: Callable[[], None]) -> None:
        self._note, self._give_up = note, give_up
        self._process: Process | None = None
        self.stopping = False
        """Whether it was told to end: no other one is started then."""

    @property
    def pid(self) -> int | None:
        """Of the process that was started last."""
        return self._process.pid if self._process is not None else None

    def stop(self) -> None:
        """Have it end in order, and one that is being started, too."""
        self.stopping = True
        self.send(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once, if there is one."""
        self.send(signal.SIGKILL)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it lives."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def run(self, job: wire.Job) -> int:
        """Start it, and note its reports until it is gone. A checkpoint; cancelled, it is killed.

        Returns:
            Its exit code.
        """
        # A session of its own: Ctrl-C at a terminal is for the parent, which passes it on once.
        process = self._process = await anyio.open_process(_COMMAND, stderr=None, start_new_session=True)
        try:
            if self.stopping:
                self.send(signal.SIGTERM)
            assert process.stdin is not None
            try:
                await process.stdin.send(wire.line_of(job))
                await self._listen(process)
            except (anyio.BrokenResourceError, anyio.EndOfStream):
                pass  # it has gone; its exit code says how
            return await process.wait()
        finally:
            self.kill()
            with anyio.CancelScope(shield=True):
                await process.aclose()

    async def _listen(self, process: Process) -> None:
        """Note all that it reports, until it reports no more."""
        assert process.stdout is not None
        decoder = msgspec.json.Decoder(wire.Event)
        rest = b""
        while True:
            with anyio.move_on_after(_SILENT_S) as waiting:
                chunk = await process.stdout.receive()
            if waiting.cancelled_caught:
                log("process_silent", level="error", within_s=_SILENT_S)
                self._give_up()
                return
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._note(decoder.decode(line))
