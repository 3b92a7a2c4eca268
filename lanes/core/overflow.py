"""A lane's queue is full, and one more run comes (`when_full`): which run gives way, and what is left of its messages.

A run that would start at once needs no room, so a limit of 0 means: no waiting, not: no work. And the runs that wait on
a shared lane for a busy session do not keep out a run whose session is free.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

from locks import _effects
from locks._events import log

from ..errors import LaneFull
from ..message import Message, same_route
from ..run import RunState

if TYPE_CHECKING:
    from ..queues.lane import Lane
    from .board import Board
    from .execution import Execution


def lane_full(lane: Lane[Execution]) -> LaneFull:
    """What the sender of a new run gets."""
    return LaneFull(
        f"lane {lane.name!r} is full: {lane.waiting} queued; allowed: {lane.spec.queue_limit} (queue_limit)",
        lane=lane.name,
        queued=lane.waiting,
        limit=lane.spec.queue_limit,
    )


def drop_oldest(board: Board, newest: Execution) -> bool:
    """End the run that has waited longest, with that reason; have its messages summarized if so specified.

    `on_drop` is called when the change is complete; no body can have begun by then, so a summary still comes first.

    Args:
        newest: the run that comes; it stays.

    Returns:
        `False` when no other run waits.
    """
    lane = newest.lane
    dropped = next((one for one in lane.queued if one is not newest), None)
    if dropped is None:
        return False
    messages, route = list(dropped.messages or ()), dropped.route
    lane.tally.dropped += 1
    board.groups[lane.spec.group].tally.dropped += 1
    limit = lane.spec.queue_limit
    summarized = lane.spec.when_full == "summarize" and bool(messages)
    dropped.ask_to_end(
        RunState.CANCELLED,
        f"dropped{', and given to on_drop to be summarized' if summarized else ''}: "
        f"lane {lane.name!r} was full ({limit} queued) when run {newest.run.id} came",
    )
    log("run_dropped", level="warning", run=dropped.run.id, lane=lane.name, limit=limit, by=newest.run.id)
    if lane.spec.on_drop is not None:
        _effects.after(_prepend_summary, board, dropped, messages, route, newest, summarized)
    return True


def _prepend_summary(
    board: Board, dropped: Execution, messages: list[Message], route: Any, newest: Execution, summarized: bool
) -> None:
    summary = board.hooks.dropped(dropped.spec.on_drop, dropped.run, messages)
    if not summarized or summary is None:
        return
    message = Message(summary.body if isinstance(summary, Message) else summary, route)
    lane = board.lanes.get(dropped.lane.name, dropped.lane)
    # Runs that have started because the dropped one was gone have not begun yet: they come first.
    later = chain(lane.running, lane.queued, (newest,))
    fitting = [one for one in list(later) if _may_have(one, dropped) and same_route(one.route, route)]
    next_run = next((one for one in fitting if _may_have(one, dropped)), None)  # comparing routes is user code
    if next_run is None or next_run.messages is None:
        log("summary_without_heir", level="warning", run=dropped.run.id, lane=dropped.run.lane)
    else:
        next_run.messages.insert(0, message)


def _may_have(one: Execution, dropped: Execution) -> bool:
    """Whether a summary of a dropped run's messages may be put before those of another run, but for their routes."""
    return (
        one.messages is not None
        and one.run.id > dropped.run.id  # a summary is not put before what was said before it
        and not one.began
        and not one.over
        and one.steered_into is None
        and one.run.session == dropped.run.session
    )
