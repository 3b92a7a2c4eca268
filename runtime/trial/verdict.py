"""What the files say afterwards: read again with plain `json`, by code that shares nothing with what wrote them.

`survey` looks at the directory before anything is started, `examine` afterwards. What was there before must be there
still, byte for byte up to its last newline; everything behind that must be whole records, those of one turn together,
and each acknowledged one exactly once.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .ledger import Acknowledged, fingerprint

_HEADER_KEY = "lanes.session"
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Broken:
    """A line that is no record."""

    path: str
    number: int
    """Counted from 1."""
    reason: str

    def __str__(self) -> str:
        return f"{self.path}, line {self.number}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Before:
    """One file before the start: its whole lines, which must not change."""

    size: int
    """Up to and with its last newline."""
    digest: bytes
    lines: int
    tail: bytes
    """What stands behind that newline: a line that was torn off, which the next append seals or moves away."""


@dataclass(slots=True)
class Survey:
    """The directory before the start."""

    files: dict[str, Before] = field(default_factory=dict)
    broken: list[Broken] = field(default_factory=list)


@dataclass(slots=True)
class Findings:
    """What the files say."""

    files: int = 0
    records: int = 0
    """Whole new records, headers left out."""
    verified: int = 0
    lost: int = 0
    interleaved: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    """How many answers stand there to each message, by its name."""
    overlaps: int = 0
    """Records of an old generation behind those of a newer one."""
    complaints: list[str] = field(default_factory=list)
    """Each loss, each interleaving, and each second answer, in words."""

    @property
    def doubled(self) -> int:
        """Messages that were answered more than once."""
        return sum(number > 1 for number in self.answers.values())


def survey(root: str) -> Survey:
    """Look at the directory before the start; a missing directory is empty."""
    found = Survey()
    for path in _transcripts(root):
        digest, size, number, tail = hashlib.blake2b(), 0, 0, b""
        for number, line in enumerate(_lines(path), 1):
            _, reason = _record(line)
            if line.endswith(b"\n"):
                digest.update(line)
                size += len(line)
            else:
                tail = line
            if reason is not None:
                reason = reason if not tail else f"unterminated, {reason}"
                found.broken.append(Broken(path, number, reason))
        found.files[os.path.realpath(path)] = Before(size, digest.digest(), number, tail)
    return found


def examine(root: str, before: Survey, acknowledged: Mapping[str, Acknowledged]) -> Findings:
    """Compare the directory with what it was and with what was acknowledged."""
    found = Findings()
    seen: Counter[str] = Counter()
    for path in _transcripts(root):
        real = os.path.realpath(path)
        found.files += 1
        past = before.files.get(real)
        if past is not None and not _is_unchanged(path, past):
            found.lost += past.lines
            found.complaints.append(f"{path}: the {past.lines} lines that were there before were changed")
            continue
        if past is None or not past.tail or not _ends_with(path, past):
            _examine_file(path, past.size if past is not None else 0, found, seen, acknowledged)
    for path in set(before.files) - {os.path.realpath(path) for path in _transcripts(root)}:
        found.lost += before.files[path].lines
        found.complaints.append(f"{path}: is gone, with {before.files[path].lines} lines")
    for key, what in acknowledged.items():
        if seen[key] == 1:
            found.verified += 1
        else:
            found.lost += 1
            how = f"stands there {seen[key]} times" if seen[key] else "is not there"
            found.complaints.append(f"{what.path}: acknowledged record {key} {how}")
    found.complaints += [f"message {name} was answered {n} times" for name, n in found.answers.items() if n > 1]
    return found


def _examine_file(
    path: str, start: int, found: Findings, seen: Counter[str], acknowledged: Mapping[str, Acknowledged]
) -> None:
    real = os.path.realpath(path)
    conducting: str | None = None
    over: set[str] = set()
    generations: list[str] = []
    for number, line in enumerate(_lines(path, start), 1):
        record, reason = _record(line)
        if record is None or not line.endswith(b"\n"):
            found.interleaved += 1
            found.complaints.append(f"{path}, new line {number}: {reason or 'unterminated'}")
            continue
        if start == 0 and number == 1 and _HEADER_KEY in record:
            continue
        found.records += 1
        found.answers.update(_answered_by(record))
        if _is_of_old_generation(record, generations):
            found.overlaps += 1
            found.complaints.append(f"{path}, new line {number}: generation {record['generation']} was over already")
        key, run = record.get("id"), record.get("run")
        if isinstance(key, str) and acknowledged.get(key) == Acknowledged(real, fingerprint(record)):
            seen[key] += 1
        if not isinstance(run, str) or record.get("turn") is not True or run == conducting:
            continue
        if run in over:
            found.interleaved += 1
            found.complaints.append(f"{path}, new line {number}: run {run} writes within the turn of run {conducting}")
        if conducting is not None:
            over.add(conducting)
        conducting = run


def _answered_by(record: dict[str, Any]) -> list[str]:
    """The names of the messages that a record answers."""
    names = record.get("answers")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _is_of_old_generation(record: dict[str, Any], seen: list[str]) -> bool:
    """Whether a newer generation has written before; notes a new one."""
    name = record.get("generation")
    if not isinstance(name, str) or name in seen[-1:]:
        return False
    if name in seen:
        return True
    seen.append(name)
    return False


def _record(line: bytes) -> tuple[dict[str, Any] | None, str | None]:
    """The record on a line, or why there is none."""
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return None, f"not UTF-8: {error.reason} at byte {error.start}"
    except (ValueError, RecursionError) as error:
        return None, f"not JSON: {error}"
    return (value, None) if isinstance(value, dict) else (None, "not a JSON object")


def _is_unchanged(path: str, past: Before) -> bool:
    digest, left = hashlib.blake2b(), past.size
    with Path(path).open("rb") as file:
        while left and (block := file.read(min(left, _BLOCK))):
            digest.update(block)
            left -= len(block)
    return left == 0 and digest.digest() == past.digest


def _ends_with(path: str, past: Before) -> bool:
    """Whether the torn tail is as it was."""
    if Path(path).stat().st_size != past.size + len(past.tail):
        return False
    with Path(path).open("rb") as file:
        _ = file.seek(past.size)
        return file.read() == past.tail


def _transcripts(root: str) -> Iterator[str]:
    """The transcripts of a directory, in order."""
    if not Path(root).is_dir():
        return
    for path in sorted(Path(root).rglob("*.jsonl")):
        if path.is_file():
            yield str(path)


def _lines(path: str, start: int = 0) -> Iterator[bytes]:
    with Path(path).open("rb") as file:
        _ = file.seek(start)
        yield from file
