"""`lanes top`: `lanes status`, drawn twice a second, or of a fleet each second, until the operator ends it.

It goes on when the process restarts or goes away, and shows that: these are the moments to look at.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from types import FrameType

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from runtime.status import protocol
from runtime.status.client import Client, NoAnswer, NoProcess, locate, successor

from ..trial.output import Output
from ..usage_error import UsageError, one_line
from . import fleet, status
from .remote import frozen_lines, lasting

_EVERY_S, _FLEET_EVERY_S = 0.5, 1.0
_WITHIN_S = 2.0
_NO_KEY, _AT_END = b"none", b""
_QUIT = {b"q", b"Q", b"\x03", b"\x04", _AT_END}
_STYLES = {"PROBLEM": "bold red", "SLOWED": "bold yellow", "STUCK": "bold red", "RUNNING": "bold", "WAITING": "bold"}


def run(socket: str | None, which: fleet.Which) -> int:
    """Watch until `q` or Ctrl-C; without a terminal, print once. Returns the exit code.

    Raises:
        UsageError: there is no process to ask.
    """
    found = fleet.fleet_of(socket, which)
    if not Output(json=False).live:
        return status.run(socket, json=False) if found is None else fleet.show(found, which, json=False)
    every_s = _EVERY_S if found is None else _FLEET_EVERY_S
    try:
        watched = Watched(locate(socket)) if found is None else fleet.Watched(found, which)
        watched.look()
    except NoProcess as error:
        raise UsageError(str(error)) from error
    console = Console()
    with (
        contextlib.closing(watched),
        _ended_by_signals(),
        contextlib.suppress(KeyboardInterrupt),
        _keys() as pressed,
        Live(console=console, screen=True, auto_refresh=False) as shown,
    ):
        while True:
            shown.update(draw(watched.lines, console.height), refresh=True)
            if pressed(every_s) in _QUIT:
                break
            with contextlib.suppress(NoProcess, UsageError):  # it has gone, which the lines show
                watched.look()
    return 0


class Watched:
    """One process, those that take its place, and the last answer."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._client: Client | None = None
        self._picture: protocol.Picture | None = None
        self._heard_at = time.monotonic()
        self._changed = ""
        self.lines: list[str] = []
        """What to show."""

    def look(self) -> None:
        """Ask again. Bounded.

        Raises:
            NoProcess: it has gone, or never was there; the lines show that.
        """
        try:
            if self._client is None:
                self._client = Client(self._where(), within_s=_WITHIN_S)
            answer = self._client.ask(protocol.Status())
        except (NoAnswer, NoProcess) as error:
            if self._client is not None:
                self._client.close()
                self._client = None
            before = self._picture if isinstance(error, NoProcess) else None
            self.lines = self._without(str(error) if before is None else f"process {before.pid} has gone")
            if isinstance(error, NoProcess):
                raise
            return
        self._heard_at = time.monotonic()
        if answer.status is not None:
            self._note(answer.status)
            self.lines = [*self._news(), *status.lines(answer.status)]
        elif answer.frozen is not None:
            self.lines = frozen_lines(answer.frozen)
        else:
            self.lines = [f"PROBLEM: {answer.error.message if answer.error is not None else 'no answer'}"]

    def close(self) -> None:
        """Hang up."""
        if self._client is not None:
            self._client.close()

    def _where(self) -> str:
        """Its socket, or that of its successor."""
        if self._picture is not None:
            before = protocol.Pong(pid=self._picture.pid, sessions=self._picture.sessions)
            after = successor(before, self._path)
            self._path = after.path if after is not None else self._path
        return self._path

    def _note(self, picture: protocol.Picture) -> None:
        before, self._picture = self._picture, picture
        if before is None:
            return
        if before.pid != picture.pid:
            self._changed = f"process {before.pid} was replaced by process {picture.pid}"
        elif before.generation != picture.generation:
            self._changed = f"restarted: generation {before.generation} became {picture.generation}"

    def _news(self) -> list[str]:
        return [self._changed] if self._changed else []

    def _without(self, why: str) -> list[str]:
        silent = lasting(time.monotonic() - self._heard_at)
        lines = [f"PROBLEM: nothing was heard for {silent}: {one_line(why)}"]
        if self._picture is not None:
            lines += ["It was last seen so:", "", *status.lines(self._picture)]
        return lines


def draw(lines: list[str], height: int) -> Group:
    """The lines that fit."""
    shown = lines if len(lines) <= height else [*lines[: height - 1], f"… {len(lines) - height + 1} more lines"]
    return Group(*(Text(line, style=_style(line), no_wrap=True, overflow="ellipsis") for line in shown))


def _style(line: str) -> str:
    word = line.partition(" ")[0].rstrip(":,")
    if " is FROZEN: " in line:
        return "bold red"
    return _STYLES.get(word, "")


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], bytes]]:
    """Single keys of the terminal: a function that waits so many seconds for one, and returns it, or `_NO_KEY`."""

    def without(seconds: float) -> bytes:
        time.sleep(seconds)
        return _NO_KEY

    def pressed(seconds: float) -> bytes:
        ready, _, _ = select.select([descriptor], [], [], seconds)
        return os.read(descriptor, 1) if ready else _NO_KEY

    if not sys.stdin.isatty():
        yield without
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield pressed
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end it as Ctrl-C does, so that the terminal gets its own picture back."""

    def end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 -- the shape of a handler
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
