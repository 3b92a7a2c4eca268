"""Where an execution stands: its phases, and which phase may follow which.

`Run.state` is what users see of it: a queued run is in one of `QUEUED`, a running one in one of `UNDERWAY`, ending, or
read by another run. `Execution.move` is the only place that changes the phase. A move that is not in `MOVES` is a fault
of the scheduler's own; `tests/phases.py` compares each phase with the queues, slots and timers that belong to it.

The moves are those of single steps within a change. Some phases are never seen between two changes: a run that finds
its lane and its group free, say, is `READY` only until the step that starts it.
"""

from __future__ import annotations

from enum import IntEnum, auto


class Phase(IntEnum):
    """Where one attempt at a run stands. An `IntEnum`, whose members hash without Python code."""

    NEW = auto()
    """Made, and put nowhere yet."""
    IN_LINE = auto()
    """It waits for its session's turn; or it is at the front, and may not start: the supervisor drains."""
    HELD_BACK = auto()
    """Nothing is before it, but its instant has not come: its sender may say more, or its last attempt has failed."""
    READY = auto()
    """It needs nothing but a place on its lane and a slot of its group."""
    WAITS_OUTSIDE = auto()
    """Another process has its session's turn."""
    IN_INBOX = auto()
    """Its message is in the inbox of another run, unread."""
    STARTED = auto()
    """It has a place, a slot and its turn; its body has not taken its first step."""
    RUNNING = auto()
    """Its body runs."""
    RUNNING_WAITS = auto()
    """Its body waits for another run, and has lent its slot."""
    RUNNING_NO_SLOT = auto()
    """What its body has waited for is over; it takes the next free slot."""
    READ_BY_ANOTHER = auto()
    """The body of another run has read its message, and answers it."""
    ENDING = auto()
    """It was asked to end, and its grace has not passed."""
    ABANDONED = auto()
    """It has an outcome, and its body still runs."""
    REPLACED = auto()
    """The next attempt at its run has taken its place."""
    ENDED = auto()
    """It has an outcome, and its body has ended or never began."""


_P = Phase

QUEUED = frozenset({_P.NEW, _P.IN_LINE, _P.HELD_BACK, _P.READY, _P.WAITS_OUTSIDE, _P.IN_INBOX})
"""It has not started."""
UNDERWAY = frozenset({_P.STARTED, _P.RUNNING, _P.RUNNING_WAITS, _P.RUNNING_NO_SLOT})
"""It has started, and nothing has asked it to end."""
OVER = frozenset({_P.ABANDONED, _P.REPLACED, _P.ENDED})
"""It may do nothing more."""

_NEXT: dict[Phase, set[Phase]] = {
    _P.NEW: {_P.IN_LINE, _P.IN_INBOX, _P.STARTED},  # started at once where nothing is before it anywhere
    _P.IN_LINE: {_P.HELD_BACK, _P.READY},
    _P.HELD_BACK: {_P.IN_LINE},
    _P.READY: {_P.IN_LINE, _P.STARTED},  # back in line: another run goes before it, or the supervisor drains
    _P.WAITS_OUTSIDE: {_P.IN_LINE},
    _P.IN_INBOX: {_P.IN_LINE, _P.READ_BY_ANOTHER},
    _P.STARTED: {_P.RUNNING, _P.WAITS_OUTSIDE, _P.ENDING, _P.REPLACED},
    _P.RUNNING: {_P.RUNNING_WAITS, _P.ENDING, _P.REPLACED},
    _P.RUNNING_WAITS: {_P.RUNNING_NO_SLOT, _P.ENDING},
    _P.RUNNING_NO_SLOT: {_P.RUNNING, _P.RUNNING_WAITS, _P.ENDING, _P.REPLACED},
    _P.READ_BY_ANOTHER: {_P.IN_INBOX},  # for the next attempt of its reader
    _P.ENDING: {_P.ABANDONED, _P.REPLACED},
    _P.ABANDONED: set(),
    _P.REPLACED: set(),
    _P.ENDED: set(),
}
MOVES = {
    phase: frozenset(follows | ({_P.ENDED} if phase not in (_P.REPLACED, _P.ENDED) else set()))
    for phase, follows in _NEXT.items()
}
"""The phases that may follow each phase; a run can end in every phase."""
