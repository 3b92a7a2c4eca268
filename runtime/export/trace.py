"""What a supervisor did, as a file that ui.perfetto.dev and chrome://tracing show: the Chrome Trace Event format.

Three groups of tracks. *Lanes*: a row for each run that is there at a time, so a lane with several places, or with a
queue, has several; a run's waiting, its attempts and whatever happened to it stand one behind the other on its row.
*Sessions*: the holders of each turn and of each write lease. *Process*: what the event loop stood still for, restarts,
and all other log lines as marks.

Slices on a track may nest, and nothing else: both viewers drop or misplace those that overlap in part. The format has
asynchronous slices, which may overlap, but the viewers disagree on what to do with their names. Hence rows, and an
instant never moves back on its row: what begins there begins, at the earliest, where the one before it has ended.

What lasts, a run, is written when it begins and again when it ends, so that a process that was killed shows what ran;
what is short or reported late is written when it is over. The format lets the closing bracket be missing. A trace that
cannot be written any more ends there, as a whole: left-out events would leave slices without an end.

A message of an inbox is followed by its id, over runs and processes: each slice of a run names its `messages`. A run
that has asked a person ends with a mark that has the question's id, and the run that brings the answer names that too.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Mapping
from itertools import count
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypedDict

from lanes import Question, Run, RunState
from lanes.core.execution import execution_of
from lanes.core.hooks import Hook
from locks import _clock, _events

from .event_file import EventFile

if TYPE_CHECKING:
    from locks import LockRegistry
    from locks.lowlevel import FileClaim

_LANES, _SESSIONS, _PROCESS = 1, 2, 3
"""The groups of tracks; "processes" to the viewers."""
_KEPT_TRACKS = 2000
"""Lanes, and sessions, whose rows are remembered. A lane that comes back later gets new rows, of the same name."""
_LONGEST_TEXT = 4000


class Events(Protocol):
    """Where the events of a trace go. `put` may be called from any thread, and never waits."""

    path: str
    error: str

    def put(self, event: dict[str, Any]) -> None: ...
    def close(self) -> None: ...


class SupervisorHooks(TypedDict, total=False):
    """The hooks of a supervisor, by the names that it has for them."""

    on_run_start: Hook
    on_run_end: Hook
    on_wait: Hook


class Trace:
    """Writes a trace of one supervisor; a context manager, to be entered before the supervisor and left after it.

        with Trace("trace.json") as trace:
            async with Supervisor("sessions/", **trace.hooks()) as sup:
                trace.watch(sup.registry)

    The file is written by a thread of its own, which ends with the block. Memory is bounded, the file is not: about
    a kilobyte for a run with its leases. A disk that fails, or is too slow, ends the trace with the log line
    `trace_stopped`, and nothing else; the file is good up to there.

    To be used on the event loop's thread. Log lines are taken from all threads, and all of this process's.

    Args:
        path: the file; what it has is overwritten. Or where the events go instead.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str] | Events) -> None:
        self._file: Events = EventFile(os.fspath(path)) if isinstance(path, str | os.PathLike) else path
        self._pid = os.getpid()
        self._origin = _clock.clock.now()
        # Log lines come from any thread, and from what interrupts a thread that logs: a signal's handler, a finalizer.
        self._lock = threading.RLock()
        self._numbers = count(10)
        self._lanes: dict[str, list[_Row]] = {}
        self._files: dict[str, list[_Row]] = {}
        self._live: dict[int, _Row] = {}
        self._watched: list[LockRegistry] = []
        self._closed = False
        for number, name in ((_LANES, "lanes"), (_SESSIONS, "sessions"), (_PROCESS, f"process {self._pid}")):
            self._describe(number, 0, "process_name", name=name)
            self._describe(number, 0, "process_sort_index", sort_index=number)
        self._loop = self._row(_PROCESS, "event loop", [])
        self._restarts = self._row(_PROCESS, "restarts", [])
        self._log = self._row(_PROCESS, "log", [])
        _events.observers += (self._logged,)

    def __repr__(self) -> str:
        return f"<Trace to {self._file.path}: {self._file.error or ('closed' if self._closed else 'open')}>"

    def hooks(
        self, *, on_run_start: Hook | None = None, on_run_end: Hook | None = None, on_wait: Hook | None = None
    ) -> SupervisorHooks:
        """The hooks of `Supervisor` that the trace needs, by name; those that are given are called by them as well."""
        return {
            "on_run_start": _both(self.run_started, on_run_start),
            "on_run_end": _both(self.run_ended, on_run_end),
            "on_wait": _both(self.run_waits, on_wait),
        }

    def watch(self, registry: LockRegistry) -> None:
        """Show the turns and write leases of a lock registry too."""
        registry.arbiter.grants.observers += (self._given_back,)
        self._watched.append(registry)

    def close(self) -> None:
        """Write what is left, and the end. Waits for the disk, for seconds at most. Calling it again does nothing."""
        if self._closed:
            return
        self._closed = True
        _events.observers = tuple(one for one in _events.observers if one != self._logged)
        for registry in self._watched:
            registry.arbiter.grants.observers = tuple(
                one for one in registry.arbiter.grants.observers if one != self._given_back
            )
        with self._lock:
            for row in self._live.values():
                self._end(row, self._now(), {"state": "the trace ended before it"})
            self._live.clear()
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # The hooks of a supervisor

    def run_waits(self, run: Run) -> None:
        """The hook `on_wait`."""
        with self._lock:
            if run.id not in self._live:
                self._begin(self._row_of(run), f"run {run.id} waits", self._us(run.enqueued_at), _who(run))

    def run_started(self, run: Run) -> None:
        """The hook `on_run_start`."""
        assert run.started_at is not None
        at = self._us(run.started_at)
        with self._lock:
            row = self._live.get(run.id) or self._row_of(run)
            self._end(row, at, {})
            self._begin(row, f"run {run.id}", at, {**_who(run), "attempt": run.attempt})

    def run_ended(self, run: Run) -> None:
        """The hook `on_run_end`."""
        outcome = run.outcome
        assert outcome is not None
        ended = self._us(run.enqueued_at + outcome.waited_s + outcome.ran_s)
        with self._lock:
            row = self._live.get(run.id)
            if row is None:  # it could not even wait
                row = self._row_of(run)
                self._begin(row, f"run {run.id}", ended, _who(run))
            if isinstance(outcome.value, Question) and outcome.state is RunState.DONE:
                self._mark(row, "waits for a person", ended, {"ask": outcome.value.id})
            if outcome.state in (RunState.CANCELLED, RunState.SUPERSEDED):
                self._mark(row, outcome.state.value, ended, {"reason": outcome.reason})
            how = {
                "state": outcome.state.value,
                "reason": outcome.reason,
                "waited_s": round(outcome.waited_s, 6),
                "ran_s": round(outcome.ran_s, 6),
                "late_s": round(outcome.late_s, 6),
                "attempts": outcome.attempts,
            }
            self._end(row, ended, how if run.answered_by is None else {**how, "answered_by": run.answered_by})
            del self._live[run.id]
            row.taken = False

    # Rights and log lines

    def _given_back(self, claim: FileClaim) -> None:
        """A right was given back, or taken away and cleared up."""
        assert claim.entry is not None and claim.queue is not None
        path, right = claim.entry.path, claim.queue.right.name.lower()
        args: dict[str, Any] = {"holder": str(claim.holder), "epoch": claim.epoch, "path": path}
        if claim.lost is not None:
            args["lost"] = str(claim.lost)
        run = claim.holder.run_id
        name = str(claim.holder) if run is None else f"run {run}"
        with self._lock:
            rows, track = self._remembered(self._files, path), f"{_stem(path)}: {right}"
            row = next((row for row in rows if row.name == track), None) or self._row(_SESSIONS, track, rows)
            self._slice(row, name, self._us(claim.time.acquired_at), args)

    def _logged(self, event: str, level: str, fields: Mapping[str, Any]) -> None:
        """A log line, on whichever thread."""
        if self._closed or os.getpid() != self._pid:
            return  # a forked child: it has no thread that writes, and maybe not even the lock
        now, args = self._now(), {"level": level, **fields}
        with self._lock:
            if event == "loop_unblocked":
                since = now - round(fields.get("blocked_s", 0.0) * 1e6)
                self._slice(self._loop, f"blocked: {fields.get('place')}", since, args)
            elif event == "process_stood_still":
                self._slice(self._loop, "stood still", now - round(fields.get("late_s", 0.0) * 1e6), args)
            elif event == "loop_blocked":
                self._mark(self._loop, event, now, args)
            elif event == "restart_started":
                self._end(self._restarts, now, {})
                self._begin(self._restarts, "restart", now, args)
            elif event in ("restart_finished", "restart_failed"):
                self._end(self._restarts, now, {"ended": event, **args})
            else:
                self._mark_run(event, now, args)

    def _mark_run(self, event: str, now: int, args: dict[str, Any]) -> None:
        """A log line that may be about a run; that of a failed attempt ends its slice."""
        run = args.get("run")
        row = self._live.get(run) if isinstance(run, int) else None
        self._mark(row or self._log, event, now, args)
        if row is not None and event == "run_retried":
            self._end(row, now, {})
            self._begin(row, f"run {run} waits", now, {"wait_s": args.get("wait_s")})

    # Rows

    def _row_of(self, run: Run) -> _Row:
        """A row of the run's lane that no run is on, from now on its own."""
        rows = self._remembered(self._lanes, run.lane)
        row = next((row for row in rows if not row.taken), None)
        if row is None:
            row = self._row(_LANES, f"{run.lane} ({len(rows) + 1})" if rows else run.lane, rows)
        row.taken = True
        self._live[run.id] = row
        return row

    @staticmethod
    def _remembered(rows: dict[str, list[_Row]], name: str) -> list[_Row]:
        found = rows.pop(name, None)
        if found is None:
            found = []
            if len(rows) >= _KEPT_TRACKS:
                idle = (other for other, those in rows.items() if not any(row.taken for row in those))
                rows.pop(next(idle, ""), None)
        rows[name] = found  # the last one, as the one used last
        return found

    def _row(self, group: int, name: str, rows: list[_Row]) -> _Row:
        """A new row, shown beside those."""
        row = _Row(group, next(self._numbers), name)
        rows.append(row)
        self._describe(group, row.number, "thread_name", name=name)
        self._describe(group, row.number, "thread_sort_index", sort_index=rows[0].number)
        return row

    # Events

    def _us(self, instant: float) -> int:
        return round((instant - self._origin) * 1e6)

    def _now(self) -> int:
        return self._us(_clock.clock.now())

    def _begin(self, row: _Row, name: str, at: int, args: Mapping[str, Any]) -> None:
        assert not row.open, "a slice of a row begins when the one before it has ended"
        row.open = True
        self._put(row, "B", row.reach(at), args, name=name)

    def _end(self, row: _Row, at: int, args: Mapping[str, Any]) -> None:
        """End the slice that is open on a row, if one is."""
        if row.open:
            row.open = False
            self._put(row, "E", row.reach(at), args)

    def _slice(self, row: _Row, name: str, since: int, args: Mapping[str, Any]) -> None:
        """A slice that ends now."""
        began = row.reach(since)
        self._put(row, "X", began, args, name=name, dur=row.reach(self._now()) - began)

    def _mark(self, row: _Row, name: str, at: int, args: Mapping[str, Any]) -> None:
        # It may stand inside of a slice that is only written later, so what comes next may begin before it.
        self._put(row, "i", max(row.at, at), args, name=name, s="t")

    def _put(self, row: _Row, kind: str, at: int, args: Mapping[str, Any], **more: Any) -> None:
        event = {"ph": kind, "pid": row.group, "tid": row.number, "ts": at, **more}
        if args:
            event["args"] = {name: _plain(value) for name, value in args.items()}
        self._file.put(event)

    def _describe(self, group: int, row: int, what: str, **args: Any) -> None:
        event: dict[str, Any] = {"ph": "M", "pid": group, "tid": row, "ts": 0, "name": what, "args": args}
        self._file.put(event)


