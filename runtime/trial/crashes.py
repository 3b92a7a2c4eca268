"""A scenario that is a service with an inbox: its process is killed with -9 again and again, and started again.

Each process reports each of its steps, and is killed after some number of them: in the middle of something, however
fast the machine is. Senders send again, under the same key, what was not acknowledged, and some of what was; the next
process is told nothing else. When the kills are done and nothing is open any more, the last one is asked to end.
"""

from __future__ import annotations

import random
import signal
import sqlite3
import time
from dataclasses import replace

import anyio
from anyio import to_thread

from locks._events import log
from runtime.process.signals import Signals
from runtime.quantiles import quantiles
from runtime.watch.watchdog import EXIT_NEW_PROCESS

from ..usage_error import UsageError
from . import inbox_reading, wire
from .crash_verdict import CrashFindings, Evidence, judge
from .inbox_reading import Disk, path_in
from .options import Options
from .output import Output, leave_now
from .report import USAGE, Result
from .scenario import Plan
from .served import Served
from .totals import ServiceTotals, numbered

_SAID_AGAIN = 5
"""Messages that were acknowledged, and are sent again all the same to the next process."""
_POLL_S = 0.05
_EVERY_S = 1.0
_MARGIN_S = 20.0
"""What a start of a process may take, on a busy machine, too."""


def check(sessions: str) -> None:
    """See that no inbox is there: its messages would be answered by the bodies of the scenario.

    Raises:
        UsageError: one is there.
    """
    if (path := path_in(sessions)).exists():
        raise UsageError(f"--sessions: {str(path)!r} is there already; allowed: a directory without an inbox")


async def serve(plan: Plan, options: Options, result: Result, output: Output, signals: Signals) -> None:
    """Run the scenario to its end, and fill in the result; the sessions are still to be examined. A checkpoint."""
    started = time.monotonic()
    crashes = _Crashes(plan, options, result, output)
    async with anyio.create_task_group() as beside:
        signals.pass_to(crashes.stop, restart=crashes.restart)
        _ = beside.start_soon(crashes.show)
        _ = beside.start_soon(crashes.end_when_all_is_over)
        try:
            await crashes.serve()
        finally:
            crashes.served.kill()
        beside.cancel_scope.cancel()
    crashes.conclude()
    result.duration_s = time.monotonic() - started
    if len(signals.received) > 1:
        result.signal = signals.received[-1]


