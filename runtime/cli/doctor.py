"""`lanes doctor DIR`: what is wrong in a directory of sessions, and with `--fix`, what was done about it.

What a killed process left beside a session, and the next lease or turn clears away by itself, is reported as a note.

A line is printed as soon as it is known, so that a large directory needs neither patience nor memory. With `--json`,
standard output is one object, a session a line:

    {"directory": …, "fix": …, "network_fs": …, "sessions": [
    {"file": …, …},
    …
    ], "summary": {"sessions": …, …}}

- `network_fs`: the type of the network file system, where locks of this host exclude no other host; else null.
- A session: `file` (its name, also if only what belonged to it is left: then `exists` is false; with `--recursive`, its
  path below DIR, and so for a directory with a finding), `size` in bytes,
  `records`, `key` (null where no header names it), `broken` (how many lines are no records) and `broken_lines` (the
  first ones: `line`, `offset`, `reason`), `tail` (null, or `bytes` behind the last newline, and whether they are a
  `whole` record), `turn` and `write` (`state`: free, held or unknown; `holder`; `waiting` processes), `lock` (null, or
  the lock file: `holder`, `foreign`, `stale`, `reason`, `age_s`), `links`, `symlink` (null, or where it leads),
  `findings` (`kind`, `text`, `wrong`, `mendable`), `done` and `left` (what `--fix` did, and did not do, in words).
  With `--fix`, all but `done` and `left` is how it is afterwards.
- A holder: `pid`, `host`, `lane`, `run`, `since` and `until` (seconds of the wall clock); each null where not known.
- `summary`: `sessions`, `records`, `bytes`, and how many sessions are `held`, `wrong`, `mendable`, `mended`;
  `interrupted`: the signal that ended it early, or null; `inbox`: what is wrong with the durable inbox, in words, or
  null where there is none.

Further keys may be added. Names that are no UTF-8 are escaped as Python's `os.fsdecode` does.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
from dataclasses import dataclass
from typing import Any

from locks.doctor.findings import Inspection, Mended, Standing
from locks.doctor.inspection import inspect
from locks.doctor.mending import mend
from locks.doctor.searching import Place, one_below, search
from locks.network import network_file_system
from locks.sidecar.lockfile import Found
from runtime import log
from runtime.process.signals import Signals

from ..inbox.settings import FOLDER, NAME
from ..trial.output import Output
from ..usage_error import UsageError, one_line

_WRONG, _NOTHING_SEEN = 1, 2
_LONGEST_LINE = 2000
_WIDEST_NAME = 64
_UNITS = ("bytes", "kB", "MB", "GB", "TB")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The command line."""

    directory: str
    fix: bool = False
    recursive: bool = False
    json: bool = False


@dataclass(slots=True)
class _Summary:
    """Counts over all sessions."""

    sessions: int = 0
    records: int = 0
    bytes: int = 0
    held: int = 0
    wrong: int = 0
    mendable: int = 0
    mended: int = 0
    interrupted: int | None = None
    inbox: list[str] | None = None
    """What is wrong with the inbox of the directory; `None` where there is none."""

    def add(self, seen: Inspection, mended: Mended) -> None:
        """Count one."""
        self.sessions += seen.exists
        self.records += seen.records
        self.bytes += seen.size if seen.exists else 0
        self.held += seen.held
        self.wrong += seen.wrong
        self.mendable += seen.mendable
        self.mended += bool(mended.done)


