"""What must hold, whatever happened. SQL, JSON and arithmetic of its own: nothing of the product is asked.

A finding is a pair: which rule, and what was found. The rules are those of docs/cluster.md.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
from psycopg import sql

from . import varied_judge
from .varied import LANES as VARIED


class Finding(NamedTuple):
    """A rule that was broken."""

    rule: str
    what: str


class Sent(NamedTuple):
    """A message, as its sender knows it."""

    key: str
    lane: str
    session: str
    at: float
    lines: int
    """How many its answer has, the last one included; 0 where that depends."""


@dataclass(slots=True)
class Evidence:
    """What was done, by who did it: times are of the clock that all processes share."""

    directory: Path
    ttl: float
    grace: float
    sent: dict[str, Sent] = field(default_factory=dict)
    acknowledged: list[tuple[float, str, int]] = field(default_factory=list)
    """When, key, id."""
    ended: dict[int, float] = field(default_factory=dict)
    """When a process was killed or had ended, by its id."""
    stopped: list[tuple[int, float, float]] = field(default_factory=list)
    """A process, from when to when it was stopped."""


MOST_REPEATS = 3

_SNAPSHOT = """
with open as (select place, count(*) n, count(*) filter (where state = 'started') s from {s}.message
  where state in ('accepted', 'started') group by place)
