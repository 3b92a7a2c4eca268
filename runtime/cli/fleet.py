"""`lanes status` and `lanes top` for several processes: those of this user on this host, or those on a store.

With `--json` it prints one object, `{"fleet": …, "open": […]}`: the fields are those of `runtime.fleet.seen`.
"""

from __future__ import annotations

import os
import socket as sockets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import msgspec

from runtime.fleet.seen import Fleet, FleetError, FleetSeen, ProcessSeen, SessionSeen
from runtime.status import client as clients
from runtime.status import protocol

from ..trial.output import Output, complain
from ..usage_error import UsageError, one_line
from . import status
from .remote import frozen_lines, lasting, printable

if TYPE_CHECKING:
    from runtime.status.figures import Figures

_MOST_SESSIONS = 15
_MOST_PROCESSES = 40
_WIDEST = 40
_ENVIRONMENT = "LANES_STORE"
_NO = 1
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Which:
    """Which fleet was asked for, and which process of it."""

    store: str | None
    """A URL; empty for that of `$LANES_STORE`."""
    schema: str
    node: str | None


def fleet_of(socket: str | None, which: Which) -> Fleet | None:
    """The fleet that is meant; `None` when it is one process.

    Raises:
        UsageError: what was given is no store, or contradicts itself.
    """
    if (store := store_of(socket, which)) is not None:
        return store
    if socket is not None or os.environ.get("LANES_SOCKET"):
        return None
    try:
        several = len(clients.live()) > 1
    except clients.NoProcess as error:
        raise UsageError(str(error)) from error
    if not several:
        return None
    from runtime.fleet.on_host import OnHost  # noqa: PLC0415 -- most often there is one

    return OnHost()


def store_of(socket: str | None, which: Which) -> Fleet | None:
    """The processes on the store that was named; `None` when none was.

    Raises:
        UsageError: what was given is no store, or contradicts itself.
    """
    if which.store is None:
        if which.node is not None:
            raise UsageError(f"--node: {which.node!r} is a process on a store; allowed: with --store")
        return None
    if socket is not None:
        raise UsageError("--socket: is one process, and --store a fleet; allowed: one of them")
    return _on_store(which.store or os.environ.get(_ENVIRONMENT, ""), which.schema)


def _on_store(url: str, schema: str) -> Fleet:
    if not url:
        raise UsageError(
            f"--store: nothing was given, and ${_ENVIRONMENT} is empty; allowed: postgresql://user@host/database"
        )
    try:
        from runtime.fleet.on_store import OnStore  # noqa: PLC0415 -- an extra

        from .stores import store_of  # noqa: PLC0415 -- with it
    except ImportError as error:
        raise UsageError(
            f"--store: its driver cannot be imported ({error}); allowed: with `pip install session-lanes[postgres]`"
        ) from None
    return OnStore(store_of(url, schema))


def show(fleet: Fleet, which: Which, *, json: bool) -> int:
    """Print a fleet, or one process of it; returns the exit code: 1 where one of them does not do its work.

    Raises:
        UsageError: there is no such process.
    """
    import asyncio  # noqa: PLC0415 -- to ask one process takes no event loop

    output = Output(json=json)
    try:
        with asyncio.Runner() as runner:
            return runner.run(_shown(fleet, which, output))
    except FleetError as error:
        complain(printable(str(error)))
        return _NO


async def _shown(fleet: Fleet, which: Which, output: Output) -> int:
    try:
        seen = await fleet.look()
        if which.node is not None:
            return await _show_one(fleet, chosen(seen, which.node), output)
        sessions = await fleet.sessions(at_most=_MOST_SESSIONS)
    finally:
        await fleet.aclose()
    if output.json:
        output.result(msgspec.json.encode({"fleet": seen, "open": sessions}).decode())
    else:
        output.result("\n".join(lines(fleet.name, seen, sessions)))
    return int(output.failed or any(one.state != "alive" for one in seen.processes))


