"""`lanes run`, once its arguments are parsed: check everything, serve, read the files again, and print the verdict."""

from __future__ import annotations

import socket
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import anyio

from lanes import GroupSpec, LaneSpec, SessionLayout
from runtime import log as logging
from runtime.export.trace import Trace
from runtime.process.signals import Signals

from ..usage_error import UsageError
from . import crashes, harness, lines, processes, verdict
from .directory import prepare
from .harness import Display
from .ledger import Ledger
from .model_bodies import ModelBodies
from .options import Options, overrides_of
from .output import Output, leave_now
from .report import Result
from .rereading import Rereading
from .scenario import Plan, described, limits, plan
from .supervised import check_socket, check_web, opened_socket, opened_trace, opened_web, supervisor_of
from .target import Target, resolve
from .work import Program, Scenario, Work

_NOWHERE = SessionLayout(".")
"""For checking keys before there is a directory."""


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
        UsageError: the input cannot be used; nothing was started, and at most an empty directory was made.
    """
    output = Output(json=options.json)
    target = resolve(options.target)
    todo = plan(target.file, target.name, _NOWHERE, overrides_of(options)) if target.file is not None else None
    check_socket(options.socket)
    directory = prepare(options.sessions)
    logging.configure(options.log_format)
    if todo is not None and todo.crash is not None:
        crashes.check(directory)
    supervised = todo is not None and todo.service
    listener = check_web(options.web, service=supervised) or nullcontext()
    rereads = todo is not None and not supervised and target.is_scenario
    with (
        listener as web,
        Signals(hangup_asks=rereads) as signals,
        opened_trace(None if supervised else options.trace) as trace,
    ):
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
        if supervised:
            assert todo is not None
            serve = processes.serve if todo.crash is None else crashes.serve
            anyio.run(
                serve, todo, replace(options, sessions=directory), result, output, signals, backend=options.backend
            )
            _conclude(result, output)
        else:
            anyio.run(_serve, target, todo, options, result, output, signals, trace, web, backend=options.backend)
    return result.exit_code or int(output.failed)


def _surveyed(directory: str) -> verdict.Survey:
    try:
        return verdict.survey(directory)
    except OSError as error:
        raise UsageError(f"--sessions: {error.filename}: cannot be read: {error.strerror or error}") from error


async def _serve(
    target: Target,
    todo: Plan | None,
    options: Options,
    result: Result,
    output: Output,
    signals: Signals,
    trace: Trace | None,
    web: socket.socket | None,
) -> None:
    work: Work
    rereading: Rereading | None = None
    if todo is not None:
        bodies = ModelBodies(result.ledger, todo.scale)
        work = Scenario(todo, bodies, result.ledger)
        sup = supervisor_of(result, [replace(spec, handler=bodies.handle) for spec in todo.lanes], todo, trace)
        result.plans_abandoned = todo.plans_abandoned
        if target.is_scenario:
            assert target.file is not None
            rereading = Rereading(sup, str(target.file), partial(_limits, target.file, options, bodies))
    else:
        assert target.main is not None
        result.appended = 0
        work = Program(target.name, target.main, result, options.duration)
        sup = supervisor_of(result, [], None, trace)
    with opened_socket(options.socket, sup) as path, opened_web(web, path, output):
        await harness.serve(sup, work, result, signals, _display(output, result.ledger), rereading)
    if trace is not None:
        trace.close()
    _conclude(result, output)
    if result.abandoned:  # an ordinary exit would wait for them
        leave_now(result.exit_code)


def _limits(file: Path, options: Options, bodies: ModelBodies) -> tuple[tuple[LaneSpec, ...], tuple[GroupSpec, ...]]:
    """What a scenario file says of lanes and groups now."""
    lanes, groups = limits(file, overrides_of(options))
    return tuple(replace(spec, handler=bodies.handle) for spec in lanes), groups


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
    if result.service is not None:
        result.service.overlaps += result.findings.overlaps
    if output.json:
        for line in result.remarks():
            output.line(line)
        output.result(result.as_json())
    else:
        for line in result.lines():
            output.result(line)