def run(options: Options) -> int:
    """Do it all; returns the exit code.

    Raises:
        UsageError: there is no such directory, or it cannot be read.
    """
    output = Output(json=options.json)
    log.configure("console", level=logging.ERROR)  # the report has what is seen and done
    summary = _Summary()
    with Signals() as signals:
        places = _places(options, signals)
        network_fs = network_file_system(options.directory)
        report = (
            _JsonReport(output, options, network_fs) if options.json else _Report(output, options, network_fs, places)
        )
        report.begin()
        for place in places:
            if signals.received:
                break
            path = os.path.join(options.directory, place.name)
            seen, mended = place.told or inspect(path), Mended()
            if seen is not None and seen.mendable and options.fix:
                mended = mend(path)
                seen = inspect(path)
            seen = seen or Inspection(path, exists=False)  # gone meanwhile, or all of it was mended
            summary.add(seen, mended)
            report.add(place.name, seen, mended)
        if signals.received:
            summary.interrupted = signals.received[0]
        summary.inbox = _faults_of_inbox(options.directory)
        report.end(summary)
    if summary.interrupted is not None:
        return 128 + summary.interrupted
    if not places:
        return _NOTHING_SEEN
    return _WRONG if summary.wrong or summary.inbox or network_fs is not None or output.failed else 0


def _faults_of_inbox(directory: str) -> list[str] | None:
    """What is wrong with the inbox of a directory; `None` where there is none."""
    if not os.path.lexists(os.path.join(directory, FOLDER, NAME)):
        return None
    import sqlite3  # noqa: PLC0415 -- loaded only where there may be an inbox

    from ..inbox import by_hand  # noqa: PLC0415 -- the same
    from ..inbox.errors import InboxInvalid  # noqa: PLC0415 -- the same

    try:
        with by_hand.opened(directory, changing=False) as connection:
            return by_hand.faults(connection)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (InboxInvalid, sqlite3.Error, OSError) as error:
        return [one_line(str(error))]


def _places(options: Options, signals: Signals) -> list[Place]:
    directory, found = options.directory, []
    try:
        if not directory or "\0" in directory:
            raise UsageError(f"DIR: {directory!r} is not allowed; allowed: a directory of sessions")
        os.path.abspath(directory)  # the report names it, and a current directory may have been removed
        for place in search(directory, recursive=options.recursive):
            if signals.received:
                break
            found.append(place)
        return found
    except OSError as error:
        why = error.strerror or error
        raise UsageError(f"DIR: {directory!r} cannot be read: {why}; allowed: a directory of sessions") from error


class _Report:
    """For people: a line for each session with a finding."""

    def __init__(self, output: Output, options: Options, network_fs: str | None, places: list[Place]) -> None:
        self._output = output
        self._options = options
        self._network_fs = network_fs
        self._places = places
        self._width = min(_WIDEST_NAME, max((_width(place.name) for place in places), default=0))
        self._ailing = 0
        """Sessions with something wrong that can be mended."""

    def begin(self) -> None:
        if self._network_fs is not None:
            self._line("wrong", self._options.directory, [f"on {self._network_fs}, where locks exclude no other host"])

    def add(self, name: str, seen: Inspection, mended: Mended) -> None:
        """A line for a session with a finding."""
        texts = [*mended.done, *(f"left alone: {why}" for why in mended.left), *(one.text for one in seen.findings)]
        if not texts:
            return
        if seen.wrong:
            state = "wrong"
        elif mended.done:
            state = "mended"
        else:
            state = "held" if seen.held else "note"
        self._ailing += seen.ails
        self._line(state, name, texts)

    def end(self, summary: _Summary) -> None:
        """The summary, and what to do next."""
        if summary.inbox:
            self._line("wrong", os.path.join(FOLDER, NAME), summary.inbox)
        if not self._places and summary.interrupted is None:
            self._output.result(self._nothing_here())
            return
        counts = [
            f"{number} {word}"
            for number, word in ((summary.held, "held"), (summary.mended, "mended"), (summary.wrong, "wrong"))
            if number
        ]
        told = ", ".join(counts) or "nothing wrong"
        cut = f"   (cut short by signal {summary.interrupted})" if summary.interrupted is not None else ""
        what = f"{_count(summary.sessions, 'session')}, {_count(summary.records, 'record')}, {_size(summary.bytes)}"
        self._output.result(f"{what}: {told}{cut}")
        if self._ailing and not self._options.fix:
            what = "it" if self._ailing == summary.wrong == 1 else f"{self._ailing} of them"
            self._output.result(f"to mend {what}: {self._command('--fix')}")

    def _nothing_here(self) -> str:
        directory = os.path.abspath(self._options.directory)
        where = one_line(directory, _LONGEST_LINE)
        if self._options.recursive:
            return f"no sessions (*.jsonl) here, nor in the directories below; looked in {where}"
        text = f"no sessions (*.jsonl) here; subdirectories are not looked into; looked in {where}"
        below = one_below(self._options.directory)
        if below is None:
            return text
        return f"{text}; {one_line(below, _LONGEST_LINE)} is one further down: {self._command()} --recursive"

    def _command(self, *more: str) -> str:
        """The command that does the same, with other options."""
        given = ["--recursive"] if self._options.recursive else []
        command = one_line(shlex.quote(self._options.directory), _LONGEST_LINE)
        return " ".join(["lanes doctor", command, *given, *more])

    def _line(self, state: str, name: str, texts: list[str]) -> None:
        shown = one_line(name, _LONGEST_LINE).ljust(self._width)
        self._output.result(f"{state:<6}  {shown}  {one_line('; '.join(texts), _LONGEST_LINE)}")