async def _show_one(fleet: Fleet, process: ProcessSeen, output: Output) -> int:
    answer = await fleet.ask(process.key, protocol.Status(), BY)
    if output.json:
        output.result(protocol.encoded(answer).decode().rstrip("\n"))
    elif answer.status is not None:
        output.result("\n".join(status.lines(answer.status)))
    elif answer.frozen is not None:
        output.result("\n".join(frozen_lines(answer.frozen)))
    elif answer.error is not None:
        raise FleetError(answer.error.message)
    return int(output.failed or answer.status is None)


BY = f"an operator, process {os.getpid()} of {sockets.gethostname()}"


def chosen(seen: FleetSeen, node: str) -> ProcessSeen:
    """The process of that name, or with that id.

    Raises:
        UsageError: there is none, or there are several.
    """
    found = [one for one in seen.processes if node in (one.name, one.key)]
    if len(found) == 1:
        return found[0]
    names = ", ".join(f"{one.name} ({one.key})" for one in seen.processes) or "none is there"
    many = f"is the name of {len(found)} processes" if found else "is no process"
    raise UsageError(printable(f"--node: {node!r} {many}; allowed: {names}"))


def lines(name: str, seen: FleetSeen, sessions: list[SessionSeen]) -> list[str]:
    """A fleet, for people: problems and stuck runs first."""
    number = len(seen.processes)
    head = f"{number} process{'' if number == 1 else 'es'} {name}"
    head += f"; {seen.sessions:,} sessions: {seen.conducted:,} conducted"
    report = [head + f", {seen.unowned:,} wait for a process" * bool(seen.unowned)]
    for one in seen.processes:
        report += _problems(one)
    report += ["", "PROCESSES"]
    several = len({one.place for one in seen.processes}) > 1
    rows = [_row(one, several) for one in seen.processes[:_MOST_PROCESSES]]
    widths = [min(_WIDEST, max((len(row[column]) for row in rows), default=0)) for column in range(3)]
    report += [f"  {a:<{widths[0]}}  {b:<{widths[1]}}  {c:<{widths[2]}}  {d}" for a, b, c, d in rows]
    if number > len(rows):
        report.append(f"  … {number - len(rows)} more")
    report += _stuck(seen.processes)
    if sessions:
        report += ["", "SESSIONS, the longest wait first", *(f"  {_session(one)}" for one in sessions)]
    return [printable(line).rstrip() for line in report]


def _problems(one: ProcessSeen) -> list[str]:
    figures = one.figures
    if one.state == "frozen" and figures is not None:
        by = figures.frozen_run or "code of no run"
        return [
            f"{one.name} is FROZEN: its event loop has been blocked for {lasting(figures.frozen_s)} by {by}",
            f"  at {figures.frozen_at or 'a place that is not known'}",
        ]
    if one.state == "late":
        return [f"PROBLEM: {one.name}: it was last heard of {lasting(one.silent_s)} ago, and has given itself up"]
    if one.state == "dead":
        return [f"PROBLEM: {one.name}: it is dead, last heard of {lasting(one.silent_s)} ago; others take over"]
    if one.state == "silent":
        return [f"PROBLEM: {one.name}: {one.why}"]
    found = [f"PROBLEM: {one.name}: {problem}" for problem in (figures.problems if figures is not None else ())]
    return found + ([f"SLOWED: {one.name}: {figures.slowed}"] if figures is not None and figures.slowed else [])


def _row(one: ProcessSeen, several: bool) -> tuple[str, str, str, str]:
    where = f"{one.host}, process {one.pid}" if one.name != f"process {one.pid}" else one.host
    where = one.place if several and one.place else where
    return one.name, one.state, where, _doing(one, one.figures)


def _doing(one: ProcessSeen, figures: Figures | None) -> str:
    if figures is None:
        return one.why
    state = "" if figures.state == "running" else f"{figures.state.upper()}, "
    waits = f" (for {lasting(figures.oldest_wait_s)} at most)" if figures.queued else ""
    report = f"{state}up {lasting(figures.uptime_s)}, generation {figures.generation}: {figures.running} running, "
    report += f"{figures.queued} waiting{waits}, {one.sessions:,} sessions"
    for count, what in ((figures.abandoned, "abandoned"), (figures.parked, "parked")):
        report += f", {count} {what}" * bool(count)
    return f"{report}; loop lag p99 {figures.lag_p99_s * 1000:.1f} ms"


