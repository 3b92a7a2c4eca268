"""SIGINT, SIGTERM, SIGHUP: drain first, then at once, then out. SIGUSR1: restart; SIGHUP, where that is wanted: reread.

The third signal is decided here; what the first and the second do is `Life.signalled` in `runtime.life`.

The handlers are Python's own kind and run between two bytecodes of the main thread, so the third signal ends the
process also when the event loop is frozen in Python code; a receiver inside the loop could not. All else is done by the
loop: a handler only notes what has come and posts, because it may interrupt anything, the writing of a log line
included.

Entered before the event loop exists and left after it is gone, no signal falls into a gap in which it would mean a
traceback. Entered inside a running loop, they lie over the handler by which `asyncio.run` or trio turns SIGINT into a
cancellation, and give it back.

- A signal that the kernel hands to another thread is noted by the main thread: at once as a rule, at its next bytecode
  if it was sent to that very thread and the loop sleeps meanwhile.
- A forked child gets back the handlers of before: it has no loop to report to, and must end at a signal.
- SIGINT and SIGHUP stay ignored where they are: `nohup` ignores SIGHUP, and a shell that runs a script ignores SIGINT
  for what it starts with `&`. A terminal sends both, and a process that was started so does not belong to its terminal.
  Nothing but a deliberate `kill` sends SIGTERM and SIGUSR1, so these two are always taken.
- Where SIGHUP asks a process to reread its file, it still ends a process whose terminal has gone: that sends it, too,
  and no Ctrl-C could come any more. A process whose terminal is there, or that never had one, is asked by an operator.

Rejected: `loop.add_signal_handler` and `anyio.open_signal_receiver`, which need a loop that turns.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

from locks._events import described, log
from locks._loop import Post, poster

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Those that are counted on every system; SIGINT unless it is ignored."""
HANGUP: int | None = getattr(signal, "SIGHUP", None)
"""Counted as well unless it is ignored; `None` where there is no such thing, as on Windows."""
RESTART: int | None = getattr(signal, "SIGUSR1", None)
"""Not counted: asks for a restart; `None` where there is no such thing."""
_PATIENCE = 3
_Handler = Callable[[int, FrameType | None], Any] | int | None


class Signals:
    """Counts the signals of this process while its block runs. To be entered and left on the main thread.

    What has come and was not passed on when the block is left stands in `received`.

    Args:
        leave: ends the process at the third signal, with 128 and its number.
        required: whether entering on another thread is an error; else no signal is seen there.
        hangup_asks: whether SIGHUP does not count, but asks to reread (`pass_to`), unless the terminal has gone.

    Raises:
        RuntimeError: on entering: it is required, and this is not the main thread.
    """

    def __init__(
        self, *, leave: Callable[[int], object] = os._exit, required: bool = False, hangup_asks: bool = False
    ) -> None:
        self.received: list[int] = []
        """The numbers of those that count, in order."""
        self._leave = leave
        self._required = required
        self._before: dict[int, _Handler] = {}
        """The handlers that are to come back."""
        self._post: Post | None = None
        self._call: Callable[[int], object] | None = None
        self._asks: dict[int, Callable[[], object] | None] = {}
        """What is called for the signals that ask for something."""
        self._passed = 0
        self._asked: dict[int, None] = {}
        """Which of those have come since they were last passed on, in order."""
        self._hangup_asks = hangup_asks
        self._had_terminal = hangup_asks and HANGUP is not None and _has_terminal()

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            if self._required:
                name = threading.current_thread().name
                raise RuntimeError(f"signals can be received on the main thread only; this is thread {name!r}")
            return self
        _entered.append(self)
        self._take(signal.SIGTERM, self._count)
        for number in (signal.SIGINT, HANGUP):
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                self._take(number, self._hung_up if number == HANGUP and self._hangup_asks else self._count)
        if RESTART is not None:
            self._take(RESTART, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._leave_block()

    def pass_to(
        self,
        call: Callable[[int], object],
        restart: Callable[[], object] | None = None,
        reread: Callable[[], object] | None = None,
    ) -> None:
        """Pass signals on to the running event loop: those that have come before this returns, later ones soon.

        Args:
            call: called with 1, 2, … for each signal that counts.
            restart: called when SIGUSR1 has come, once for several that come close together. Without it, or once a
                signal has counted, SIGUSR1 is logged and ignored.
            reread: the same for SIGHUP, where `hangup_asks`.

        An exception in one is logged. Called again, it replaces all; no signal is passed on twice.
        """
        self._call, self._post = call, poster()
        self._asks = {number: asks for number, asks in ((RESTART, restart), (HANGUP, reread)) if number is not None}
        self._deliver()

    def _take(self, number: int, handler: Callable[[int, FrameType | None], None]) -> None:
        self._before[number] = signal.getsignal(number)  # noted first: the new one may run before the next line does
        signal.signal(number, handler)

    def _leave_block(self) -> None:
        self._call = self._post = None  # what was posted already calls nothing
        if self in _entered:
            _entered.remove(self)
            self._give_back()

    def _give_back(self) -> None:
        """Put back the handlers of before, except where another one lies over ours."""
        for number, handler in self._before.items():
            if signal.getsignal(number) in (self._count, self._ask, self._hung_up):
                # A handler that was not installed from Python is unknown, and was lost when ours took its place.
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _count(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 -- the shape of a handler
        if self not in _entered:
            self._pass_on(number)
            return
        self.received.append(number)
        if len(self.received) >= _PATIENCE:
            self._leave(128 + number)
        if self._post is not None:
            self._post(self._deliver)

    def _hung_up(self, number: int, frame: FrameType | None) -> None:
        if self._had_terminal and not _has_terminal():
            self._count(number, frame)
        else:
            self._ask(number, frame)

    def _ask(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 -- the shape of a handler
        if self not in _entered:
            self._pass_on(number)
            return
        self._asked[number] = None
        if self._post is not None:
            self._post(self._deliver)

    def _pass_on(self, number: int) -> None:
        """The block was left while another handler lay over ours, and that one was replaced by ours since."""
        self._give_back()
        signal.raise_signal(number)

    def _deliver(self) -> None:
        """On the loop: pass on what has come. A process that stops does not restart, so what counts goes first."""
        while self._call is not None and self._passed < len(self.received):
            self._passed += 1
            _contained(self._call, self._passed)
        while self._call is not None and self._asked:
            number = next(iter(self._asked))
            del self._asked[number]
            name, call = signal.Signals(number).name, self._asks.get(number)
            if self.received:
                log("signal_ignored", signal=name, reason="the process was told to stop")
            elif call is None:
                what = "restarted" if number == RESTART else "read again"
                log("signal_ignored", signal=name, reason=f"nothing here can be {what}")
            else:
                _contained(call)


def _has_terminal() -> bool:
    """Whether the process has a terminal that is still there."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


def _contained(call: Callable[..., object], *args: int) -> None:
    try:
        call(*args)
    except Exception as error:  # raised into trio's own machinery, it would end the loop
        log("signal_call_failed", level="error", error=described(error))


_entered: list[Signals] = []
"""Those whose block runs, the innermost last."""


def _after_fork() -> None:
    for signals in reversed(_entered.copy()):
        signals._leave_block()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
