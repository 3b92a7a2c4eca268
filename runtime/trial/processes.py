"""A scenario that is a service: a process that is signalled in the middle, and started again when it asks for that.

This is the part of a service manager. It starts the process, sends SIGUSR1 when the scenario says so, passes on its
own signals, and starts the next process when one exits with 75 or is killed, with the messages that have no outcome:
senders send again. The next one is started when the last one is gone, never before.
"""

from __future__ import annotations

import signal
import time
from dataclasses import replace

import anyio

from locks._events import log
from runtime.process.signals import Signals
from runtime.quantiles import quantiles
from runtime.watch.watchdog import EXIT_NEW_PROCESS

from . import wire
from .options import Options
from .output import Output, leave_now
from .report import USAGE, Result
from .scenario import Plan
from .served import Served
from .totals import ServiceTotals, numbered

_MARGIN_S = 10.0
"""What a restart, or an end, may take beyond the drain and the grace."""
_EVERY_S = 1.0


async def serve(plan: Plan, options: Options, result: Result, output: Output, signals: Signals) -> None:
    """Run the scenario to its end, and fill in the result; the files are still to be examined. A checkpoint."""
    started = time.monotonic()
    result.plans_abandoned = plan.plans_abandoned
    service = _Service(plan, options, result, output)
    async with anyio.create_task_group() as beside:
        signals.pass_to(service.stop, restart=service.restart)
        _ = beside.start_soon(service.restart_at_times)
        _ = beside.start_soon(service.show)
        try:
            await service.serve()
        finally:
            service.served.kill()
        beside.cancel_scope.cancel()
    service.totals.close()
    result.loop_lag = quantiles(service.totals.figures.lags_s)
    result.duration_s = time.monotonic() - started
    if len(signals.received) > 1:
        result.signal = signals.received[-1]


class _Service:
    """The processes, one after the other. On the event loop's thread.

    Invariant: `_ready` is set while the process takes signals.
    """

    def __init__(self, plan: Plan, options: Options, result: Result, output: Output) -> None:
        assert plan.restart is not None
        self.totals = ServiceTotals(result, result.ledger.instance, len(plan.lines))
        self._plan, self._options, self._result, self._output = plan, options, result, output
        self._restart = plan.restart
        grace = max(spec.grace for spec in plan.lanes)
        self._within_s = plan.restart.drain + 2 * grace + _MARGIN_S
        self.served = Served(self._note, self._give_up)
        self._ready = anyio.Event()
        self._first_ready = anyio.Event()
        self._began = 0.0
        self._ready_until = 0.0
        """When there was last a process that took work."""
        self._restarted = anyio.Event()
        """Set when a restart has come to something: a new generation, or the end of the process."""

    # Signals

    def stop(self, count: int) -> None:
        """Pass on a signal; nothing is started any more."""
        self.served.stop()
        if count == 1:
            log("stopping_process", level="warning", pid=self.served.pid)

    def restart(self) -> None:
        """Pass it on, once the process takes it: before that, it would be its end."""
        if self._ready.is_set():
            self.served.send(signal.SIGUSR1)
        else:
            log("signal_ignored", signal="SIGUSR1", reason="the process is just being started")

    # Tasks

    async def serve(self) -> None:
        """One process after the other, until one ends of its own accord."""
        left = self.totals.left()
        for number in range(1, self._restart.processes + 1):
            if self.served.stopping:
                return
            code = await self._one(number, left)
            if code == USAGE and not self._first_ready.is_set():
                leave_now(USAGE)  # it has printed what cannot be used, and nothing was done
            if code >= 0 and not self.totals.ended:  # it has reported what is wrong by its own account
                self._result.failure = f"a process ended with exit code {code}, without a word"
            if code == EXIT_NEW_PROCESS:
                self.totals.figures.replaced += 1
            elif code < 0 and not self.served.stopping:
                self.totals.figures.died += 1
            else:
                return
            left = self.totals.left()
            log("process_ended", level="warning", code=code, messages_left=len(left))
            if not left:
                return
        self._result.failure = f"{len(left)} messages are left over by the last of {self._restart.processes} processes"

    async def restart_at_times(self) -> None:
        """Send SIGUSR1 when the scenario says so, and see that something comes of it in time."""
        await self._first_ready.wait()
        for at in self._restart.at:
            await anyio.sleep_until(self._began + at)
            await self._ready.wait()
            self._restarted = anyio.Event()
            self.served.send(signal.SIGUSR1)
            with anyio.move_on_after(self._within_s) as waiting:
                await self._restarted.wait()
            if waiting.cancelled_caught and not self.served.stopping:
                log("restart_not_in_time", level="error", within_s=self._within_s)
                self._give_up()

    def _give_up(self) -> None:
        """End a process that is stuck."""
        self.totals.figures.unbounded += 1
        self.served.kill()

    async def show(self) -> None:
        """Print how far it is, a line a second; silent when standard output is for a machine."""
        started = anyio.current_time()
        while not self._output.json:
            await anyio.sleep(_EVERY_S)
            told, figures = self.totals.told(), self.totals.figures
            state = "taking work" if self._ready.is_set() else "away"
            self._output.line(
                f"t={anyio.current_time() - started:.1f}s  process {figures.processes} {state}, "
                f"{len(figures.restarts_s)} restarts, {told['answered']} answered, {told['timed_out']} timed out, "
                f"{told['failed']} failed, probe max {max(figures.probes_s, default=0.0) * 1000:.1f} ms"
            )

    async def _one(self, number: int, todo: list[int]) -> int:
        """One process, from start to end; returns its exit code. Cancelled, it is killed."""
        self.totals.begin(number)
        job = wire.Job(
            options=self._options_for(number),
            service=self.totals.service,
            todo=todo,
            elapsed_s=0.0 if number == 1 else anyio.current_time() - self._began,
        )
        try:
            return await self.served.run(job)
        finally:
            self._note_away()
            self._restarted.set()

    def _note(self, event: wire.Event) -> None:
        if isinstance(event, wire.Ready):
            self._note_ready()
        elif isinstance(event, wire.Restarted):
            self._restarted.set()
        self.totals.note(event)

    def _note_ready(self) -> None:
        now = anyio.current_time()
        if self._ready_until:
            self.totals.figures.away_s = max(self.totals.figures.away_s, now - self._ready_until)
        if not self._first_ready.is_set():
            self._began = now
            self._first_ready.set()
        self._ready.set()

    def _note_away(self) -> None:
        if self._ready.is_set():
            self._ready, self._ready_until = anyio.Event(), anyio.current_time()

    def _options_for(self, number: int) -> Options:
        trace = self._options.trace
        return self._options if trace is None else replace(self._options, trace=numbered(trace, number))
