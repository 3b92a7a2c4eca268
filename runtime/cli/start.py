"""`lanes run`, once its arguments are parsed: check everything, serve, read the files again, and say what was found."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import anyio

from lanes import LaneSpec, SessionLayout
from runtime import log as logging
from runtime.signals import Signals
from runtime.supervisor import Supervisor
from runtime.trace import SupervisorHooks, Trace

from . import harness, lines, verdict
from .bodies import Bodies
from .directory import prepare
from .harness import Display
from .ledger import Ledger
from .output import Output, leave_now
from .problem import Problem
from .report import Result
from .scenario import Overrides, Plan, described, plan
from .target import Target, resolve
from .work import Program, Scenario, Work

Backend = Literal["asyncio", "trio"]
_NOWHERE = SessionLayout(".")
"""For checking keys before there is a directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The command line."""

    target: str | None = None
    backend: Backend = "asyncio"
    sessions: str | None = None
    scale: float | None = None
    seed: int | None = None
    duration: float | None = None
    json: bool = False
    log_format: logging.LogFormat = "console"
    trace: str | None = None


def list_scenarios() -> int:
    """Print the shipped scenarios, a line each; returns the exit code."""
    output = Output(json=False)
    found = described()
    width = max(len(name) for name, _ in found)
    for name, description in found:
        output.result(f"{name:<{width}}  {description}")
    return int(output.failed)


def run(options: Options) -> int:
    """Do it all; returns the exit code.

    Raises:
        Problem: the input cannot be used; nothing was started, and at most an empty directory was made.
    """
    output = Output(json=options.json)
    target = resolve(options.target)
    overrides = Overrides(scale=options.scale, seed=options.seed, duration=options.duration)
    todo = plan(target.file, target.name, _NOWHERE, overrides) if target.file is not None else None
    directory = prepare(options.sessions)
    logging.configure(options.log_format)
    with Signals() as signals, _trace(options.trace) as trace:
        before = _surveyed(directory)
        result = Result(
            Ledger(runs_count=todo is None),
            before,
            options.backend,
            directory,
            seed=todo.seed if todo is not None else None,
        )
        output.line(f"sessions: {directory}")
        for broken in before.broken:
            output.line(f"broken before: {broken} (left as it is)")
        anyio.run(_serve, target, todo, options, result, output, signals, trace, backend=options.backend)
    return result.exit_code or int(output.failed)


def _surveyed(directory: str) -> verdict.Survey:
    try:
        return verdict.survey(directory)
    except OSError as error:
        raise Problem(f"--sessions: {error.filename}: cannot be read: {error.strerror or error}") from error


def _trace(path: str | None) -> Trace | nullcontext[None]:
    try:
        return nullcontext() if path is None else Trace(path)
    except (OSError, ValueError) as error:
        why = (isinstance(error, OSError) and error.strerror) or error
        raise Problem(f"--trace: {path!r} cannot be written: {why}; allowed: a file") from error


async def _serve(
    target: Target,
    todo: Plan | None,
    options: Options,
    result: Result,
    output: Output,
    signals: Signals,
    trace: Trace | None,
) -> None:
    work: Work
    if todo is not None:
        bodies = Bodies(result.ledger, todo.scale)
        work = Scenario(todo, bodies, result.ledger)
        sup = _supervisor(result, [replace(spec, handler=bodies.handle) for spec in todo.lanes], todo, trace)
        result.plans_abandoned = todo.plans_abandoned
    else:
        assert target.main is not None
        result.appended = 0
        work = Program(target.name, target.main, result, options.duration)
        sup = _supervisor(result, [], None, trace)
    await harness.serve(sup, work, result, signals, _display(output, result.ledger))
    if trace is not None:
        trace.close()
    _conclude(result, output)
    if result.abandoned:
        leave_now(result.exit_code)


def _supervisor(result: Result, lanes: list[LaneSpec], todo: Plan | None, trace: Trace | None) -> Supervisor:
    hooks: SupervisorHooks = {"on_run_start": result.ledger.run_started, "on_run_end": result.ledger.run_ended}
    sup = Supervisor(
        result.sessions_dir,
        lanes=lanes,
        groups=todo.groups if todo is not None else (),
        **(hooks if trace is None else trace.hooks(**hooks)),
    )
    if trace is not None:
        trace.watch(sup.registry)
    return sup


def _display(output: Output, ledger: Ledger) -> Display:
    if output.live:
        from .table import live  # noqa: PLC0415 -- rich is only imported for a terminal

        return live(ledger)
    return lines.plain(output, ledger)


def _conclude(result: Result, output: Output) -> None:
    """Read the files again, and print the verdict."""
    try:
        result.findings = verdict.examine(result.sessions_dir, result.before, result.ledger.acknowledged)
    except OSError as error:
        result.failure = f"{error.filename}: cannot be read: {error.strerror or error}"
    if output.json:
        for line in result.remarks():
            output.line(line)
        output.result(result.as_json())
    else:
        for line in result.lines():
            output.result(line)