select place, t.pending, coalesce(o.n, 0), t.owner, coalesce(o.s, 0), n.id
from {s}.session t full join open o using (place) left join {s}.node n on abs(n.id) = t.owner
where coalesce(t.pending, -1) <> coalesce(o.n, 0) or t.owner is null and o.s > 0 or t.owner is not null and n.id is null
"""


def snapshot(connection: psycopg.Connection, schema: str) -> list[Finding]:
    """What must hold after each commit."""
    findings = list[Finding]()
    for place, pending, is_open, owner, started, node in _rows(connection, schema, _SNAPSHOT):
        if pending != is_open:
            findings.append(Finding("pending", f"{place}: the row says {pending}, and {is_open} messages are open"))
        if owner is None and started:
            findings.append(Finding("half done", f"{place}: {started} messages are started, and no node owns it"))
        if owner is not None and node is None:
            findings.append(Finding("orphaned", f"{place}: its owner {owner} is no node"))
    return findings


def to_do(connection: psycopg.Connection, schema: str, processes: int) -> int:
    """What is still to come: ends of messages, lanes to be told, answers of persons, and dead nodes to be reaped."""
    text = (
        "select (select count(*) from {s}.message where (state in ('accepted', 'started', 'waiting') "
        "or state = 'unknown' and not told) and lane <> 'ticks') "  # schedules go on
        "+ (select count(*) from {s}.ask where state = 'open'), (select count(*) from {s}.node)"
    )
    ((messages, nodes),) = _rows(connection, schema, text)
    return int(messages + max(0, nodes - processes))


def tally(connection: psycopg.Connection, schema: str) -> dict[str, int]:
    """What was done, for a report."""
    text = (
        "select lane || ' ' || state, count(*) from {s}.message group by 1 union all "
        "select 'resets', coalesce(sum(incarnation), 0) from {s}.session"
    )
    return dict(_rows(connection, schema, text))


def dump(connection: psycopg.Connection, schema: str, directory: Path) -> None:
    """Write down what the database has, to be looked at by a person."""
    for table, order in (("message", "id"), ("entry", "place, incarnation, seq"), ("session", "place"), ("node", "id")):
        with (directory / f"{table}.jsonl").open("w") as file:
            text = f"select row_to_json(x)::text from (select * from {{s}}.{table} order by {order}) x"
            file.writelines(f"{line}\n" for (line,) in _rows(connection, schema, text))


def open_ones(connection: psycopg.Connection, schema: str) -> str:
    """Which messages are open, and who has their sessions: for a report."""
    text = (
        "select m.place, t.owner, n.name, t.pending, t.wanted, array_agg(m.state || ' ' || m.id order by m.id) "
        "from {s}.message m left join {s}.session t on t.place = m.place left join {s}.node n on abs(n.id) = t.owner "
        "where m.state in ('accepted', 'started', 'waiting') group by 1, 2, 3, 4, 5 order by 1"
    )
    return "\n  ".join(["", *map(str, _rows(connection, schema, text))])


def judge(connection: psycopg.Connection, schema: str, evidence: Evidence) -> list[Finding]:
    """Everything, when all processes have ended."""
    messages = {
        number: Row(number, *more)
        for number, *more in _rows(
            connection,
            schema,
            "select id, dedupe, lane, session, state, told, attempt, reason from {s}.message order by id",
        )
    }
    entries = defaultdict[str, list[Entry]](list)
    for place, incarnation, seq, fence, line in _rows(
        connection, schema,
        'select place, incarnation, seq, fence, line from {s}.entry order by place collate "C", incarnation, seq',
    ):  # fmt: skip
        entries[place].append(Entry(incarnation, seq, fence, json.loads(line)))
    lengths = {
        (place, incarnation): length
        for place, incarnation, length in _rows(
            connection, schema, "select place, incarnation, next_seq from {s}.session"
        )
    }
    journals = list(_journals(evidence.directory))
    findings = snapshot(connection, schema)
    for rule in (
        _acknowledged(evidence, messages),
        _numbers(entries, lengths),
        _conducted(entries),
        _order(entries),
        _ends(messages, entries, journals),
        _repeats(messages, entries, journals),
        _lines(evidence, messages, entries, journals),
        _bodies(evidence, journals),
        _left(connection, schema),
    ):
        findings += rule
    more = varied_judge.broken(lambda text: _rows(connection, schema, text), entries, journals)
    return findings + [Finding(*one) for one in more]


class Row(NamedTuple):
    """A message in the database."""

    id: int
    key: str | None
    lane: str
    session: str
    state: str
    told: bool
    attempt: int
    reason: str


class Entry(NamedTuple):
    """A record of a transcript."""

    incarnation: int
    seq: int
    fence: int
    line: dict[str, Any]


class Event(NamedTuple):
    """A line of a journal."""

    process: int
    at: float
    kind: str
    what: list[Any]


def _rows(connection: psycopg.Connection, schema: str, text: str) -> list[tuple[Any, ...]]:
    return connection.execute(sql.SQL(text).format(s=sql.Identifier(schema))).fetchall()


def _journals(directory: Path) -> Iterator[Event]:
    for path in sorted(directory.glob("*.journal")):
        process = int(path.name.split(".")[0].split("-")[-1])
        for line in path.read_bytes().splitlines():
            at, kind, *what = json.loads(line)
            yield Event(process, at, kind, what)


def _acknowledged(evidence: Evidence, messages: dict[int, Row]) -> Iterator[Finding]:
    of_key = defaultdict[str, set[int]](set)
    for row in messages.values():
        if row.key is not None:
            of_key[row.key].add(row.id)
    for _, key, number in evidence.acknowledged:
        kept = messages.get(number)
        if kept is None or kept.key != key:
            yield Finding("missing", f"message {number}, acknowledged under {key}, is not there")
        of_key[key].add(number)
    for key, numbers in of_key.items():
        if len(numbers) > 1:
            yield Finding("two messages", f"{key} has {sorted(numbers)}")
    # Who was acknowledged before another one was sent is before it.
    for _, group in groupby(
        sorted(evidence.acknowledged, key=lambda one: (evidence.sent[one[1]].session, one[0])),
        key=lambda one: evidence.sent[one[1]].session,
    ):
        acknowledged = list(group)
        firsts = sorted({key: (evidence.sent[key].at, number) for _, key, number in acknowledged}.values())
        newest, at = 0, 0
        for sent, number in firsts:
            while at < len(acknowledged) and acknowledged[at][0] < sent:
                newest, at = max(newest, acknowledged[at][2]), at + 1
            if number < newest:
                yield Finding("order", f"message {number} was sent after {newest} was acknowledged")


def _numbers(entries: dict[str, list[Entry]], lengths: dict[tuple[str, int], int]) -> Iterator[Finding]:
    for place, lines in entries.items():
        for incarnation, group in groupby(lines, key=lambda one: one.incarnation):
            numbers = [one.seq for one in group]
            if numbers != list(range(len(numbers))):
                yield Finding("gap", f"{place}, transcript {incarnation}: {numbers}")
            if lengths.get((place, incarnation), len(numbers)) != len(numbers):
                yield Finding("gap", f"{place}, transcript {incarnation}: {len(numbers)} records, {lengths}")


def _conducted(entries: dict[str, list[Entry]]) -> Iterator[Finding]:
    """One run after the other, and the fence only rises."""
    for place, lines in entries.items():
        for earlier, later in pairwise(lines):
            if later.fence < earlier.fence:
                yield Finding("fence", f"{place}: {later} behind {earlier}")
        over, current = set[str](), None
        for one in lines:
            run = one.line.get("run")
            if run is None or run == current:
                continue
            if run in over:
                yield Finding("interleaved", f"{place}: {run} writes {one.line} after {current} did")
            if current is not None:
                over.add(current)
            current = run


def _order(entries: dict[str, list[Entry]]) -> Iterator[Finding]:
    """Messages of one lane of a session begin in their order."""
    for place, lines in entries.items():
        begins = [one.line for one in lines if one.line.get("what") == "begin"]
        for lane in {line["lane"] for line in begins}:
            begun = dict.fromkeys(line["message"] for line in begins if line["lane"] == lane)
            for earlier, later in pairwise(begun):
                if later < earlier:
                    yield Finding("order", f"{place}: message {later} of lane {lane} began after {earlier}")


def _ends(messages: dict[int, Row], entries: dict[str, list[Entry]], journals: list[Event]) -> Iterator[Finding]:
    finals, told = defaultdict[int, int](int), set[int]()
    for lines in entries.values():
        for one in lines:
            if one.line.get("what") == "final":
                finals[one.line["message"]] += 1
            told.update(one.line.get("unknown", ()))
    for row in messages.values():
        if row.lane in VARIED:
            continue
        if row.state not in ("done", "unknown"):
            yield Finding("stuck", f"message {row}")
        if row.state == "done" and finals[row.id] != 1:
            yield Finding("final", f"message {row} has {finals[row.id]} final records")
        if row.state != "done" and finals[row.id]:
            yield Finding("unknown", f"message {row} has {finals[row.id]} final records")
        if row.state == "unknown" and row.told and row.id not in told:
            yield Finding("untold", f"message {row}: its lane was told, and its session does not say so")
        if row.state != "unknown" and row.id in told:
            yield Finding("untold", f"message {row}: its lane was told that its end is unknown")
    for number in finals.keys() - messages.keys():
        yield Finding("missing", f"message {number} has an answer, and is not there")
    for event in journals:
        if event.kind == "finished" or (event.kind == "told" and event.what[1] == "done"):
            ended = messages.get(event.what[0])
            if ended is None or (ended.state != "done" and ended.lane != "asks"):  # they wait, and can be withdrawn
                yield Finding("said done", f"{event.what[0]} was said to be done, and is {ended}")


def _repeats(messages: dict[int, Row], entries: dict[str, list[Entry]], journals: list[Event]) -> Iterator[Finding]:
    begun = defaultdict[int, set[str]](set)
    for event in journals:
        if event.kind == "enter" and event.what[1] is not None:
            begun[event.what[1]].add(event.what[2])
    for lines in entries.values():
        for one in lines:
            if one.line.get("what") == "begin":
                begun[one.line["message"]].add(one.line["run"])
    for number, runs in begun.items():
        row = messages.get(number)
        if row is not None and len(runs) > (MOST_REPEATS if row.lane == "again" else 1):
            yield Finding("unsafe repeat", f"message {row} was begun by {sorted(runs)}")


def _lines(
    evidence: Evidence, messages: dict[int, Row], entries: dict[str, list[Entry]], journals: list[Event]
) -> Iterator[Finding]:
    """Each run's lines are there once and in order, and all that were acknowledged; the same of notes."""
    of_run, notes = defaultdict[str, list[dict[str, Any]]](list), defaultdict[str, int](int)
    for place, lines in entries.items():
        for earlier, later in pairwise(lines):
            if later.line.get("part") and earlier.line.get("run") != later.line["run"]:
                yield Finding("lease", f"{place}: {earlier.line} within the lease of {later.line}")
        for one in lines:
            if "run" in one.line:
                of_run[one.line["run"]].append(one.line)
            elif "note" in one.line:
                notes[one.line["note"]] += 1
    for run, written in of_run.items():
        numbers = [one["n"] for one in written]
        if sorted(set(numbers)) != numbers:
            yield Finding("lines", f"run {run} has {numbers}")
        whole = numbers == list(range(len(numbers)))
        row = messages.get(written[0]["message"])
        if written[-1]["what"] == "final" and row is not None and row.key is not None:
            expected = evidence.sent[row.key].lines
            if not whole or len(numbers) != expected:
                yield Finding("lines", f"run {run} of message {row.id} has {numbers}, and should have {expected}")
        elif not whole and not any(one["what"] == "late" for one in written):
            yield Finding("lines", f"run {run} has {numbers}")
    for event in journals:
        if event.kind == "wrote":
            there = {one["n"] for one in of_run[event.what[1]]}
            if event.what[2] not in there:
                yield Finding("lines", f"run {event.what[1]}: {event.what[2]} was acknowledged; there is {there}")
        elif event.kind == "note" and notes[event.what[1]] != 1:
            yield Finding("note", f"{event.what[1]} was acknowledged, and is there {notes[event.what[1]]} times")
    for note, count in notes.items():
        if count > 1:
            yield Finding("note", f"{note} is there {count} times")


