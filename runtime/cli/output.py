"""Where `lanes run` prints: standard output, of which somebody may stop listening at any moment."""

from __future__ import annotations

import os
import sys


class Output:
    """Lines on standard output, or on standard error when standard output is for a machine."""

    def __init__(self, *, json: bool) -> None:
        self.json = json
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")

    @property
    def live(self) -> bool:
        """Whether somebody watches."""
        return not self.json and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"

    def line(self, text: str) -> None:
        """A line for people."""
        _print(text, to_stderr=self.json)

    def result(self, text: str) -> None:
        """What the command was asked for."""
        _print(text, to_stderr=False)


def _print(text: str, *, to_stderr: bool) -> None:
    stream = sys.stderr if to_stderr else sys.stdout
    try:
        print(text, file=stream, flush=True)
    except (OSError, ValueError):
        silence(stream.fileno())


def silence(descriptor: int) -> None:
    """Lead a stream nowhere: nobody reads it any more, and the interpreter flushes it once more when it exits."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def leave_now(code: int) -> None:
    """End the process although bodies or threads still run, which an ordinary exit would wait for."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue
    os._exit(code)
