"""The watchdog: a thread that asks the event loop, again and again, whether it still gets on.

A watcher inside the loop would stand still with it. So a thread posts a *ping* to the loop every 50 ms and measures how
long the answer takes. That is the loop's lag. When the answer is long in coming, the thread looks at the loop's stack:
the guilty line stands there, and the run that it belongs to.

Late is not blocked. The machine may be the cause: an idle loop that is not given a processor, a process that was
stopped, a machine that was suspended. The thread distinguishes them by what it finds: the loop's thread waits in its
selector (idle); the thread itself comes as late as the loop (the process stood still), with processor time spent
meanwhile (the interpreter lock was held) or without; the clock that counts a suspension has moved on more than the one
that does not. Only a loop that runs code counts as blocked.

It has a thread of its own, not the steward's: a host's log handler may block, and leases must end all the same.
"""

from __future__ import annotations

import contextlib
import faulthandler
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice
from typing import Any, TextIO

from locks import _clock
from locks._events import described, log
from locks._loop import Post, poster

from ..quantiles import Quantiles, quantiles
from .frames import code_of, frame_of, is_idle, name_of, place_of, run_of, stack_text
from .limits import Keeper
from .resources import ProcessStatistics, Resources, Usage

THREAD = "lanes-watchdog"
PING_S = 0.05
SUSPECT_S = 0.1
"""A ping that is not answered for so long: the stack is looked at."""
BLOCKED_S = 0.5
"""And for so long: it is reported."""
STOOD_STILL_S = 0.3
"""When this thread itself comes late by so much, all threads did."""
EXIT_NEW_PROCESS = 75
"""The exit code that asks the service manager for a new process (`EX_TEMPFAIL`)."""
_KEPT_LAGS = 1200
_KEPT_STALLS = 100
_LOOK_S = 1.0
_LAST_RESORT_S = 10.0
"""How much later than this thread the one in C ends a process whose loop is dead."""
_ALIVE_S = 2.0
_STOPPED = "the process was stopped, or the machine gave it no time"
_HELD = "code that holds the interpreter lock kept all threads waiting"


@dataclass(frozen=True, slots=True)
class Blocked:
    """The event loop is blocked."""

    for_s: float
    """For so long."""
    place: str
    """The line that runs, short: `tool.py:12 in crunch`."""
    stack: str
    """The loop's stack, outermost call first, with its lines of source."""
    run: str
    """The run whose code it is: `run 7 on lane main`; empty for none."""


@dataclass(frozen=True, slots=True)
class Trends:
    """The past, oldest first."""

    lags: tuple[float, ...]
    """How late the loop was, the last minute, in seconds."""
    usage: tuple[Usage, ...]
    """What the process has used, every ten seconds of the last hour."""


@dataclass(frozen=True, slots=True)
class Stall:
    """Some time in which the loop did not get on."""

    began: float
    ended: float
    why: str
    """In words."""


@dataclass(frozen=True, slots=True)
class _Exit:
    """When, with which code and why the process is to end."""

    at: float
    code: int
    why: str


class _Ping:
    """A question to the loop. `forgiven` is time in which the loop could not have answered it."""

    __slots__ = ("forgiven", "looked_at", "place", "reported", "run", "seen", "sent", "stack")

    def __init__(self, sent: float) -> None:
        self.sent = sent
        self.forgiven = 0.0
        self.looked_at = -math.inf
        self.reported = False
        self.place = self.run = self.stack = ""
        self.seen: dict[tuple[str, object], tuple[int, str]] = {}

    def waited(self, now: float) -> float:
        """Seconds since the question, without those for which the event loop is not to blame."""
        return now - self.sent - self.forgiven

    @property
    def why(self) -> str:
        """Whose code has kept the event loop most often while the question waited, as far as that was seen."""
        if not self.seen:
            return "the event loop was late"
        (run, _), (often, place) = max(self.seen.items(), key=lambda item: item[1][0])
        whose = f"{run or 'code of no run'} at {place}"
        if 2 * often > sum(number for number, _ in self.seen.values()):
            return f"the event loop was blocked by {whose}"
        return f"the event loop was busy, with {whose} and others"


