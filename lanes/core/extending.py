"""More time for a run that asks for it (`RunContext.extend`), within what its lane allows.

Only the body asks: nothing that merely comes in, an event or a chunk of a stream, moves a hard deadline. All that rests
on the deadline moves along in one change: the timer looks at the run again when it rings, the fence lets it write for
longer, and its turn, which the steward would take from it, lasts as long. A write lease that was taken before keeps its
own end, which other programs have read from its lock file.
"""

from __future__ import annotations

from typing import Any

from locks import RunEnded, _clock, _effects
from locks._events import log
from locks._loop import running_loop

from .. import checks
from ..errors import InvalidLane, wrong_loop
from .execution import Execution
from .outcomes import fields

_LONGEST_REASON = 200
_ROUNDING_S = 1e-6
"""So much above what is left is taken to be just that: three times a tenth of it is a little more than 0.3 s."""


def extend(one: Execution, seconds: Any, reason: Any) -> None:
    """Move the hard deadline of a run that is under way.

    Raises:
        InvalidLane: it is no duration, or no reason; more than its lane allows, or than its parent has. No change.
        RunEnded, Superseded: it has ended, was asked to, or its deadline has passed. Nothing has changed.
        WrongThread: on another thread than the event loop's.
    """
    if running_loop() is not one.owner.board.loop:
        raise wrong_loop("extend belongs to the event loop's thread; use anyio.from_thread.run_sync(ctx.extend, …)")
    where, run = f"lane {one.run.lane!r}, ", one.run
    more_s = checks.seconds(where + "seconds", seconds)
    if not isinstance(reason, str) or not reason.strip() or len(reason) > _LONGEST_REASON:
        raise InvalidLane(
            f"{where}reason: {checks.shown(reason)} is not allowed; allowed: 1 to {_LONGEST_REASON} characters of text"
        )
    one.check_may_begin("extended")
    now = _clock.clock.now()
    if not one.is_underway() or now >= one.hard_deadline:
        why = "was asked to end" if one.ending else "has passed its deadline"
        raise RunEnded(f"{one.fence.holder} {why}: not extended", path="", holder=one.fence.holder)
    left_s = one.spec.extend_at_most - one.extended_s
    if more_s > left_s + _ROUNDING_S:
        raise InvalidLane(
            f"{where}seconds: {more_s:g} s more are not allowed; allowed: {_left(left_s)}, since extend_at_most is "
            f"{one.spec.extend_at_most:g} s and run {run.id} was extended by {one.extended_s:g} s"
        )
    parent = one.parent
    if parent is not None:
        before_parent_s = parent.hard_deadline - one.hard_deadline
        if more_s > before_parent_s + _ROUNDING_S:
            raise InvalidLane(
                f"{where}seconds: {more_s:g} s more are not allowed; allowed: "
                f"{_left(before_parent_s)}, after which its parent, run {parent.run.id}, ends"
            )
        left_s = min(left_s, before_parent_s)
    _extend(one, max(0.0, min(more_s, left_s)), reason)


def _left(seconds: float) -> str:
    return f"{max(0.0, round(seconds, 6)):g} s"


@_effects.change
def _extend(one: Execution, more_s: float, reason: str) -> None:
    one.extend(more_s, reason)
    log("run_extended", **fields(one), more_s=more_s, extended_s=one.extended_s, reason=reason)
