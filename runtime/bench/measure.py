"""Measures the questions, each in rounds over all its cells, within a time budget.

Each question gets a share of the time that is left, by what its rounds usually take. A round takes all cells in turn.
A cell of the first round is left out when the time is over, or when it would take longer than what is left: a larger
size is estimated from the smaller ones before. Further rounds are made while there is time for a whole one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec

from .peers.interface import Peer
from .questions.interface import Cell, NotMeasured, Question, Sample, Scale
from .results import Answer, LeftOut, Result, Row
from .workers import COMMAND, Workers

_BEYOND_S = 10.0
"""How much longer than the budget a cell may take before it is given up."""
OURS = ("lanes", "lanes-no-lock-file")

Progress = Callable[[str, float], None]
"""Called with the question and the share of the whole time that is over, 0 to 1."""


@dataclass(slots=True)
class Measuring:
    """One run of the suite: fills `result`, also when it is interrupted."""

    result: Result
    peers: Sequence[Peer]
    scale: Scale
    progress: Progress
    now: Callable[[], float] = time.monotonic
    command: Sequence[str] = COMMAND
    """What starts a worker."""
    _end: float = 0.0
    _known: dict[tuple[Any, ...], tuple[Sample, float]] = field(default_factory=dict)
    """What workers answered: questions about the same contention share its runs."""

    def run(self, questions: Sequence[Question]) -> None:
        """Answer all questions, as far as the time allows."""
        began = self.now()
        self._end = began + self.result.budget_s
        with Workers(self.command) as workers:
            for index, question in enumerate(questions):
                asking = _Asking(self, question, partial(self._tell, question.name, began))
                try:
                    if self.now() < self._end:
                        asking.prepare(workers)  # at the cost of all: to start takes as long on the first question only
                    share = question.seconds / sum(later.seconds for later in questions[index:])
                    asking.run(workers, self.now() + max(0.0, self._end - self.now()) * share)
                finally:
                    asking.sort()
                    self.result.left_out += asking.left_out()
        self.progress("", 1.0)

    def _limit_s(self, question: Question) -> float:
        """How long a cell may take: not much longer than the whole run."""
        return min(question.longest_cell_s, max(0.0, self._end - self.now()) + _BEYOND_S)

    def _tell(self, question: str, began: float) -> None:
        self.progress(question, min(1.0, (self.now() - began) / max(self.result.budget_s, 1e-9)))

    def is_known(self, question: Question, cell: Cell, round_: int) -> bool:
        """Whether a sample needs no further measurement."""
        try:
            self.sample(question, cell, None, round_)
        except LookupError:
            return False
        return True

    def sample(self, question: Question, cell: Cell, workers: Workers | None, round_: int) -> tuple[Sample, float]:
        """One sample of a cell, and the seconds that it took, now or when it was measured for another question.

        Without workers, from what is known.

        Raises:
            NotMeasured: the peer failed.
            LookupError: there are no workers, and it is not known.
        """

        spent = 0.0

        def ask(function: str, **arguments: Any) -> Sample:
            nonlocal spent
            key = (cell.peer.kind, cell.peer.name, cell.backend, round_, function, *sorted(arguments.items()))
            if key not in self._known:
                if workers is None:
                    raise LookupError(function)
                began = self.now()
                found = workers.ask(cell, function, within_s=self._limit_s(question), **arguments)
                self._known[key] = found, self.now() - began
            found, took = self._known[key]
            spent += took
            # A copy: a question may add to it.
            return msgspec.structs.replace(found)

        return question.take(cell, ask, self.scale), spent


class _Asking:
    """One question."""

    def __init__(self, measuring: Measuring, question: Question, tell: Callable[[], None]) -> None:
        self._measuring, self._question, self._tell, self._until = measuring, question, tell, 0.0
        self._answer = Answer(question.title, question.unit, question.better, question.floor, question.x)
        self._rows: dict[tuple[Any, ...], Row] = {}
        self._took: dict[Cell, float] = {}
        self._left_out: dict[tuple[Peer, str, str], list[int]] = {}
        """By peer, event loop and reason: the sizes."""
        cells = question.cells(tuple(measuring.peers), measuring.scale)
        self._cells = [cell for cell in cells if not self._missing(cell) and not self._only_full(cell)]

    def prepare(self, workers: Workers) -> None:
        """Start the workers."""
        self._tell()
        workers.prepare(self._cells)

    def run(self, workers: Workers, until: float) -> None:
        """All rounds; the first cells of a round are others each time, so that no peer always comes first."""
        self._until = until
        self._measuring.result.questions[self._question.name] = self._answer
        for round_ in range(self._question.rounds):
            if round_ > 0:
                if self._measuring.now() + self._round_s(round_) > self._until:
                    break
                self._cells = [cell for cell in self._cells if cell in self._took]
            for cell in self._in_turn(round_):
                if round_ > 0 or self._in_time(cell):
                    self._take(cell, workers, round_)
                self._tell()

    def sort(self) -> None:
        """Put the rows into the order of the peers, whatever order they were measured in."""
        order = {peer.name: index for index, peer in enumerate(self._measuring.peers)}
        self._answer.rows.sort(key=lambda row: (order[row.peer], row.backend))

    def left_out(self) -> list[LeftOut]:
        """What was not measured, one entry per peer, event loop and reason."""
        found = []
        for (peer, backend, why), sizes in self._left_out.items():
            at = f"{', '.join(f'{size:,}' for size in sizes)} {self._question.x}: " if sizes else ""
            on = "" if backend == "blocking" else f" ({backend})"
            found.append(LeftOut(self._question.name, peer.name, f"{at}{why}{on}"))
        return found

    def _round_s(self, round_: int) -> float:
        """How long a further round will take: what another question has had measured in that round takes no time."""
        known = self._measuring.is_known
        return sum(took for cell, took in self._took.items() if not known(self._question, cell, round_))

    def _in_turn(self, round_: int) -> list[Cell]:
        """The cells of a round, small sizes first, each size beginning with another peer than the round before.

        The floor and our own peers lead the first round: if the time is too short, the comparison that is left is that.
        """
        found = []
        first_of_all = (self._question.floor, *OURS)
        ordered = sorted(self._cells, key=lambda cell: cell.peer.name not in first_of_all)
        for size in dict.fromkeys(cell.x for cell in ordered):
            cells = [cell for cell in ordered if cell.x == size]
            first = round_ % len(cells)
            found += cells[first:] + cells[:first]
        return found

    def _take(self, cell: Cell, workers: Workers, round_: int) -> None:
        try:
            sample, self._took[cell] = self._measuring.sample(self._question, cell, workers, round_)
        except NotMeasured as error:
            self._took.pop(cell, None)  # not in the next round either
            self._leave_out(cell, str(error))
            return
        self._note(cell, sample)

    def _note(self, cell: Cell, sample: Sample) -> None:
        for metric, value in sample.values.items():
            row = self._row(cell, metric)
            row.samples.append(value)
            row.violations += sample.violations
            row.note = sample.note or row.note
        for metric, why in sample.missing.items():
            self._row(cell, metric).note = why
        if sample.played is not None:
            self._answer.played[cell.peer.name] = sample.played

    def _row(self, cell: Cell, metric: str) -> Row:
        key = (cell.peer.name, cell.backend, cell.x, metric)
        if key not in self._rows:
            self._rows[key] = row = Row(cell.peer.name, cell.backend, metric, cell.x)
            self._answer.rows.append(row)
        return self._rows[key]

    def _in_time(self, cell: Cell) -> bool:
        """Whether there is time for a cell of the first round; if not, it is noted as left out."""
        if self._measuring.is_known(self._question, cell, 0):
            return True
        left = self._until - self._measuring.now()
        if left <= 0:
            self._leave_out(cell, "the time was over; --budget SECONDS gives more")
        elif self._expected_s(cell) > left:
            self._leave_out(cell, "would take longer than the time left; --budget SECONDS gives more")
        else:
            return True
        return False

    def _expected_s(self, cell: Cell) -> float:
        """How long a cell will take: it goes on growing as between the two sizes before it."""
        before = [
            (one.x, took) for one, took in self._took.items() if (one.peer, one.backend) == (cell.peer, cell.backend)
        ]
        if cell.x is None or not before:
            return 0.0
        (size, took), (smaller, faster) = before[-1], before[-2] if len(before) > 1 else before[-1]
        if smaller is None or size is None or size <= smaller or took <= faster:
            return took
        power = math.log(took / faster) / math.log(size / smaller)
        return float(took * (cell.x / size) ** power)

    def _missing(self, cell: Cell) -> bool:
        if cell.peer.missing:
            self._leave_out(cell, f"{cell.peer.needs} is not installed; the extra `bench` has it")
        return cell.peer.missing

    def _only_full(self, cell: Cell) -> bool:
        """Between processes a second event loop would double the time of our own peers, and says little new."""
        second = cell.peer.kind == "between" and cell.backend != cell.peer.backends[0]
        if second and not self._measuring.scale.full:
            self._leave_out(cell, "on this event loop with --full")
            return True
        return False

    def _leave_out(self, cell: Cell, why: str) -> None:
        sizes = self._left_out.setdefault((cell.peer, cell.backend, why), [])
        if cell.x is not None:
            sizes.append(cell.x)