def _bodies(evidence: Evidence, journals: list[Event]) -> Iterator[Finding]:
    """No two bodies conduct a session at the same time, unless the earlier one's process stood still."""
    began: dict[str, tuple[str, int, float]] = {}
    ended: dict[str, float] = {}
    still = defaultdict[int, list[tuple[float, float]]](list)
    for process, since, until in evidence.stopped:
        still[process].append((since, until))
    for event in journals:
        if event.kind == "enter":
            began[event.what[2]] = (event.what[0], event.process, event.at)
        elif event.kind == "left":
            ended[event.what[2]] = event.at
        elif event.kind == "stall":
            still[event.process].append((event.at - event.what[0], event.at))
    bodies = sorted(
        (session, since, ended.get(run, evidence.ended.get(process, float("inf"))), process, run)
        for run, (session, process, since) in began.items()
    )
    for _, group in groupby(bodies, key=lambda one: one[0]):
        open_: list[tuple[str, float, float, int, str]] = []
        for body in group:
            open_ = [one for one in open_ if one[2] > body[1]]
            for one in open_:
                if not _stood_still(still[one[3]], body[1], evidence):
                    yield Finding("two bodies", f"{one} and {body}")
            open_.append(body)


def _stood_still(times: Iterable[tuple[float, float]], at: float, evidence: Evidence) -> bool:
    """Whether a process stood still so long before an instant that it could not end its body in time."""
    begins = at - 2 * (evidence.ttl + evidence.grace)
    margin = 0.4 * (0.1 * evidence.ttl + evidence.grace)
    return sum(min(until, at) - max(since, begins) for since, until in times if until > begins and since < at) > margin


def _left(connection: psycopg.Connection, schema: str) -> Iterator[Finding]:
    for place, owner in _rows(connection, schema, "select place, owner from {s}.session where owner is not null"):
        yield Finding("orphaned", f"{place} belongs to {owner}, and all nodes have left")
    for (node,) in _rows(connection, schema, "select id from {s}.node"):
        yield Finding("orphaned", f"node {node} has left, and is still there")
