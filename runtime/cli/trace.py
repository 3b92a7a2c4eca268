"""`lanes trace`: records what a running process does, for some seconds, into a file."""

from __future__ import annotations

import time
from typing import BinaryIO

from runtime.status import protocol
from runtime.status.client import Client

from ..trial.output import Output
from ..usage_error import UsageError
from .remote import IsFrozen, Refusal, asked, lasting, printable, talk

_EVERY_S = 0.25
_PATIENCE_S = 30.0
"""How long after its end a recording is waited for, while the event loop is blocked."""
_INTERRUPTED = 130


def run(socket: str | None, seconds: float, path: str) -> int:
    """Record, and return the exit code. Ended early, by Ctrl-C or with the process, the file is whole up to there.

    Raises:
        UsageError: there is no process to ask, or the file cannot be written; nothing was recorded.
    """
    code = 0

    def record(client: Client, output: Output) -> None:
        nonlocal code
        try:
            file = open(path, "wb")  # noqa: SIM115 -- closed below
        except (OSError, ValueError) as error:
            raise UsageError(f"-o: {path!r} cannot be written ({error}); allowed: a file") from error
        with file:
            recording = asked(client, protocol.Record(seconds=seconds)).recording
            if recording is None:
                raise Refusal("the process answers something else; it may be of another version")
            who = "the process" if client.pid is None else f"process {client.pid}"
            output.line(f"recording {who} for {lasting(seconds)} (Ctrl-C ends it)")
            into = _Array(file)
            try:
                _fetch(client, recording.id, time.monotonic() + seconds + _PATIENCE_S, into)
            except KeyboardInterrupt:
                code = _INTERRUPTED
            finally:
                into.close()
                output.line(
                    printable(f"{path}: {into.number:,} events; ui.perfetto.dev shows it, and chrome://tracing")
                )

    return talk(socket, record) or code


class _Array:
    """A JSON array in a file that grows."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._file.write(b"[")
        self.number = 0

    def add(self, events: bytes) -> None:
        """Add the items of an array."""
        inner = events.strip()[1:-1].strip()
        if inner:
            self._file.write((b",\n" if self.number else b"\n") + inner)
            self.number += inner.count(b'"ph":')

    def close(self) -> None:
        """Write the end."""
        self._file.write(b"\n]\n")


def _fetch(client: Client, recording: int, until: float, into: _Array) -> None:
    """Fetch all parts.

    Raises:
        Refusal: the process has gone, or has ended the recording before its time.
    """
    while True:
        try:
            part = asked(client, protocol.Recorded(recording=recording)).recording
        except IsFrozen as error:
            if time.monotonic() >= until:
                raise Refusal(f"the event loop is blocked, at {error.frozen.place}") from error
            continue  # what is recorded now comes when it goes on
        if part is None:
            raise Refusal("the process answers something else")
        into.add(bytes(part.events))
        if part.over:
            if part.error:
                raise Refusal(f"the recording has ended early: {part.error}")
            return
        if bytes(part.events) == b"[]":
            time.sleep(_EVERY_S)
