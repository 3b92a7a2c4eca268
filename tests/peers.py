"""Other processes: small programs of `tests/children/`, spoken with line by line. Forks, see `forks.py`.

with peer("holder", path) as other:
    await eventually(lambda: other.said("held"))
    other.tell("leave")
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests import ROOT, blocking, forks

AFRESH = frozenset({"elsewhere", "signalled", "streamless"})
"""Programs that are about what happens, or is read, while a Python starts up: they get a Python of their own."""


class Peer:
    """A child process that says lines on its standard output and hears some on its standard input."""

    def __init__(self, script: str, *args: object) -> None:
        command = ["-m", f"tests.children.{script}", *map(str, args)]
        options: dict[str, Any] = {"cwd": ROOT, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}
        with blocking.permitted("starting a process takes milliseconds"):
            self._process: subprocess.Popen[bytes] = (
                subprocess.Popen([sys.executable, *command], **options)
                if script in AFRESH
                else forks.python(command, **options)
            )
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        self._heard = b""

    @property
    def lines(self) -> list[str]:
        """The whole lines that it has said so far. Does not block."""
        assert self._process.stdout is not None
        while block := self._process.stdout.read(1 << 16):
            self._heard += block
        return self._heard.decode().split("\n")[:-1]

    def said(self, line: str) -> bool:
        """Whether it has said a line, up to now. Fails when it has died without."""
        dead = self._process.poll()
        if line in self.lines:
            return True
        if dead is not None:
            raise AssertionError(f"{self._process.args!r} ended with {dead} and said only {self.lines}")
        return False

    def tell(self, line: str) -> None:
        """Have it hear a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def stopped(self) -> bool:
        """Whether SIGSTOP has stopped it."""
        return Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    def ended(self) -> bool:
        """Whether it has ended by itself."""
        return self._process.poll() is not None

    @property
    def exit_code(self) -> int | None:
        """Its exit code, once it has ended."""
        return self._process.poll()

    def close(self) -> None:
        """Kill it if it still lives."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


@contextmanager
def peer(script: str, *args: object) -> Iterator[Peer]:
    """A child process for the length of a block."""
    other = Peer(script, *args)
    try:
        yield other
    finally:
        other.close()