class _Crashes:
    """The processes, one after the other. On the event loop's thread.

    Invariant: `_left` is the number of reports after which the present process is killed; `None` when it is not, or
    was.
    """

    def __init__(self, plan: Plan, options: Options, result: Result, output: Output) -> None:
        assert plan.crash is not None
        self._plan, self._options, self._result, self._output, self._crash = plan, options, result, output, plan.crash
        self.served = Served(self._note, self._give_up)
        self._evidence = Evidence()
        self._totals = ServiceTotals(result, result.ledger.instance, len(plan.lines))
        self._random = random.Random(f"{plan.seed}/kills")
        self._left: int | None = None
        self._kills = 0
        self._ready_at: float | None = None
        """Since when the present process takes work; `None` when it does not."""
        self._away_since: float | None = None
        """When the last one that took work was gone."""
        self._worked_s = 0.0
        """For how long there was a process that took work: the messages of the plan come in this time."""
        self._stopped = False
        """Whether a signal has asked for the end."""
        self._moved_at = anyio.current_time()
        """When something was reported last, other than a health check."""

    # Signals

    def stop(self, count: int) -> None:
        """Pass on a signal; nothing is started any more."""
        self._stopped = True
        self._left = None
        self.served.stop()
        if count == 1:
            log("stopping_process", level="warning", pid=self.served.pid)

    def restart(self) -> None:
        """Pass it on, once the process takes it: before that, it would be its end."""
        if self._ready_at is not None:
            self.served.send(signal.SIGUSR1)
        else:
            log("signal_ignored", signal="SIGUSR1", reason="the process is just being started")

    # Tasks

    async def serve(self) -> None:
        """One process after the other, until one ends of its own accord."""
        number, killed = 0, 0
        while not self.served.stopping:
            number += 1
            code = await self._one(number)
            if code == USAGE and self._away_since is None:
                leave_now(USAGE)  # it has printed what cannot be used, and nothing was done
            if self._kills > killed:
                killed = self._kills
                continue
            if code != EXIT_NEW_PROCESS:
                if not self._totals.ended and not self._stopped and self._result.failure is None:
                    self._result.failure = f"a process ended with exit code {code}, without a word"
                return

    async def _one(self, number: int) -> int:
        """One process, from start to end; returns its exit code. Cancelled, it is killed."""
        self._totals.begin(number)
        self._evidence.process = number
        kill = self._kills < self._crash.kills
        self._left = self._random.randint(*self._crash.reports) if kill else None
        job = wire.Job(
            options=self._options_for(number),
            service=self._totals.service,
            todo=self._todo(),
            elapsed_s=self._worked_s,
        )
        try:
            return await self.served.run(job)
        finally:
            if self._ready_at is not None:
                self._away_since = anyio.current_time()
                self._worked_s += self._away_since - self._ready_at
                self._ready_at = None

    def _todo(self) -> list[int]:
        """The messages of the plan, by number, whose senders send them: those that are not told, and some others."""
        names = [wire.name_of(self._totals.service, number) for number in range(len(self._plan.lines))]
        kept = [number for number, name in enumerate(names) if name in self._evidence.kept]
        again = {*kept[-_SAID_AGAIN:]}
        return [n for n, name in enumerate(names) if n in again or not self._evidence.is_told(name)]

    async def end_when_all_is_over(self) -> None:
        """Ask the process to end when nothing is open any more, or kill it when nothing moves though something is."""
        slowest = max(max(line.think, line.hold or 0.0) for line in self._plan.lines)
        within_s = slowest * self._plan.scale + self._crash.person + _MARGIN_S
        while True:
            await anyio.sleep(_POLL_S)
            if self._ready_at is not None and not self.served.stopping and await self._is_over():
                if self._kills < self._crash.kills:
                    self._result.failure = f"all was over after {self._kills} of {self._crash.kills} kills"
                self._left = None
                self.served.stop()
            if anyio.current_time() - self._moved_at > within_s:
                self._result.failure = f"nothing has moved for {within_s:.0f} s, and messages are open"
                self._give_up()
                return

    async def _is_over(self) -> bool:
        names = (wire.name_of(self._totals.service, number) for number in range(len(self._plan.lines)))
        if not all(map(self._evidence.is_told, names)):
            return False
        try:
            return await to_thread.run_sync(inbox_reading.open_work, self._result.sessions_dir) == 0
        except (OSError, sqlite3.Error):
            return (
                False  # the process is just making it, or is killed; when it stays so, nothing moves, and that is told
            )

    def _give_up(self) -> None:
        """End a process that is stuck, and start no other one."""
        self._totals.figures.unbounded += 1
        self.served.stop()
        self.served.kill()

    async def show(self) -> None:
        """Print how far it is, a line a second; silent when standard output is for a machine."""
        started = anyio.current_time()
        while not self._output.json:
            await anyio.sleep(_EVERY_S)
            evidence, state = self._evidence, "away" if self._ready_at is None else "taking work"
            self._output.line(
                f"t={anyio.current_time() - started:.1f}s  process {evidence.process} {state}, {self._kills} kills, "
                f"{len(evidence.kept)} messages kept, "
                f"{len(evidence.begun)} begun, {len(evidence.asked)} questions asked, {len(evidence.answered)} answered"
            )

    # Reports

    def _note(self, event: wire.Event) -> None:
        self._totals.note(event)
        if isinstance(event, wire.Probed):
            return
        now = self._moved_at = anyio.current_time()
        self._evidence.note(event)
        if isinstance(event, wire.Ready):
            self._ready_at = now
            if self._away_since is not None:
                self._totals.figures.away_s = max(self._totals.figures.away_s, now - self._away_since)
        if self._left is not None and not isinstance(event, wire.Posted):  # of these, many come at once
            self._left -= 1
            if self._left <= 0:
                self._left = None
                self._kill()

    def _kill(self) -> None:
        self._kills += 1
        self._totals.figures.died += 1
        log("process_killed", number=self._kills, pid=self.served.pid)
        self.served.kill()

    def conclude(self) -> None:
        """Fill in the result, once all processes are over."""
        result, evidence = self._result, self._evidence
        try:
            disk = inbox_reading.read(result.sessions_dir)
        except (OSError, sqlite3.Error) as error:
            disk = Disk({}, {}, [])
            if evidence.kept:
                result.failure = f"the inbox cannot be read: {error}"
        ended = not self._stopped and result.failure is None
        found = result.crash = judge(disk, evidence, ended=ended)
        found.kills, found.planned = self._kills, self._crash.kills
        found.processes, found.away_s = self._totals.figures.processes, self._totals.figures.away_s
        _fill_in(result, evidence, disk, found)
        result.loop_lag = quantiles(self._totals.figures.lags_s)
        result.restarts_s, result.service = self._totals.figures.restarts_s, self._totals.figures

    def _options_for(self, number: int) -> Options:
        trace = self._options.trace
        return self._options if trace is None else replace(self._options, trace=numbered(trace, number))


def _fill_in(result: Result, evidence: Evidence, disk: Disk, found: CrashFindings) -> None:
    """What became of each message."""
    ledger = result.ledger
    own = [row for row in disk.rows.values() if row.ask is None]
    ledger.posted = len(evidence.sent)
    ledger.states = found.states.copy()
    ledger.told["answered"] = sum(row.state == "done" for row in own)
    ledger.told["failed"] = sum(row.state == "failed" for row in own) + len(evidence.refused)
    ledger.waits_s = [max(0.0, row.started_at - row.accepted_at) for row in own if row.started_at is not None]
