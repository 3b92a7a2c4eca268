"""The worker processes, as seen from the process that asks: one per peer and event loop."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import msgspec

from .questions.interface import Cell, NotMeasured, Sample
from .worker import Answered, Asked

_CHUNK = 1 << 16
_START_S = 60.0
_LET_END_S = 0.2
_LOOK_EVERY_S = 0.25
COMMAND = (sys.executable, "-m", "runtime.bench.worker")
"""What starts a worker."""


class Worker:
    """One process. It leads a process group, so that whatever it started ends with it."""

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,
        )
        self._rest = b""
        self._ready = False

    def start(self) -> None:
        """Wait until it has started: its imports are not the peer's time.

        Raises:
            NotMeasured: it ended, or takes too long.
        """
        if not self._ready:
            self._line(_START_S)
            self._ready = True

    def ask(self, asked: Asked, within_s: float) -> Sample:
        """The sample.

        Raises:
            NotMeasured: the peer failed, its process died, or it did not answer in time; it is closed then.
        """
        assert self._process.stdin is not None
        self.start()
        try:
            self._process.stdin.write(msgspec.json.encode(asked) + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._died() from None
        answered = msgspec.json.decode(self._line(within_s), type=Answered)
        if answered.sample is None:
            raise NotMeasured(answered.error)
        return answered.sample

    def _line(self, within_s: float) -> bytes:
        assert self._process.stdout is not None
        until = time.monotonic() + within_s
        while b"\n" not in self._rest:
            left_s = max(0.0, until - time.monotonic())
            ready, _, _ = select.select([self._process.stdout], [], [], min(left_s, _LOOK_EVERY_S))
            if not ready:
                if self.closed:  # and a child of it keeps the pipe open
                    raise self._died()
                if left_s:
                    continue
                self.close()
                raise NotMeasured(f"no answer within {within_s:.3g} s")
            chunk = os.read(self._process.stdout.fileno(), _CHUNK)
            if not chunk:
                raise self._died()
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _died(self) -> NotMeasured:
        self.close()
        code = self._process.returncode
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return NotMeasured(f"its process ended: {how}")

    @property
    def closed(self) -> bool:
        """Whether it has ended."""
        if self._process.returncode is not None:
            return True
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def close(self) -> None:
        """End it, and what it started."""
        self._let_end()
        # Also after a crash, for what it had started; until it is waited for, no other group can have its number.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _let_end(self) -> None:
        """Give it a moment to end by itself, so that after a crash its own exit code is known."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        until = time.monotonic() + _LET_END_S
        while not self.closed and time.monotonic() < until:
            time.sleep(_LET_END_S / 20)


class Workers:
    """The workers of one run; those of one kind of peers at a time."""

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        self._command = command
        self._workers: dict[tuple[str, str, str], Worker] = {}

    def ask(self, cell: Cell, function: str, *, within_s: float, **arguments: Any) -> Sample:
        """The sample of a cell, from its own worker.

        Raises:
            NotMeasured: as `Worker.ask`. The next question to that peer gets a new process.
        """
        asked = Asked(function, cell.peer.kind, cell.peer.name, cell.backend, arguments)
        return self._worker(cell).ask(asked, within_s)

    def prepare(self, cells: Sequence[Cell]) -> None:
        """Start the workers of these cells, all at once, and end those of other kinds of peers."""
        kinds = {cell.peer.kind for cell in cells}
        for key in [key for key in self._workers if key[0] not in kinds]:
            self._workers.pop(key).close()
        for worker in [self._worker(cell) for cell in cells]:
            with contextlib.suppress(NotMeasured):  # the cell itself will report it
                worker.start()

    def _worker(self, cell: Cell) -> Worker:
        key = (cell.peer.kind, cell.peer.name, cell.backend)
        worker = self._workers.get(key)
        if worker is None or worker.closed:
            worker = self._workers[key] = Worker(self._command)
        return worker

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers.values():
            worker.close()