class Watchdog:
    """Watches one event loop and its process.

    `start` and `stop` belong to the loop's thread; `blocked`, `statistics` and `quantiles` to any.

    Args:
        keeper: gets what the process uses, on the loop's thread.
        look: called on the loop's thread every second; returns what is wrong, in words.
        abandoned: how many bodies are abandoned.
        alive: called on the watchdog's thread for as long as the loop gets on and nothing is wrong.
        dead_s: seconds that the loop may be blocked before the process is ended; `None`: for ever.
        leave: ends the process.
    """

    def __init__(
        self,
        keeper: Keeper,
        *,
        look: Callable[[], list[str]],
        abandoned: Callable[[], int],
        alive: Callable[[], object] | None = None,
        dead_s: float | None = None,
        leave: Callable[[int], object] = os._exit,
    ) -> None:
        self.samples: deque[float] = deque(maxlen=_KEPT_LAGS)
        """How late the loop was, the last minute, in seconds."""
        self.stalls: deque[Stall] = deque(maxlen=_KEPT_STALLS)
        self.problems: list[str] = []
        """What was wrong at the last look."""
        self.alive = alive
        self.alive_every_s = _LOOK_S
        """Seconds between two calls of it."""
        self._next_alive = -math.inf
        self._keeper, self._look, self._abandoned = keeper, look, abandoned
        self._dead_s, self._leave = dead_s, leave
        self._resources = Resources()
        self._mutex = threading.Lock()
        """Over what both threads decide: whether the process is to end, and whether the loop is watched at all."""
        self._ping: _Ping | None = None
        self._running = False
        self._thread = 0
        self._post: Post | None = None
        self._due = self._next_look = self._next_round = self._answered = -math.inf
        self._looking = False
        """Whether the loop is still to look around. Asked again meanwhile, it would look twice at one instant."""
        self._since_look = 0
        self._cpu_s = self._asleep_s = 0.0
        self._exit = _Exit(math.inf, 0, "")
        self._alarm: _clock.Alarm | None = None

    # On the loop's thread

    def start(self) -> None:
        """Watch the loop that is running now."""
        now = _clock.clock.now()
        self._thread, self._post = threading.get_ident(), poster()
        self._running, self._looking, self._ping = True, False, None
        self._due, self._answered = now + PING_S, now
        self._next_look = self._next_round = now + _LOOK_S
        self._cpu_s, self._asleep_s = time.process_time(), _asleep_s()
        self._alarm = _clock.clock.alarm(self._tick, THREAD)
        self._alarm.ring_by(self._due)

    def stop(self) -> None:
        """Watch no more."""
        with self._mutex:
            self._running, self._alarm, self._ping = False, None, None
            if self._dead_s is not None:
                faulthandler.cancel_dump_traceback_later()

    def exit_by(self, at: float, code: int, why: str) -> None:
        """End the process at `at`, if it is still there then; `math.inf` for never.

        Time in which the process stands still does not count.
        """
        with self._mutex:
            self._exit = _Exit(at, code, why)

    def why_late(self, due: float, now: float) -> str:
        """Why something that was due came late: the longest stall in between, or what blocks the loop still."""
        stalls = tuple(self.stalls)  # the watchdog's thread notes some meanwhile
        found = [(min(one.ended, now) - max(one.began, due), one.why) for one in stalls if one.ended > due]
        ping = self._ping
        if ping is not None and ping.place:
            found.append((now - max(ping.sent, due), ping.why))
        if why := self._standing_still(now):
            found.append((now - max(self._due, due), why))
        return max(found, default=(0.0, ""))[1]

    def stood_still_s(self, since: float, now: float) -> float:
        """For how long of the time since then the loop did not get on."""
        ping, stalls = self._ping, [(one.began, one.ended) for one in tuple(self.stalls)]
        if ping is not None and ping.place:
            stalls.append((ping.sent, now))
        if self._standing_still(now):
            stalls.append((self._due, now))
        still, counted_to = 0.0, since
        for began, ended in sorted(stalls):
            still += max(0.0, min(ended, now) - max(began, counted_to))
            counted_to = max(counted_to, ended)
        return still

    def _standing_still(self, now: float) -> str:
        """Why the watchdog's thread itself comes late, which is still to note it; empty when it does not."""
        late = now - self._due
        if not self._running or late < STOOD_STILL_S:
            return ""
        return _why_all_are_late(late, time.process_time() - self._cpu_s)

    def _pong(self, ping: _Ping) -> None:
        if not self._running or self._ping is not ping:
            return
        now = _clock.clock.now()
        if self._standing_still(now) == _STOPPED:
            ping.forgiven += now - self._due  # the loop goes on before that thread does
        lag = max(0.0, ping.waited(now))
        self._ping, self._answered = None, now
        self.samples.append(lag)
        self._since_look += 1
        if lag >= SUSPECT_S:
            self.stalls.append(Stall(ping.sent, now, ping.why))
        if ping.reported:
            log("loop_unblocked", level="warning", blocked_s=round(lag, 3), place=ping.place, run=ping.run)
        if self._keeper.late(lag):
            self._since_look = 0  # well again is a whole second without it

    def _look_around(self) -> None:
        if not self._running:
            return
        now = _clock.clock.now()
        self._looking, self._next_look = False, now + _LOOK_S
        try:
            usage, calm = self._resources.now, self._since_look >= int(_LOOK_S / PING_S) - 2
            last = islice(reversed(self.samples), max(1, self._since_look))
            # Not well again before a whole second has passed without it; what the process uses counts all the same.
            self._keeper.look(now, usage, self._abandoned(), max(last, default=0.0) if calm else math.inf)
            if calm:
                self._since_look = 0
            self.problems = self._look()
        except Exception as error:
            log("watchdog_failed", level="error", error=described(error))  # raised further, it would end trio's loop

    # On any thread

    def blocked(self) -> Blocked | None:
        """Whether the loop is blocked at this instant."""
        ping = self._ping
        if ping is None or not self._running or not ping.place:
            return None
        waited = ping.waited(_clock.clock.now())
        return Blocked(waited, ping.place, ping.stack, ping.run) if waited >= BLOCKED_S else None

    def trends(self) -> Trends:
        """The past of the loop's lag, and of what the process uses."""
        return Trends(tuple(self.samples), self._resources.history())

    def quantiles(self) -> Quantiles:
        """The loop's lag over the last minute, in seconds."""
        return quantiles(list(self.samples))

    def statistics(self) -> ProcessStatistics:
        """What the process uses, and how that grows."""
        return self._resources.statistics()

    # On the watchdog's thread

    def _tick(self, now: float) -> float:
        if not self._running:
            return math.inf
        try:
            self._watch(now)
        except Exception as error:
            log("watchdog_failed", level="error", error=described(error))
        self._due = _clock.clock.now() + PING_S
        return self._due

    def _watch(self, now: float) -> None:
        late = now - self._due
        self._note_standing_still(now, late)
        if now >= (leaving := self._exit).at:
            self.end_process(leaving.code, leaving.why)
        ping, post = self._ping, self._post
        if ping is None:
            self._ping = ping = _Ping(now)
            if post is not None:
                post(partial(self._pong, ping))
        elif ping.waited(now) >= SUSPECT_S:
            self._examine(ping, now)
        if now >= self._next_round:
            self._next_round = now + _LOOK_S
            self._resources.look(now)
            self._arm_last_resort()
        if self.alive is not None and now >= self._next_alive:
            self._next_alive = now + self.alive_every_s
            if now - self._answered < _ALIVE_S and not self.problems:
                self.alive()
        if now >= self._next_look and not self._looking and post is not None:
            self._looking = True
            post(self._look_around)

    def _arm_last_resort(self) -> None:
        if self._dead_s is None:
            return
        with self._mutex:
            if self._running:  # else it would end a process that has stopped its supervisor long ago
                _end_later(self._dead_s + _LAST_RESORT_S)

    def _examine(self, ping: _Ping, now: float) -> None:
        waited = ping.waited(now)
        frame = frame_of(self._thread)
        if frame is None or is_idle(frame):
            # It waits in its selector, and the machine has not come to it: late, and no code's fault.
            return
        # At each tick: what runs at one instant in half a second may have come after the culprit.
        run, place, code = name_of(run_of(frame)), place_of(frame), code_of(frame)
        ping.seen = {**ping.seen, (run, code): (ping.seen.get((run, code), (0, ""))[0] + 1, place)}
        if now - ping.looked_at >= BLOCKED_S or not ping.place:
            ping.looked_at = now
            ping.run, ping.stack, ping.place = run, stack_text(frame), place
        del frame
        if waited >= BLOCKED_S and ping.place and not ping.reported:
            ping.reported = True
            log(
                "loop_blocked",
                level="error",
                blocked_s=round(waited, 3),
                place=ping.place,
                run=ping.run,
                stack=ping.stack,
            )
        if self._dead_s is not None and waited >= self._dead_s:
            self.end_process(EXIT_NEW_PROCESS, f"the event loop was blocked for {waited:.0f} s at {ping.place}")

    def _note_standing_still(self, now: float, late: float) -> None:
        cpu_s, asleep_s = time.process_time(), _asleep_s()
        spent, slept = cpu_s - self._cpu_s, asleep_s - self._asleep_s
        self._cpu_s, self._asleep_s = cpu_s, asleep_s
        if slept >= STOOD_STILL_S:
            # Noted as an instant: the clock that all goes by has not moved meanwhile.
            self._stood_still(now, now, slept, "the machine was suspended")
        if late < STOOD_STILL_S:
            return
        why = _why_all_are_late(late, spent)
        self._stood_still(now - late, now, late, why)
        if why == _STOPPED:  # else the loop is as late for that as for any block
            if (ping := self._ping) is not None:
                ping.forgiven += late
            with self._mutex:
                self._exit = replace(self._exit, at=self._exit.at + late)

    def _stood_still(self, began: float, ended: float, still_s: float, why: str) -> None:
        self.stalls.append(Stall(began, ended, f"{why} for {still_s:.2f} s"))
        log("process_stood_still", level="warning", late_s=round(still_s, 3), reason=why)

    def end_process(self, code: int, why: str) -> None:
        """Log why, print all stacks, and end the process. On any thread."""
        log("process_exits", level="critical", code=code, reason=why)
        with contextlib.suppress(Exception):  # stderr is closed, is no file, or is not there at all
            faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        self.exit_by(math.inf, 0, "")
        self._leave(code)


def _end_later(after_s: float) -> None:
    """Have the process ended after so long, with all stacks on stderr if there is one."""
    try:
        faulthandler.dump_traceback_later(after_s, exit=True)
    except Exception:  # a daemon's is closed, no file, or not there at all; the process must end all the same
        faulthandler.dump_traceback_later(after_s, exit=True, file=_nowhere())


@cache
def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")


def _why_all_are_late(late_s: float, spent_s: float) -> str:
    """Why no thread got on, by the processor time that was spent meanwhile."""
    return _HELD if spent_s >= late_s / 2 else _STOPPED


def _asleep_s() -> float:
    """How long this machine has been suspended since its start, where that is known."""
    boot: Any = getattr(time, "CLOCK_BOOTTIME", None)
    if boot is None:
        return 0.0
    while True:
        before, since_start, after = time.monotonic(), time.clock_gettime(boot), time.monotonic()
        if after - before < STOOD_STILL_S / 4:  # else this thread was held up between the two clocks
            return since_start - after
