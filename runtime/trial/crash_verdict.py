"""What must hold of an inbox whose process was killed again and again: the disk against what its senders were told.

    lost          a message that `accept` acknowledged is not there, is there twice, or was never brought to an end;
                  one that is done has no answer in its session
    repeated      a body has begun more often than its lane allows
    unnamed       the end of a message is unknown, and its session was not told so before what came later; or the
                  session was told so of a message that has ended otherwise
    questions     one that was asked is not there, was not closed exactly once, or brought the session something else
                  than what the person was told
    out_of_order  a message has begun behind one of its lane and session that was accepted later

An answer that stands in a session twice is found by `verdict.examine`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from . import wire
from .inbox_reading import Disk, Row

_ENDS = ("done", "failed", "unknown")
"""How a message may end here: no one cancels it, and none takes its place."""
_OPEN = ("accepted", "started", "waiting")


class Evidence:
    """What the processes have reported, step by step, until the moment that each was killed."""

    def __init__(self) -> None:
        self.process = 0
        """The number of the present process."""
        self.sent: set[str] = set()
        self.refused: set[str] = set()
        self.kept: defaultdict[str, set[int]] = defaultdict(set)
        """The ids under which `accept` has acknowledged each message."""
        self.begun: defaultdict[int, list[int]] = defaultdict(list)
        """Of each message, the processes in which a body began."""
        self.asked: dict[str, tuple[str, int]] = {}
        """Of each question, what it is about, and the process that asked it."""
        self.answered: defaultdict[str, list[str]] = defaultdict(list)
        """Of each question, the answers that were acknowledged."""
        self.survived = 0
        """Questions that were answered in a later process than the one that asked them."""

    def note(self, event: wire.Event) -> None:
        """Note a report."""
        match event:
            case wire.Posted():
                self.sent.add(event.name)
            case wire.Outcome():
                self.refused.add(event.name)
            case wire.Kept(state="dropped"):
                self.refused.add(event.name)  # its lane was full, and its sender reads so
            case wire.Kept():
                self.kept[event.name].add(event.message)
            case wire.Begun():
                for message in event.messages:
                    self.begun[message].append(self.process)
            case wire.Asked():
                self.asked.setdefault(event.ask, (event.name, self.process))
            case wire.Answered():
                self.answered[event.ask].append(event.value)
                self.survived += event.ask in self.asked and self.asked[event.ask][1] < self.process
            case _:
                pass

    def is_told(self, name: str) -> bool:
        """Whether the sender of a message knows what has become of it: it does not send it again."""
        return name in self.kept or name in self.refused


@dataclass(slots=True)
class CrashFindings:
    """What came of it."""

    kills: int = 0
    planned: int = 0
    processes: int = 0
    away_s: float = 0.0
    """The longest time without a process that takes work."""
    survived: int = 0
    states: Counter[str] = field(default_factory=Counter)
    """Messages that are kept, by state."""
    again: int = 0
    """Messages that were begun in several processes, because their lane allows it."""
    asked: int = 0
    wrong: Counter[str] = field(default_factory=Counter)
    """What must not happen, by the names at the head of this module."""
    complaints: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    """The messages whose end is unknown."""

    def complain(self, what: str, text: str) -> None:
        """Note something that must not happen."""
        self.wrong[what] += 1
        self.complaints.append(text)

    def as_json(self) -> dict[str, Any]:
        """Under the names that machines rely on."""
        names = ("lost", "repeated", "unnamed", "questions", "out_of_order")
        return {
            "kills": self.kills,
            "kept": sum(self.states.values()),
            "unknown": len(self.unknown),
            "begun_again": self.again,
            "asked": self.asked,
            "asked_before_a_kill": self.survived,
            "inbox": {name: self.wrong[name] for name in names},
        }

    def lines(self) -> Iterator[str]:
        """The same for people."""
        away = f"{self.processes} processes, at most {self.away_s:.1f} s without one"
        yield f"  kills        {self.kills} with -9, of {self.planned}; {away}"
        states = ", ".join(f"{number} {state}" for state, number in sorted(self.states.items())) or "none"
        yield f"  inbox        {sum(self.states.values())} kept: {states}; {self.again} begun again, as allowed"
        yield f"  questions    {self.asked} asked, {self.survived} answered in a later process"
        wrong = ", ".join(f"{self.wrong[name]} {name.replace('_', ' ')}" for name in self.as_json()["inbox"])
        yield f"  accepted     {wrong}"


def judge(disk: Disk, evidence: Evidence, *, ended: bool) -> CrashFindings:
    """Compare the disk with what was reported.

    Args:
        ended: whether everything was to come to its end; else it was stopped, and what waits may still wait.
    """
    return _Judge(disk, evidence, ended).judge()


class _Judge:
    def __init__(self, disk: Disk, evidence: Evidence, ended: bool) -> None:
        self._disk, self._evidence, self._ended = disk, evidence, ended
        self._found = CrashFindings(survived=evidence.survived, asked=len(disk.questions))
        self._answers: Counter[str] = Counter()
        self._carriers: defaultdict[str, list[Row]] = defaultdict(list)
        """By name, the message and those that brought answers about it."""
        self._named: set[int] = set()

    def judge(self) -> CrashFindings:
        found, rows = self._found, self._disk.rows
        found.states = Counter(row.state for row in rows.values())
        for row in rows.values():
            if row.name is not None:
                self._carriers[row.name].append(row)
        for session in self._disk.sessions:
            self._read_session(session)
        for name, ids in sorted(self._evidence.kept.items()):
            self._judge_message(name, ids)
        for row in rows.values():
            self._judge_begun(row)
            self._judge_unknown(row)
        for key in sorted(self._evidence.asked.keys() | self._disk.questions.keys()):
            self._judge_question(key)
        return found

    def _read_session(self, records: list[dict[str, Any]]) -> None:
        """One session: its answers, and in which order its messages were begun and named."""
        last: Counter[str] = Counter()
        for record in records:
            self._answers.update(record.get("answers", ()))
            for key in record.get("begins", ()):
                row = self._disk.rows.get(key)
                if row is None:
                    self._found.complain("lost", f"message {key}: its session has it, the inbox has not")
                elif row.ask is None:  # answers of persons go before what waits
                    if key < last[row.lane]:
                        self._found.complain(
                            "out_of_order", f"message {key} ({row.name}) was begun behind {last[row.lane]}"
                        )
                    last[row.lane] = key
            for key in record.get("unknown", ()):
                row = self._disk.rows.get(key)
                if row is None or row.state != "unknown":
                    state = "is not kept" if row is None else f"is {row.state}"
                    self._found.complain(
                        "unnamed", f"message {key}: its session says that it was interrupted; it {state}"
                    )
                elif key < last[row.lane] and key not in self._named:
                    self._found.complain(
                        "unnamed", f"message {key} ({row.name}): its session was told behind message {last[row.lane]}"
                    )
                self._named.add(key)

    def _judge_message(self, name: str, ids: set[int]) -> None:
        """One message whose sender was told that it is kept."""
        lost = self._complaining("lost", name)
        if len(ids) > 1:
            lost(f"was acknowledged under {len(ids)} ids: {sorted(ids)}")
        own = [row for row in self._carriers[name] if row.ask is None]
        if len(own) != 1 or own[0].id not in ids:
            lost(f"was acknowledged as {sorted(ids)}, and is kept as {[row.id for row in own] or 'nothing'}")
            return
        for row in self._carriers[name]:
            if row.state not in _ENDS and (self._ended or row.state not in _OPEN):
                lost(f"is kept as {row.id}, and has ended as {row.state}")
        if all(row.state == "done" for row in self._carriers[name]) and not self._answers[name]:
            lost("is done, and no answer to it stands in its session")

    def _judge_begun(self, row: Row) -> None:
        begun, allowed = self._evidence.begun.get(row.id, []), max(1, row.repeat)
        self._found.again += len(set(begun)) > 1
        if len(begun) > allowed:
            self._found.complain(
                "repeated", f"message {row.id} ({row.name}) was begun in processes {begun}; allowed: {allowed} times"
            )

    def _judge_unknown(self, row: Row) -> None:
        if row.state != "unknown":
            return
        self._found.unknown.append(f"message {row.id} ({row.name}) on lane {row.lane}")
        if row.id not in self._named and self._ended:
            self._found.complain(
                "unnamed", f"message {row.id} ({row.name}) is unknown, and its session does not say so"
            )

    def _judge_question(self, key: str) -> None:
        """One question."""
        wrong = self._complaining("questions", key)
        question, told = self._disk.questions.get(key), self._evidence.answered.get(key, [])
        if question is None:
            wrong("was asked, and is not kept")
            return
        if question.state not in ("answered", "expired"):
            if self._ended or told:
                wrong(f"was never closed: it is {question.state}")
            return
        if len(told) > 1 or (told and [question.value] != told):
            wrong(f"was answered {told}, and is kept as {question.state} {question.value!r}")
        brought = [row for row in self._disk.rows.values() if row.ask == key]
        if len(brought) != 1:
            wrong(f"was closed, and brought {len(brought)} messages")
        for session in self._disk.sessions:
            for record in session:
                if record.get("ask") == key and (record["outcome"], record["value"]) != question[1:3]:
                    wrong(f"is kept as {question.state} {question.value!r}, and its session was told otherwise")

    def _complaining(self, what: str, subject: str) -> Callable[[str], None]:
        kind = "question" if what == "questions" else "message"
        return lambda text: self._found.complain(what, f"{kind} {subject} {text}")
