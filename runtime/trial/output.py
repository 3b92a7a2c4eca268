"""Where `lanes run` prints: standard output, whose reader may go at any moment."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from typing import TextIO


class Output:
    """Lines for people, and the result.

    With `json`, standard output is kept for the result alone: what else is printed, also by a user's program and its
    child processes, goes to standard error from here on.
    """

    def __init__(self, *, json: bool) -> None:
        self.json = json
        self.failed = False
        """Whether something could not be printed, other than because the reader has gone."""
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        self._stdout = sys.stdout
        if json:
            self._stdout = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="backslashreplace")
            os.dup2(2, 1)

    @property
    def live(self) -> bool:
        """Whether a terminal shows it."""
        return not self.json and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"

    def line(self, text: str) -> None:
        """A line for people."""
        self._print(text, sys.stdout)

    def result(self, text: str) -> None:
        """What the command was asked for."""
        self._print(text, self._stdout)

    def _print(self, text: str, stream: TextIO) -> None:
        try:
            print(text, file=stream, flush=True)
        except OSError as error:
            silence(stream)
            if error.errno != errno.EPIPE:
                self.failed = True
                complain(f"cannot print: {error.strerror}")
        except ValueError:
            self.failed = True
            complain("cannot print: the stream is closed")


def complain(message: str) -> None:
    """One line on standard error, if that has a reader."""
    try:
        print(f"lanes: {message}", file=sys.stderr, flush=True)
    except (OSError, ValueError):
        silence(sys.stderr)


def repair() -> None:
    """Open what the caller has closed of the standard streams, so that no transcript becomes one of them."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free one, which is this
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 -- for good


def flush() -> None:
    """Print what is still held back; the interpreter would do so with a traceback."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            silence(stream)


def silence(stream: TextIO) -> None:
    """Lead a stream nowhere: its reader has gone, and the interpreter flushes it once more when it exits."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def leave_now(code: int) -> None:
    """End the process although bodies or threads still run, which an ordinary exit would wait for."""
    flush()
    os._exit(code)
