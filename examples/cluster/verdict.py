"""What must hold of a database whose gateways were killed and cut off, read by plain SQL and `json`.

lost          a message that a gateway has acknowledged is not there
doubled       a key has two messages; a message is heard or answered twice
unanswered    a message that is done has no answer in its session
unnamed       the end of a message is unknown, and its session does not say so; or it says so of one that is not
out_of_order  a session has heard a message behind one that was accepted later
interleaved   a run has written into a session after a later one has begun; the numbers of records have gaps
half_done     something is open still; what a session counts as open is not; its owner is gone, or it has none
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg

from examples.agent import INTERRUPTED
from examples.cluster.load import Sent

NAMES = ("lost", "doubled", "unanswered", "unnamed", "out_of_order", "interleaved", "half_done")
_OPEN = ("accepted", "started")


@dataclass
class Verdict:
    """What was found."""

    wrong: Counter[str] = field(default_factory=Counter)
    complaints: list[str] = field(default_factory=list)
    states: Counter[str] = field(default_factory=Counter)
    """Messages that are kept, by state."""
    records: int = 0

    @property
    def green(self) -> bool:
        """Whether nothing is wrong."""
        return not self.complaints

    def complain(self, what: str, text: str) -> None:
        """Note something that must not be."""
        self.wrong[what] += 1
        self.complaints.append(f"{what}: {text}")


@contextlib.contextmanager
def reading(url: str, schema: str = "lanes") -> Iterator[psycopg.Connection[Any]]:
    """A connection that looks into a schema of ours."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("select set_config('search_path', %s, false)", (schema,))
        yield connection


def is_open(connection: psycopg.Connection[Any]) -> bool:
    """Whether something may still happen by itself: messages that are open, unknown ones not told, dead nodes."""
    row = connection.execute(
        "select (select count(*) from message where state in ('accepted', 'started') or state = 'unknown' "
        "and not told) + (select count(*) from session where owner is not null and pending > 0) + "
        "(select count(*) from node where beat_at + make_interval(secs => ttl + grace) < clock_timestamp())"
    ).fetchone()
    assert row is not None
    return bool(row[0])


def judge(connection: psycopg.Connection[Any], sent: Iterable[Sent]) -> Verdict:
    """Compare the database with what senders were told."""
    found = Verdict()
    rows = connection.execute("select id, place, state, dedupe from message order by id").fetchall()
    states: dict[int, str] = {message: state for message, _, state, _ in rows}
    found.states = Counter(states.values())
    by_key: defaultdict[str, list[int]] = defaultdict(list)
    for message, _, _, dedupe in rows:
        by_key[dedupe].append(message)
    for key, ids in by_key.items():
        if len(ids) > 1:
            found.complain("doubled", f"key {key!r} has the messages {ids}")
    for one in sent:
        for message in one.ids:
            if message not in by_key[one.dedupe]:
                found.complain("lost", f"message {message} ({one.dedupe}) was acknowledged, and is not kept")
    heard, answered, named = _read_transcripts(connection, found)
    for message, state in states.items():
        if state in _OPEN:
            found.complain("half_done", f"message {message} is {state}")
        for what, times in (("heard", heard[message]), ("answered", answered[message])):
            if times > 1:
                found.complain("doubled", f"message {message} is {what} {times} times in its session")
        if state == "done" and answered[message] != 1:
            found.complain("unanswered", f"message {message} is done, and its session has no answer to it")
        if (state == "unknown") != bool(named[message]):
            found.complain(
                "unnamed", f"message {message} is {state}, and is named {named[message]} times as interrupted"
            )
    _read_sessions(connection, found)
    return found


def _read_transcripts(
    connection: psycopg.Connection[Any], found: Verdict
) -> tuple[Counter[int], Counter[int], Counter[int]]:
    """How often each message is heard, answered, and named as interrupted."""
    heard, answered, named = Counter[int](), Counter[int](), Counter[int]()
    text = "select place, incarnation, seq, fence, line from entry order by place, incarnation, seq"
    where, due, last, fence = ("", 0), 0, 0, 0
    for place, incarnation, seq, by, line in connection.execute(text):
        if (place, incarnation) != where:
            where, due, last, fence = (place, incarnation), 0, 0, 0
        found.records += 1
        if seq != due:
            found.complain("interleaved", f"{place} has record {seq} behind record {due - 1}")
        if by < fence:
            found.complain("interleaved", f"{place}: record {seq} is by run {by}, behind one by run {fence}")
        due, fence = seq + 1, by
        record = json.loads(line)
        if record.get("role") == "user":
            heard[record["message"]] += 1
            if record["message"] < last:
                found.complain("out_of_order", f"{place} has heard message {record['message']} behind {last}")
            last = record["message"]
        elif record.get("content") == INTERRUPTED:
            named.update(record["answers"])
        elif record.get("role") == "assistant":
            answered.update(record["answers"])
    return heard, answered, named


def _read_sessions(connection: psycopg.Connection[Any], found: Verdict) -> None:
    """What each session counts, and who has it."""
    text = (
        "select s.place, s.pending, s.owner, n.id, s.next_seq, "
        "(select count(*) from message m where m.place = s.place and m.state in ('accepted', 'started')), "
        "(select count(*) from entry e where e.place = s.place and e.incarnation = s.incarnation) "
        "from session s left join node n on abs(n.id) = s.owner order by s.place"
    )
    for place, pending, owner, node, records, really, there in connection.execute(text):
        if pending != really:
            found.complain("half_done", f"{place} counts {pending} open messages, and has {really}")
        if pending and owner is None:
            found.complain("half_done", f"{place} has open messages, and no node has it")
        if owner is not None and node is None:
            found.complain("half_done", f"{place} belongs to node {owner}, which is gone")
        if records != there:
            found.complain("interleaved", f"{place} counts {records} records, and has {there}")
