"""One run of the harness, from the first message to the result: the same for scenarios, traffic files and programs."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence

import anyio
import psutil

from lanes import Run, RunState
from locks import _clock
from locks._events import log
from runtime.drain import log_unstarted
from runtime.process.signals import Signals
from runtime.supervisor import Supervisor
from runtime.zombies import AbandonedBodies

from .report import Result, policies
from .rereading import Rereading
from .restarting import Restarting
from .work import Work

DRAIN_S = 5.0
"""What running runs get to finish after the first signal, and before a restart."""
_HURRY_S = 0.2
_POLL_S = 0.01
_SAMPLE_S = 0.25
_MARGIN_S = 3.0

Display = Callable[[Supervisor], Awaitable[None]]


class Memory:
    """Resident memory of this process, sampled."""

    def __init__(self) -> None:
        self.peak_mb = 0.0
        self._process = psutil.Process()

    def look(self) -> float:
        """Megabytes now."""
        now: float = self._process.memory_info().rss / 1e6
        self.peak_mb = max(self.peak_mb, now)
        return now

    async def serve(self) -> None:
        """Look until cancelled."""
        while True:
            self.look()
            await anyio.sleep(_SAMPLE_S)


async def serve(
    sup: Supervisor,
    work: Work,
    result: Result,
    signals: Signals,
    display: Display,
    rereading: Rereading | None = None,
) -> None:
    """Do the work, bring everything to an end, and fill in the result. Bounded once the work has been sent.

    The first signal stops the sending and drains, the second one ends the drain. SIGUSR1 restarts the supervisor; where
    only a new process helps, everything ends as after a first signal, and the result says so.
    """
    started = time.monotonic()
    stopping, hurry = anyio.CancelScope(), anyio.CancelScope()
    restarting = Restarting(sup, result, stopping)
    signals.pass_to(
        lambda count: (stopping if count == 1 else hurry).cancel(),
        restart=restarting.ask,
        reread=None if rereading is None else rereading.ask,
    )
    memory = Memory()
    async with anyio.create_task_group() as beside:
        _ = beside.start_soon(memory.serve)
        try:
            async with sup:
                _ = beside.start_soon(_contained, display, sup)
                _ = beside.start_soon(restarting.serve)
                if rereading is not None:
                    _ = beside.start_soon(rereading.serve)
                with stopping:
                    await work.send(sup)
                    await _settle(sup, work, result)
                await restarting.give_up()
                result.new_process &= not signals.received  # a process that is to stop is not to be started again
                if stopping.cancel_called:
                    await _drain(sup, work, result, hurry)
                if not result.new_process:  # else they are why the process has to go
                    within_s = work.release()
                    await _abandoned_to_end(sup, min(within_s, _HURRY_S) if hurry.cancel_called else within_s)
                result.stuck = _stuck(sup, [] if work.kept else sup.runs())
                result.ledger.posted += _uncounted(sup, result)
                await _stop(sup, result)
        except Exception as error:
            result.failure = f"{type(error).__name__}: {error}"
            log("harness_failed", level="error", exc_info=error)
        beside.cancel_scope.cancel()
    statistics = sup.statistics()
    result.loop_lag, result.late_writes_refused = statistics.loop_lag, statistics.late_writes_refused
    result.policies = policies(statistics, result.ledger)
    if result.appended is not None:
        result.appended = statistics.leases.appended
    result.untold = max(0, result.ledger.posted - sum(result.ledger.told.values()))
    result.duration_s = time.monotonic() - started
    result.rss_mb, result.peak_rss_mb = memory.look(), memory.peak_mb
    if len(signals.received) > 1:
        result.signal = signals.received[-1]


async def _contained(display: Display, sup: Supervisor) -> None:
    """A display that fails is no reason to end the work."""
    try:
        await display(sup)
    except Exception as error:
        log("display_failed", level="error", exc_info=error)


async def _settle(sup: Supervisor, work: Work, result: Result) -> None:
    """Wait until every run has ended, or until nothing has happened for longer than any run may take."""
    while work.unsent() or sup.runs():
        if sup.state == "restarting":  # bounded, and its messages are held back until it is over
            await anyio.sleep(_POLL_S)
            continue
        work.resume()
        changed = anyio.Event()
        result.ledger.on_change = changed.set
        deadlines = [run.deadline for run in sup.runs() if run.deadline is not None]
        latest = max(deadlines, default=0.0) - _clock.clock.now()
        with anyio.move_on_after(max(work.sleeps_at_most, latest) + _MARGIN_S) as waiting:
            await changed.wait()
        if waiting.cancelled_caught:
            log("nothing_moves", level="error", live=len(sup.runs()))
            return


async def _drain(sup: Supervisor, work: Work, result: Result, hurry: anyio.CancelScope) -> None:
    """Let running runs finish for a while; those that are queued end without a start."""
    running = sum(run.state is RunState.RUNNING and run.answered_by is None for run in sup.runs())
    log("draining", level="warning", running=running, queued=len(sup.runs()) - running, drain_s=sup.drain_timeout)
    with hurry:
        _ = await sup.drain(sup.drain_timeout)
    if work.kept:
        return
    report = await sup.drain(0.0)  # at rest already, with the same runs queued: this reports which
    log_unstarted(report)
    result.not_started = [repr(run) for run in report.unstarted]
    sup.cancel(reason="only a new process helps" if result.new_process else "lanes run was told to stop")


async def _abandoned_to_end(sup: Supervisor, within_s: float) -> None:
    """Give bodies that were let go a moment to end, and to try their late writes."""
    with anyio.move_on_after(within_s):
        while sup.statistics().abandoned:
            await anyio.sleep(_POLL_S)


def _stuck(sup: Supervisor, waiting: Sequence[Run]) -> list[str]:
    """The sessions whose turn is held or waited for, though everything should be over."""
    found = {
        right.path: f"{right.path}: {right.holder} has its turn"
        for right in sup.registry.holders()
        if right.right == "turn"
    }
    for run in waiting:
        if run.session is not None:
            found.setdefault(sup.layout.file_of(run.session), f"session {run.session!r:.80}: {run!r}")
    return list(found.values())


def _uncounted(sup: Supervisor, result: Result) -> int:
    """How many runs a program has submitted that never ended; the ledger of a scenario has them already."""
    if result.appended is None:
        return 0
    return sum(result.ledger.told.values()) + len(sup.runs()) - result.ledger.posted


async def _stop(sup: Supervisor, result: Result) -> None:
    try:
        _ = await sup.stop(drain_timeout=0.0)
    except AbandonedBodies as error:
        result.abandoned = [repr(run) for run in error.runs]
