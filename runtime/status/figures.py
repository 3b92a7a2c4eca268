"""What one process looks like beside others: a row of a fleet, taken from its picture."""

from __future__ import annotations

import msgspec

from . import words
from .protocol import AbandonedRow, Frozen, Picture, RunRow, text

_MOST_PROBLEMS, _MOST_STUCK, _LONGEST = 5, 5, 300


class StuckRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run that should have ended by now, or a body that ignored its cancellation."""

    id: int
    lane: str
    session: str | None
    what: str
    """For how long, and why it should have ended, in words."""
    at: str
    """Where its body stands, as far as that was looked up."""


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """A process, in a few lines."""

    state: str
    generation: int
    uptime_s: float
    healthy: bool
    problems: list[str]
    running: int
    queued: int
    oldest_wait_s: float
    """Of the runs that wait."""
    abandoned: int
    parked: int
    lag_p99_s: float
    """Of the event loop, in the last minute."""
    slowed: str = ""
    """Why runs are started slowly; empty when they are not."""
    stuck: list[StuckRun] = []
    frozen_s: float = 0.0
    """For how long the event loop has been blocked; 0 when it is not. The other figures are from before."""
    frozen_at: str = ""
    """File, line and function that block it."""
    frozen_run: str = ""
    """The run whose code that is."""
    age_s: float = 0.0
    """How old the figures were when the process last reported."""


def figures_of(picture: Picture) -> Figures:
    """The figures of a process."""
    stuck = [_stuck(row, words.abandoned(row)) for row in picture.abandoned]
    stuck += [_stuck(run, words.stuck(run)) for run in words.by_state(picture)[0]]
    return Figures(
        state=picture.state,
        generation=picture.generation,
        uptime_s=picture.uptime_s,
        healthy=picture.healthy,
        problems=[text(problem, _LONGEST) for problem in picture.problems[:_MOST_PROBLEMS]],
        running=picture.counts.get("running", 0),
        queued=picture.counts.get("queued", 0),
        oldest_wait_s=max((group.oldest_wait_s for group in picture.groups), default=0.0),
        abandoned=len(picture.abandoned) + picture.abandoned_left_out,
        parked=picture.parked,
        lag_p99_s=picture.loop_lag.p99,
        slowed=text(picture.admission_slowed, _LONGEST),
        stuck=stuck[:_MOST_STUCK],
    )


def frozen_figures(before: Figures, frozen: Frozen) -> Figures:
    """The figures of a process whose event loop is blocked, which has answered before."""
    return msgspec.structs.replace(
        before, frozen_s=frozen.for_s, frozen_at=text(frozen.place, _LONGEST), frozen_run=text(frozen.run, _LONGEST)
    )


def _stuck(row: RunRow | AbandonedRow, what: str) -> StuckRun:
    return StuckRun(
        id=row.id,
        lane=row.lane,
        session=row.session,
        what=text(what, _LONGEST),
        at=text(row.at, _LONGEST),
    )
