"""Runs of the command on a directory that they share, each of which tells what it does, until it is killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

from tests import ROOT, forks
from tests.command import LANES

BACKENDS = ("asyncio", "trio")
TARGET = "tests.children.struck:main"


class Life:
    """One `lanes run` on the shared directory, from its start until it is killed."""

    def __init__(self, writer: int, directory: Path, planted: tuple[str, ...] = ()) -> None:
        self.mark = f"{directory}/{writer}/"
        self.log = directory.with_name(f"{directory.name}-{writer}.log")
        self.pipe, theirs = os.pipe()
        with self.log.open("wb") as log:
            self._process = forks.python(
                [LANES, "run", TARGET, "--sessions", str(directory), "--json", "--backend", BACKENDS[writer % 2]],
                cwd=ROOT,
                env=told_by(theirs, writer, self.mark, planted),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[theirs],
            )
        os.close(theirs)
        os.set_blocking(self.pipe, False)
        self._heard = b""
        self.writer = writer
        self.killed_at = 0

    def hear(self) -> bytes:
        """All that it has said so far. Keeps its pipe empty, lest it wait for us."""
        with contextlib.suppress(BlockingIOError):
            while block := os.read(self.pipe, 1 << 16):
                self._heard += block
        return self._heard

    def works(self) -> bool:
        """Whether an append of it has returned. Fails when it has ended by itself."""
        ended = self._process.poll()
        assert ended is None, f"lanes run ended with {ended}: {self.log.read_text()[-2000:]}"
        return b"kept" in self.hear()

    def stop(self) -> None:
        """Have it stand still, until it goes on or is killed."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Have it go on after a stop."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it. Only what it has said by then counts, and so do the turns that it has by then."""
        self.works()  # it has not ended by itself
        self.killed_at = time.monotonic_ns()
        self._process.kill()
        self._process.wait()
        self.hear()

    def close(self) -> None:
        """Leave nothing of it behind, whatever has happened."""
        self._process.kill()
        self._process.wait()
        os.close(self.pipe)


def told_by(fd: int, writer: int, mark: str, planted: tuple[str, ...] = ()) -> dict[str, str]:
    """The environment of a child, by which it is told what to do."""
    told = {"fd": fd, "writer": writer, "mark": mark, "planted": planted}
    return {**os.environ, "STRUCK": json.dumps(told)}