class _JsonReport:
    """For machines: see the module's text."""

    def __init__(self, output: Output, options: Options, network_fs: str | None) -> None:
        self._output = output
        self._head: dict[str, Any] = {"directory": options.directory, "fix": options.fix, "network_fs": network_fs}
        if options.recursive:
            self._head["recursive"] = True
        self._held_back = ""
        """The last session: a comma follows if another one does."""

    def begin(self) -> None:
        self._output.result(json.dumps(self._head)[:-1] + ', "sessions": [')

    def add(self, name: str, seen: Inspection, mended: Mended) -> None:
        if self._held_back:
            self._output.result(self._held_back + ",")
        self._held_back = json.dumps(_as_json(name, seen, mended))

    def end(self, summary: _Summary) -> None:
        if self._held_back:
            self._output.result(self._held_back)
        fields = {name: getattr(summary, name) for name in _Summary.__slots__}
        self._output.result(f'], "summary": {json.dumps(fields)}}}')


def _as_json(name: str, seen: Inspection, mended: Mended) -> dict[str, Any]:
    lock, tail = seen.lock, seen.tail
    return {
        "file": name,
        "exists": seen.exists,
        "size": seen.size,
        "records": seen.records,
        "key": seen.key,
        "broken": seen.broken_count,
        "broken_lines": [{"line": one.number, "offset": one.offset, "reason": one.reason} for one in seen.broken],
        "tail": None if tail is None else {"bytes": tail.size, "whole": tail.whole},
        "turn": _standing(seen.turn),
        "write": _standing(seen.write),
        "lock": None
        if lock is None
        else {
            "holder": _holder(lock),
            "foreign": lock.foreign,
            "stale": lock.verdict.stale,
            "reason": lock.verdict.reason,
            "age_s": round(lock.verdict.age_s, 3),
        },
        "links": seen.links,
        "symlink": seen.target,
        "findings": [
            {"kind": one.kind, "text": one.text, "wrong": one.wrong, "mendable": one.mendable} for one in seen.findings
        ],
        "done": mended.done,
        "left": mended.left,
    }


def _standing(right: Standing) -> dict[str, Any]:
    holder = None if right.holder is None else _holder(right.holder)
    return {"state": right.state, "holder": holder, "waiting": right.waiting}


def _holder(found: Found) -> dict[str, Any] | None:
    payload = found.payload
    if payload is None:
        return None
    since, most_ms = payload.created_at, payload.max_hold_ms
    return {
        "pid": payload.pid,
        "host": payload.host,
        "lane": payload.lane,
        "run": payload.run_id,
        "since": since,
        "until": None if since is None or most_ms is None else since + most_ms / 1000,
    }


def _width(name: str) -> int:
    return len(name if name.isprintable() else one_line(name, _LONGEST_LINE))


def _size(number: int) -> str:
    thousands = min((len(str(number)) - 1) // 3, len(_UNITS) - 1)
    return f"{number / 1000**thousands:.{1 if thousands else 0}f} {_UNITS[thousands]}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
