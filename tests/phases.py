"""Each phase of an execution beside the facts: the queues, slots and timers that it stands in.

The fixture `_phases` in `conftest.py` watches every move of every test. A phase is compared when the change is complete
that made the move: not in its middle, and in any case behind the effects that were noted before.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import compress

from lanes.core.execution import Execution
from lanes.core.needs import needs_of
from lanes.core.phase import MOVES, QUEUED, UNDERWAY, Phase
from lanes.core.scheduler import Scheduler
from lanes.run import RunState
from locks import _effects

_HOLDS = frozenset({"a place", "a body", "a slot", "its turn", "a position in line"})
_LENT = _HOLDS - {"a slot"}
_WAITS = frozenset({"a position on its lane", "a position in line"})
FACTS: dict[Phase, frozenset[str]] = {
    Phase.NEW: frozenset(),
    Phase.IN_LINE: _WAITS,
    Phase.HELD_BACK: _WAITS | {"a timer"},
    Phase.READY: _WAITS | {"a rank"},
    Phase.WAITS_OUTSIDE: _WAITS | {"a wait outside"},
    Phase.IN_INBOX: frozenset({"a position on its lane", "a position in an inbox"}),
    Phase.STARTED: _HOLDS,
    Phase.RUNNING: _HOLDS,
    Phase.RUNNING_WAITS: _LENT | {"a run to wait for"},
    Phase.RUNNING_NO_SLOT: _LENT | {"a claim on a slot"},
    Phase.READ_BY_ANOTHER: frozenset(),
    Phase.ENDING: _LENT,
    Phase.ABANDONED: frozenset(),
    Phase.REPLACED: frozenset(),
    Phase.ENDED: frozenset(),
}
"""What an execution has in each phase. One without a session needs no turn, and no position in line."""
ALSO: dict[Phase, frozenset[str]] = {
    Phase.ENDING: frozenset({"a slot", "a claim on a slot", "a run to wait for"}),
    Phase.ABANDONED: frozenset({"a run to wait for"}),
}
"""What it may have besides."""


_ALL = (
    "a position on its lane",
    "a rank",
    "a position in line",
    "a timer",
    "a wait outside",
    "a position in an inbox",
    "a place",
    "a body",
    "a slot",
    "a claim on a slot",
    "its turn",
    "a run to wait for",
)
_MAY_START = QUEUED - {Phase.NEW, Phase.HELD_BACK}  # a timer may be due, and not have rung
_right: set[tuple[Phase, frozenset[str], tuple[bool, ...]]] = set()
"""Phases that were seen with facts that are right, and what their runs need not have: a run moves a dozen times."""


def facts(one: Execution) -> tuple[bool, ...]:
    """Whether an execution has each of `_ALL`."""
    scheduler, file, lane = one.owner, one.file, one.lane
    assert isinstance(scheduler, Scheduler)
    board = scheduler.board
    group, timer, into, wait = board.groups[one.spec.group], one.hold_timer, one.steered_into, one.wait
    line = board.turns._by_file.get(file) if file is not None else None
    return (
        one in lane.queued,
        lane.is_ready(one),
        line is not None and one in line.order,
        timer is not None and timer.call is not None,
        one.turn_scope is not None,
        into is not None and one in into.inbox._unread,
        one in lane.running,
        one in board.bodies,
        one in group.holders,
        one in group._returning,
        one.claim is not None,
        wait is not None and wait.run is not None,
    )


def complaints(one: Execution) -> list[str]:
    """Where the phase of an execution and the facts disagree."""
    phase, state, found = one.phase, one.run.state, facts(one)
    wrong: list[str] = []
    board = one.owner.board
    needless = frozenset({"its turn", "a position in line"}) if one.file is None else frozenset[str]()
    if board.ownership is not None:  # the node has the session, and no run a right in the lock registry
        needless |= {"its turn"}
    if (phase, needless, found) not in _right:
        has, should = frozenset(compress(_ALL, found)), FACTS[phase] - needless
        wrong += [f"{one!r} is {phase.name} without {what}" for what in sorted(should - has)]
        wrong += [f"{one!r} is {phase.name} with {what}" for what in sorted(has - should - ALSO.get(phase, should))]
        if not wrong:
            _right.add((phase, needless, found))
    if (phase in QUEUED and state is not RunState.QUEUED) or (phase in UNDERWAY and state != RunState.RUNNING):
        wrong.append(f"{one!r} is {phase.name}")
    if phase in _MAY_START and next(needs_of(one), None) is None:
        wrong.append(f"{one!r} is {phase.name}, and nothing keeps it from starting")
    return wrong


class Recorder:
    """What the moves of a test have shown."""

    def __init__(self) -> None:
        self.moves: set[tuple[Phase, Phase]] = set()
        self.complaints: list[str] = []

    def moved(self, one: Execution, to: Phase) -> None:
        """Note a move before it is made, and have its result looked at."""
        self.moves.add((one.phase, to))
        if to not in MOVES[one.phase]:
            self.complaints.append(f"{one!r} moved from {one.phase.name} to {to.name}")
        here = _effects._local.effects
        if here.depth:
            here.noted.append(
                (here.generation + 1, here.marks, self._look, (one,))
            )  # not by `after`, which a planted defect may have replaced

    def _look(self, one: Execution) -> None:
        if not isinstance(sys.exc_info()[1], KeyboardInterrupt):  # such a change is half made, and mended later
            self.complaints += complaints(one)


@contextmanager
def recorded() -> Iterator[Recorder]:
    """Record every move of the block."""
    recorder, move = Recorder(), Execution.move

    def recording(self: Execution, to: Phase) -> None:
        recorder.moved(self, to)
        move(self, to)

    Execution.move = recording  # type: ignore[method-assign]
    try:
        yield recorder
    finally:
        Execution.move = move  # type: ignore[method-assign]