class _Row:
    """A track of the file. Invariant: nothing on it begins or ends before `at`; at most one slice is `open`."""

    __slots__ = ("at", "group", "name", "number", "open", "taken")

    def __init__(self, group: int, number: int, name: str) -> None:
        self.group = group
        self.number = number
        self.name = name
        self.open = False
        self.taken = False
        """Whether a run is on it."""
        self.at = 0

    def reach(self, at: int) -> int:
        """The instant at which something that comes after all others on this row can stand."""
        self.at = max(self.at, at)
        return self.at


def _both(ours: Hook, given: Hook | None) -> Hook:
    if given is None:
        return ours

    def both(run: Run) -> None:
        ours(run)
        given(run)

    return both


def _who(run: Run) -> dict[str, Any]:
    who: dict[str, Any] = {"run": run.id, "session": run.session, "parent": run.parent}
    execution = execution_of(run)
    if execution is not None and (ids := execution.message_ids()):
        who["messages"] = ", ".join(map(str, ids))
        answer = execution.messages[0].answer if execution.messages else None
        if answer is not None:
            who["answers"] = answer.ask
    return who


def _stem(path: str) -> str:
    return os.path.basename(path).removesuffix(".jsonl")


def _plain(value: Any) -> Any:
    """What JSON has a word for; of anything else its text, so that the trace keeps nothing alive."""
    if value is None or isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    text = _events.described(value) if isinstance(value, BaseException) else str(value)
    return text[:_LONGEST_TEXT]
