"""What the files of a crowd say about what its workers have written down. It shares no code with the product.

`judge(directory)` reads the journals, the transcripts, their archives, the graveyard and the torn tails of
`tests.children.crowd` as a stranger would, with `json` and `os`, and lists everything that must not be:

- *lost*, *doubled*: each acknowledged record is there exactly once, in the transcript, in one that was put away or
  deleted, or in the list of a summary that is there itself, in the same sense. A record whose append had not returned
  may be there once.
- *damaged*, *strayed*: each line is a whole record of some writer, in the session for which it was tried.
- *disordered*: the records of a writer stand in its order. A summary stands before all others.
- *parted*: what was appended as one call, or under one write lease, stands together; of a call that did not return, the
  first ones.
- *overlapping*: no two of those who have the same right of a session, and no file put away or deleted while somebody
  else conducts or writes, nor replaced while somebody else writes or another process conducts.
- *late*: nothing that was tried by a run that was over.
- *blind*, *odd*: a lock file that did not name the holder; errors that nobody expects; archives that are not there.
- *cut off*: a torn tail holds no whole record, and nothing of an acknowledged one.
- *left over*: what stands beside the transcripts at the end.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

Id = tuple[str, int]
_KEPT = re.compile(r"\.jsonl(\.torn|\.reset\.[^/]*Z)?$")
_BEGINNING = re.compile(rb'\{"w":"([0-9.]+)","n":([0-9]+),')


@dataclass(frozen=True)
class Hold:
    """When somebody had a right of a session. Open ends are those of the worker's life."""

    begin: int
    end: int
    worker: int
    writer: str


@dataclass
class Account:
    """All journals together."""

    tried: dict[Id, str] = field(default_factory=dict)
    """For which session."""
    acknowledged: set[Id] = field(default_factory=set)
    calls: list[list[Id]] = field(default_factory=list)
    """What was tried in one call."""
    blocks: list[list[Id]] = field(default_factory=list)
    """What was acknowledged under one write lease."""
    covers: dict[Id, list[Id]] = field(default_factory=dict)
    late: set[Id] = field(default_factory=set)
    holds: dict[tuple[str, str], list[Hold]] = field(default_factory=lambda: defaultdict(list))
    """By session and right."""
    moves: list[tuple[str, str, int, int, int]] = field(default_factory=list)
    """What, which session, between which instants, by which worker."""
    archived: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    did: Counter[str] = field(default_factory=Counter)


@dataclass
class Verdict:
    """What was found."""

    violations: list[str]
    did: Counter[str]

    def kinds(self) -> set[str]:
        """The first word of each violation."""
        return {one.split(":")[0] for one in self.violations}


def judge(directory: Path, kills: dict[int, int]) -> Verdict:
    """Compare what is there with what was written down; `kills` says when each worker was killed."""
    account = Account()
    for path in sorted((directory / "journals").iterdir(), key=lambda one: int(one.name)):
        _read(account, int(path.name), path.read_bytes(), kills[int(path.name)])
    books = _Books(account, directory)
    found = [
        *account.complaints,
        *books.complaints,
        *_presence(account, books),
        *_order(account, books),
        *_togetherness(account, books),
        *_overlaps(account),
        *_torn(account, directory / "sessions"),
        *_left_over(account, directory / "sessions"),
    ]
    account.did["appends"] = len(account.acknowledged)
    account.did["records at the end"] = books.live
    account.did["archives"] = books.archives
    account.did["deleted files"] = books.graves
    account.did["torn tails"] = books.torn
    return Verdict(found, account.did)


# The journals


