"""What a directory of transcripts says about the appends of writers that were killed."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Verdict:
    """What a directory of transcripts says about the acknowledgements."""

    lost: list[tuple[int, int, str]] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    doubled: list[tuple[int, int]] = field(default_factory=list)
    disordered: list[int] = field(default_factory=list)
    records: int = 0
    torn: int = 0


def judge(directory: Path, acknowledged: list[tuple[int, int, str]]) -> Verdict:
    """Read every file as a stranger would: line by line, with nothing of ours."""
    verdict = Verdict()
    found: set[tuple[int, int, str]] = set()
    seen: Counter[tuple[int, int]] = Counter()
    for path in sorted(directory.glob("*.jsonl")):
        *lines, tail = path.read_bytes().split(b"\n")
        verdict.torn += bool(tail)
        last: dict[int, int] = {}
        for number, line in enumerate(lines, 1):
            record = _record(line)
            if record is None:
                verdict.damaged.append(f"{path.name}:{number}: {line[:60]!r}")
                continue
            writer = record["writer"]
            if last.get(writer, -1) >= record["number"]:
                verdict.disordered.append(writer)
            last[writer] = record["number"]
            seen[writer, record["number"]] += 1
            found.add((writer, record["number"], path.name))
            verdict.records += 1
    for torn in directory.glob("*.torn"):
        verdict.torn += torn.read_bytes().count(b"\n")
    verdict.lost = [one for one in acknowledged if tuple(one) not in found]
    verdict.doubled = [one for one, times in seen.items() if times > 1]
    return verdict


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
        return record if record["text"] == chr(97 + record["writer"] % 26) * record["length"] else None
    except (ValueError, TypeError, KeyError):
        return None
