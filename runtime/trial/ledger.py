"""What the harness remembers, to be compared with the files afterwards: acknowledgements, outcomes, recoveries."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal

from lanes import Run, RunState
from lanes.run_errors import RunAbandonedAfterTimeout

from .traffic import Line

Told = Literal["answered", "timed_out", "failed"]


def fingerprint(record: Mapping[str, Any]) -> bytes:
    """What two records have in common exactly when they are equal as JSON."""
    return hashlib.blake2b(json.dumps(record, sort_keys=True).encode("utf-8", "surrogatepass"), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A record that the library has promised to keep."""

    path: str
    fingerprint: bytes


@dataclass(slots=True, eq=False)
class Sent:
    """A message of a scenario on its way, and what bodies have done about it."""

    line: Line
    asked: bool = False
    """Whether it stands in its session."""
    answered: bool = False
    """Whether a body has got to the end of answering it."""
    id: str = ""
    """Stands in the records that are written about it; empty for messages of the harness itself."""


class Ledger:
    """What the harness knows by itself. Filled from the event loop's thread; `acknowledge` from worker threads too.

    What counts is the message: several may share a run (`collect`, `debounce`, `dedupe`), and a run may have none (the
    one that puts a file away). A program's messages are not known: there, each run counts as one.

    Invariant: every run that began or ended went through the two hooks, so `posted` minus `told` are the messages whose
    senders still wait; the runs that they wait for are in `_waiting`.
    """

    def __init__(self, *, runs_count: bool = False) -> None:
        self.instance = os.urandom(4).hex()
        """Tells this process's records from those of others and of earlier starts on the same directory."""
        self.acknowledged: dict[str, Acknowledged] = {}
        self.dead_writes = 0
        """Records that were accepted from a run after its end. Must stay 0."""
        self.posted = 0
        self.told: Counter[str] = Counter()
        """Messages by what became of them: answered, timed_out, failed."""
        self.unanswered: list[str] = []
        """Messages whose run was done, though no body has answered them. Must stay empty."""
        self.states: Counter[str] = Counter()
        """Messages by the state that their run ended in, and those that were refused."""
        self.shared: Counter[str] = Counter()
        """Messages that did not get a run of their own: collected, steered, repeated."""
        self.waits_s: list[float] = []
        self.recoveries_s: list[float] = []
        self.on_change: Callable[[], object] | None = None
        self.on_told: Callable[[Sent, Told, str], object] | None = None
        """Called with each message when its sender is told: what, and the state that it ended in."""
        self.on_sent: Callable[[Sent], object] | None = None
        self.on_acknowledged: Callable[[str, Acknowledged], object] | None = None
        """On the thread that calls `acknowledge`."""
        self.on_end: Callable[[Run, Sequence[Sent]], object] | None = None
        self._runs_count = runs_count
        self._waiting: dict[int, list[Sent]] = {}
        self._dedupe: dict[tuple[str, str | None, str], int] = {}
        self._numbers, self._messages = count(1), count(1)
        self._overdue: dict[str, float] = {}
        self._last_turn: dict[str, tuple[int, float, float]] = {}

    def new_id(self) -> str:
        """An id for a record, unlike any other on this disk."""
        return f"{self.instance}-{next(self._numbers)}"

    def new_message(self) -> str:
        """A name for a message, unlike any other on this disk."""
        return f"{self.instance}-m{next(self._messages)}"

    def acknowledge(self, record: Mapping[str, Any], path: str) -> None:
        """Note that an append has returned."""
        self.acknowledged[record["id"]] = what = Acknowledged(os.path.realpath(path), fingerprint(record))
        if self.on_acknowledged is not None:
            self.on_acknowledged(record["id"], what)

    def accepted(self, sent: Sent, run: Run) -> None:
        """Note the run that is to answer a message; it may be over already."""
        self._note_sent(sent)
        line = sent.line
        if line.dedupe is not None:
            key = line.lane, line.conducted, line.dedupe
            if self._dedupe.get(key) == run.id:
                self.shared["repeated"] += 1
                sent.answered = True  # when the first message of that name is not answered, that one shows it
            self._dedupe[key] = run.id
        before = self._waiting.setdefault(run.id, [])
        if before and not sent.answered:
            self.shared["collected"] += 1
        before.append(sent)
        if run.outcome is not None:
            self._note_outcome(run)

    def refused(self, sent: Sent) -> None:
        """Note a message that was not even accepted; its sender has the exception."""
        self._note_sent(sent)
        self._note_told([sent], 1, "failed", "refused")

    def _note_sent(self, sent: Sent) -> None:
        self.posted += 1
        if self.on_sent is not None:
            self.on_sent(sent)

    def _note_told(self, messages: Sequence[Sent], number: int, told: Told, state: str) -> None:
        self.told[told] += number
        self.states[state] += number
        if self.on_told is not None:
            for sent in messages:
                self.on_told(sent, told, state)

    def run_started(self, run: Run) -> None:
        """The hook `on_run_start`."""
        if run.session is not None and run.turn:
            assert run.started_at is not None
            self._last_turn[run.session] = (run.id, run.enqueued_at, run.started_at)
            if (deadline := self._overdue.pop(run.session, None)) is not None:
                self._recovered(run.session, deadline)
        self._changed()

    def run_ended(self, run: Run) -> None:
        """The hook `on_run_end`."""
        outcome = run.outcome
        assert outcome is not None
        if self._runs_count or run.id in self._waiting:
            self.waits_s.append(outcome.waited_s)
        read_by_another = run.answered_by is not None
        if _is_overdue(run) and not read_by_another:
            self._note_overdue(run)
        if read_by_another and outcome.state is RunState.DONE:
            self.shared["steered"] += 1
        self._note_outcome(run)
        self._changed()

    def _note_outcome(self, run: Run) -> None:
        """The senders of a run's messages have its outcome now."""
        outcome = run.outcome
        assert outcome is not None
        messages = self._waiting.pop(run.id, [])
        number = 1 if self._runs_count else len(messages)
        if outcome.state is RunState.DONE:
            self._note_told(messages, number, "answered", outcome.state.value)
            self.unanswered += [sent.line.text for sent in messages if not sent.answered]
        else:
            self._note_told(messages, number, "timed_out" if _is_overdue(run) else "failed", outcome.state.value)
        if self.on_end is not None:
            self.on_end(run, messages)

    def _note_overdue(self, run: Run) -> None:
        if run.turn and run.session is not None and run.started_at is not None and run.deadline is not None:
            # The successor may have begun already: a run lets go of its session before its end is told.
            if self._last_turn[run.session][0] == run.id:
                self._overdue[run.session] = run.deadline
            else:
                self._recovered(run.session, run.deadline)

    def _recovered(self, session: str, deadline: float) -> None:
        """The session's next turn has begun; it counts when it was waiting already."""
        _, enqueued_at, started_at = self._last_turn[session]
        if enqueued_at <= deadline:
            self.recoveries_s.append(started_at - deadline)

    def _changed(self) -> None:
        if self.on_change is not None:
            self.on_change()


def _is_overdue(run: Run) -> bool:
    """Whether a deadline ended it."""
    assert run.outcome is not None
    return run.outcome.state is RunState.TIMED_OUT or isinstance(run.outcome.error, RunAbandonedAfterTimeout)