def _read(account: Account, worker: int, journal: bytes, killed_at: int) -> None:
    entered: dict[tuple[str, str, str], int] = {}
    in_block: dict[str, list[Id]] = {}
    for line in journal.split(b"\n")[:-1]:
        word, *words = json.loads(line)
        match word:
            case "try":
                ids = _ids(words[1:])
                account.tried.update(dict.fromkeys(ids, words[0]))
                account.calls.append(ids)
            case "ack":
                ids = _ids(words[1:])
                account.acknowledged.update(ids)
                if ids[0][0] in in_block and ids[0] not in account.covers:
                    in_block[ids[0][0]] += ids
            case "covers":
                mine, *covered = _ids(words[1:])
                account.tried[mine], account.covers[mine] = words[0], covered
            case "late":
                (one,) = _ids(words[1:])
                account.tried[one] = words[0]
                account.late.add(one)
            case "enter":
                name, right, writer, at = words
                entered[name, right, writer] = at
                if right == "write":
                    in_block[writer] = []
            case "leave":
                name, right, writer, at = words
                account.holds[name, right].append(Hold(entered.pop((name, right, writer)), at, worker, writer))
                if right == "write":
                    account.blocks.append(in_block.pop(writer))
            case "aside" | "placed":
                account.moves.append((word, words[0], words[1], words[2], worker))
            case "tears":
                killed_at = words[0]
                account.did["torn writes"] += 1
            case "archived":
                account.archived.append(words[1])
            case "blind":
                account.complaints.append(f"blind: the lock file of {words[0]} does not name worker {worker}")
            case "odd":
                account.complaints.append(f"odd: worker {worker}: {words[0]}")
            case "did":
                account.did[words[0]] += 1
    for (name, right, writer), begin in entered.items():
        account.holds[name, right].append(Hold(begin, max(begin, killed_at), worker, writer))
    account.blocks += in_block.values()


def _ids(words: list[Any]) -> list[Id]:
    return [(writer, number) for writer, number in words]


# The files


class _Books:
    """Where each record is, by the files alone and, for summaries that were summarised, by what they covered."""

    def __init__(self, account: Account, directory: Path) -> None:
        self.complaints: list[str] = []
        self.files: dict[str, list[tuple[Id, bool]]] = {}
        """Of each file, its records in order, and whether they are summaries."""
        self.at: dict[Id, list[tuple[str, int]]] = defaultdict(list)
        self.covered_by: dict[Id, list[Id]] = defaultdict(list)
        self.torn = 0
        sessions = directory / "sessions"
        self.graves = self.archives = 0
        for path in sorted([*sessions.iterdir(), *(directory / "graveyard").iterdir()]):
            self.graves += path.parent.name == "graveyard"
            self.archives += ".jsonl.reset." in path.name
            if path.name.endswith(".jsonl") or ".jsonl.reset." in path.name or path.parent.name == "graveyard":
                self._enter(account, path)
        self.live = sum(len(records) for name, records in self.files.items() if name.endswith(".jsonl"))
        self._follow(account)

    def _enter(self, account: Account, path: Path) -> None:
        *lines, tail = path.read_bytes().split(b"\n")
        session = path.name.partition(".jsonl")[0] + ".jsonl"
        entered = self.files.setdefault(path.name, [])
        if tail:
            self.torn += 1
            if path.name.endswith(".jsonl"):
                self.complaints.append(f"left over: {path.name} ends in the middle of a line")
            elif _record(tail) is not None:
                lines.append(tail)
            else:
                self.complaints += _cut_off(account, path.name, tail)
        for number, line in enumerate(lines):
            if number == 0 and b'"lanes.session"' in line[:20]:
                continue
            record = _record(line)
            if record is None:
                self.complaints.append(f"damaged: {path.name}, line {number + 1}: {line[:80]!r}")
                continue
            one = (record["w"], record["n"])
            if account.tried.get(one) != session:
                self.complaints.append(f"strayed: {one} is in {path.name}")
            if "covers" in record:
                covered = _ids(record["covers"])
                if covered != account.covers.get(one):
                    self.complaints.append(f"damaged: {path.name}, line {number + 1} covers what it was not to")
            self.at[one].append((path.name, len(entered)))
            entered.append((one, "covers" in record))

    def _follow(self, account: Account) -> None:
        """A summary that is there, or that another one covers which is there, stands for what it covers."""
        waiting = [one for one in account.covers if one in self.at]
        followed = set()
        while waiting:
            summary = waiting.pop()
            if summary in followed:
                continue
            followed.add(summary)
            for one in account.covers[summary]:
                self.covered_by[one].append(summary)
                if one in account.covers:
                    waiting.append(one)

    def times(self, one: Id) -> int:
        """How often a record is there."""
        return len(self.at.get(one, ())) + len(self.covered_by.get(one, ()))


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
        whole = record["text"] == chr(97 + sum(record["w"].encode()) % 26) * record["length"]
        return record if whole and isinstance(record["n"], int) else None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


