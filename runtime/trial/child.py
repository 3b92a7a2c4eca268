"""One process of a service that its parent starts again: it does its job, reports all of it, and is no orphan.

Started as `python -m runtime.trial.child`, with its job on the first line of its standard input. When that input ends,
its parent is dead, however it died: the process ends at once then. Transcripts take that as they take `kill -9`.
"""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import replace

import anyio
import msgspec

from lanes import SessionLayout
from runtime import log as logging
from runtime.export.trace import Trace
from runtime.process.signals import Signals
from runtime.supervisor import Supervisor

from ..usage_error import UsageError
from . import harness, wire
from .generation_secrets import NAME, GenerationSecrets
from .kept_bodies import KeptBodies
from .kept_work import KeptWork
from .ledger import Ledger
from .model_bodies import ModelBodies
from .options import Options, overrides_of
from .output import complain, leave_now, repair
from .probe import Probe
from .report import RED, USAGE, Result
from .scenario import Plan, plan
from .supervised import opened_socket, opened_trace, supervisor_of
from .target import resolve
from .traffic import Line
from .verdict import Survey
from .work import Scenario, Work

_SERVICES_S = 5.0
"""What the services get to be entered, and to be left."""


class Reporter:
    """Reports to the parent. On any thread; it blocks while the parent does not listen."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._mutex = threading.Lock()

    def report(self, what: wire.Event) -> None:
        """Report it, before anything else happens."""
        left = memoryview(wire.line_of(what))
        with self._mutex:
            try:
                while left:
                    left = left[os.write(self._descriptor, left) :]
            except OSError:
                leave_now(RED)  # the parent is gone

    def listen(self, ledger: Ledger) -> None:
        """Report what goes into the ledger."""
        ledger.on_sent = lambda sent: self.report(wire.Posted(sent.id))
        ledger.on_told = lambda sent, told, state: self.report(wire.Outcome(sent.id, told, state))
        ledger.on_acknowledged = lambda key, what: self.report(wire.Promised(key, what.path, what.fingerprint))


def main() -> int:
    """Do the job; returns the exit code."""
    repair()
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=wire.Job)
    threading.Thread(target=_end_with_parent, name="lanes-parent", daemon=True).start()
    reporter = Reporter(os.dup(1))
    os.dup2(2, 1)  # what else is printed is not for the parent
    try:
        return _run(job, reporter)
    except UsageError as error:
        complain(str(error))
        return USAGE


def _end_with_parent() -> None:
    while os.read(0, 1):  # not through `sys.stdin`, whose lock the interpreter wants when it ends
        pass
    leave_now(RED)


def _run(job: wire.Job, reporter: Reporter) -> int:
    options = job.options
    target = resolve(options.target)
    assert target.file is not None
    todo = plan(target.file, target.name, SessionLayout("."), overrides_of(options))
    assert options.sessions is not None
    result = Result(Ledger(), Survey(), options.backend, options.sessions, plans_abandoned=todo.plans_abandoned)
    reporter.listen(result.ledger)
    result.on_restart = lambda took_s: reporter.report(wire.Restarted(took_s))
    logging.configure(options.log_format)
    with Signals() as signals, opened_trace(options.trace) as trace:
        served = _Served(job, todo, options, result, reporter)
        anyio.run(served.serve, signals, trace, backend=options.backend)
    return result.exit_code


def _moved(line: Line, past: float) -> Line:
    """A message that may be overdue."""
    return msgspec.structs.replace(line, at=max(0.0, line.at - past))


class _Served:
    """What one event loop of it does."""

    def __init__(self, job: wire.Job, todo: Plan, options: Options, result: Result, reporter: Reporter) -> None:
        self._options, self._result, self._reporter = options, result, reporter
        self._secrets = GenerationSecrets(
            todo.restart.secrets if todo.restart is not None else 0.0, result.ledger.instance
        )
        past = job.elapsed_s / todo.scale
        self._plan = replace(todo, lines=tuple(_moved(todo.lines[number], past) for number in job.todo))
        self._names = [wire.name_of(job.service, number) for number in job.todo]

    async def serve(self, signals: Signals, trace: Trace | None) -> None:
        """Serve, and report the result."""
        sup, work = self._kept(trace) if self._plan.crash is not None else self._restarted(trace)
        with opened_socket(self._options.socket, sup):
            await harness.serve(sup, work, self._result, signals, self._display)
        if trace is not None:
            trace.close()
        self._reporter.report(self._ended(sup))
        if self._result.abandoned:
            leave_now(self._result.exit_code)

    def _restarted(self, trace: Trace | None) -> tuple[Supervisor, Work]:
        """For a service that is restarted."""
        assert self._plan.restart is not None
        bodies = ModelBodies(self._result.ledger, self._plan.scale)
        lanes = [replace(spec, handler=bodies.handle) for spec in self._plan.lanes]
        sup = supervisor_of(
            self._result,
            lanes,
            self._plan,
            trace,
            services={NAME: self._secrets.service},
            services_timeout=_SERVICES_S,
            drain_timeout=self._plan.restart.drain,
        )
        return sup, Scenario(self._plan, bodies, self._result.ledger, self._names)

    def _kept(self, trace: Trace | None) -> tuple[Supervisor, Work]:
        """For a service with an inbox, whose process is killed."""
        bodies = KeptBodies(self._result.ledger, self._plan.scale, self._reporter.report)
        lanes = [
            replace(
                spec,
                handler=bodies.handle_again if spec.repeat else bodies.handle_once,
                on_unknown=bodies.tell_unknown,
            )
            for spec in self._plan.lanes
        ]
        sup = supervisor_of(self._result, lanes, self._plan, trace, inbox=True)
        return sup, KeptWork(self._plan, self._names, self._reporter.report)

    async def _display(self, sup: Supervisor) -> None:
        self._reporter.report(wire.Ready())
        await Probe(sup, lambda took_s, answer: self._reporter.report(wire.Probed(took_s, answer))).serve()

    def _ended(self, sup: Supervisor) -> wire.Ended:
        result, ledger = self._result, self._result.ledger
        return wire.Ended(
            lags_s=list(sup.watchdog.samples),
            waits_s=ledger.waits_s,
            recoveries_s=ledger.recoveries_s,
            stuck=result.stuck,
            unanswered=ledger.unanswered,
            dead_writes=ledger.dead_writes,
            late_writes_refused=result.late_writes_refused,
            failure=result.failure,
            not_started=result.not_started,
            abandoned=result.abandoned,
            policies=result.policies,
            shared=dict(ledger.shared),
            rss_mb=result.rss_mb,
            peak_rss_mb=result.peak_rss_mb,
            overlaps=self._secrets.overlaps,
            old_uses=self._secrets.old_uses,
        )


if __name__ == "__main__":
    sys.exit(main())