def _stuck(processes: list[ProcessSeen]) -> list[str]:
    report = list[str]()
    for one in processes:
        for run in one.figures.stuck if one.figures is not None else ():
            session = "" if run.session is None or run.lane == f"session:{run.session}" else f", session {run.session}"
            report.append(f"  {one.name}  run {run.id}  {run.lane}{session}  {run.what}")
            if run.at:
                report.append(f"    at {run.at}")
    return ["", "STUCK", *report] if report else []


def _session(one: SessionSeen) -> str:
    owner = "waits for a process" if one.process is None else one.process
    waits = "" if one.oldest_s is None else f", the oldest for {lasting(max(0.0, one.oldest_s))}"
    return f"{one.session}: {owner}; {one.open:,} open{waits}{', wanted by another' * one.wanted}"


class Watched:
    """A fleet, or one process of it, looked at again and again, for `lanes top`."""

    def __init__(self, fleet: Fleet, which: Which) -> None:
        import asyncio  # noqa: PLC0415 -- as above

        self._fleet, self._which = fleet, which
        self._runner = asyncio.Runner()
        self._heard_at = time.monotonic()
        self._last: list[str] = []
        self.lines: list[str] = []
        """What to show."""

    def look(self) -> None:
        """Ask again. Bounded.

        Raises:
            UsageError: there is no such process any more, which the lines show.
        """
        try:
            self._last = self._runner.run(self._looked())
        except UsageError as error:
            self.lines = [f"PROBLEM: {one_line(str(error))}"]
            raise
        except FleetError as error:
            silent = lasting(time.monotonic() - self._heard_at)
            problem = f"PROBLEM: nothing was heard for {silent}: {one_line(str(error))}"
            self.lines = [problem, *(["It was last seen so:", "", *self._last] if self._last else [])]
            return
        self._heard_at = time.monotonic()
        self.lines = self._last

    async def _looked(self) -> list[str]:
        seen = await self._fleet.look()
        if self._which.node is None:
            return lines(self._fleet.name, seen, await self._fleet.sessions(at_most=_MOST_SESSIONS))
        answer = await self._fleet.ask(chosen(seen, self._which.node).key, protocol.Status(), BY)
        if answer.frozen is not None:
            return frozen_lines(answer.frozen)
        if answer.status is None:
            raise FleetError(answer.error.message if answer.error is not None else "no answer")
        return status.lines(answer.status)

    def close(self) -> None:
        """Let go of the connection."""
        self._runner.run(self._fleet.aclose())
        self._runner.close()


class Whoever:
    """The process of a fleet that has the run that is asked about, or the one that is named."""

    def __init__(self, fleet: Fleet, node: str | None) -> None:
        import asyncio  # noqa: PLC0415 -- as above

        self._fleet, self._node = fleet, node
        self._runner = asyncio.Runner()

    def ask(self, question: protocol.Question) -> protocol.Answer:
        """What it answers; where none has the run, what the last one has answered.

        Raises:
            NoAnswer: the fleet cannot be looked at, or it may be one that does not answer.
            UsageError: there is no process of that name.
        """
        try:
            return self._runner.run(self._ask(question))
        except FleetError as error:
            raise clients.NoAnswer(str(error)) from error

    async def _ask(self, question: protocol.Question) -> protocol.Answer:
        seen = await self._fleet.look()
        asked = seen.processes if self._node is None else [chosen(seen, self._node)]
        silent = list[str]()
        for one in asked:
            try:
                answer = await self._fleet.ask(one.key, question, BY)
            except FleetError as error:
                silent.append(f"{one.name}: {error}")
                continue
            if answer.error is None or answer.error.kind != "unknown_run" or len(asked) == 1:
                return answer
        if silent:
            raise FleetError(f"no other process has it, and not all have answered: {'; '.join(silent)}")
        why = f"no process {self._fleet.name} has it: {', '.join(one.name for one in asked) or 'there is none'}"
        return protocol.Answer(error=protocol.Refused(kind="unknown_run", message=why))

    def close(self) -> None:
        """Let go of the connection."""
        self._runner.run(self._fleet.aclose())
        self._runner.close()