# What must hold


def _presence(account: Account, books: _Books) -> list[str]:
    found = [f"lost: {one} of {account.tried[one]}" for one in sorted(account.acknowledged) if not books.times(one)]
    for one in sorted({*books.at, *books.covered_by}):
        if books.times(one) > 1:
            where = [*(name for name, _ in books.at.get(one, ())), *map(str, books.covered_by.get(one, ()))]
            found.append(f"doubled: {one} is in {', '.join(where)}")
        if one in account.late:
            found.append(f"late: {one} was tried by a run that was over")
    return found


def _order(account: Account, books: _Books) -> list[str]:
    found = []
    ranges: dict[tuple[str, str], list[tuple[int, int, str]]] = defaultdict(list)
    for name, records in books.files.items():
        numbers: dict[str, list[int]] = defaultdict(list)
        for index, ((writer, number), summary) in enumerate(records):
            if not summary:
                numbers[writer].append(number)
            elif index:
                found.append(f"disordered: {(writer, number)} is a summary, and record {index + 1} of {name}")
        for writer, those in numbers.items():
            if those != sorted(those):
                found.append(f"disordered: writer {writer} in {name}: {those}")
            ranges[writer, name.partition(".jsonl")[0]].append((min(those), max(those), name))
    for (writer, _), spans in ranges.items():
        for (_, end, name), (begin, _, other) in pairwise(sorted(spans)):
            if begin <= end:
                found.append(f"disordered: writer {writer} in {name} and {other}")
    return found


def _togetherness(account: Account, books: _Books) -> list[str]:
    found = []
    for call in account.calls:
        there = [books.times(one) > 0 for one in call]
        if there != sorted(there, reverse=True):
            found.append(f"parted: of {call}, there is {there}")
    for block in [*account.blocks, *account.calls]:
        places = [place for one in block for place in books.at.get(one, ())]
        if any(one[0] != other[0] or other[1] != one[1] + 1 for one, other in pairwise(places)):
            found.append(f"parted: {block} at {places}")
    return found


def _overlaps(account: Account) -> list[str]:
    found = []
    for (name, right), holds in account.holds.items():
        last: Hold | None = None
        for hold in sorted(holds, key=lambda one: (one.begin, one.end)):
            if last is not None and hold.begin < last.end:
                found.append(f"overlapping: {right} of {name}: {last} and {hold}")
            last = hold if last is None or hold.end > last.end else last
    for what, name, begin, end, worker in account.moves:
        for right in ("turn", "write"):
            # A worker's own turns let it replace, and its own runs are over before it puts a file away; whichever of
            # its writers it was has the write lease then.
            found += [
                f"overlapping: {name} was {what} from {begin} to {end} by worker {worker}: {right}, {hold}"
                for hold in account.holds.get((name, right), ())
                if hold.worker != worker and hold.begin < begin and end < hold.end
            ]
    return found


def _torn(account: Account, sessions: Path) -> list[str]:
    found = []
    for path in sessions.glob("*.torn"):
        for line in path.read_bytes().split(b"\n")[:-1]:
            account.did["torn tails set aside"] += 1
            found += _cut_off(account, path.name, line)
    return found


def _cut_off(account: Account, name: str, tail: bytes) -> list[str]:
    """A torn tail may hold the beginning of a record that nobody has acknowledged."""
    if _record(tail) is not None:
        return [f"cut off: a whole record, in {name}: {tail[:80]!r}"]
    begun = _BEGINNING.match(tail)
    if begun is not None and (begun[1].decode(), int(begun[2])) in account.acknowledged:
        return [f"cut off: an acknowledged record, in {name}: {tail[:80]!r}"]
    return []


def _left_over(account: Account, sessions: Path) -> list[str]:
    found = [f"lost: the archive {name}" for name in account.archived if not (sessions / name).exists()]
    beside = (name for name in sorted(os.listdir(sessions)) if not _KEPT.search(name))
    return found + [f"left over: {name}" for name in beside]
