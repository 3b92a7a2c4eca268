"""A lane's queue is full, and one more comes (`when_full`): who gives way, and what is left of what they said.

A run that would start at once needs no room, so a limit of 0 means: no waiting, not: no work. And those who wait on a
shared lane for one busy session keep nobody out whose session is free.
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


def lane_full(lane: Lane) -> LaneFull:
    """What whoever comes is told."""
    return LaneFull(
        f"lane {lane.name!r} is full: {lane.waiting} queued; allowed: {lane.spec.queue_limit} (queue_limit)",
        lane=lane.name,
        queued=lane.waiting,
        limit=lane.spec.queue_limit,
    )


def drop_oldest(board: Board, newest: Execution) -> bool:
    """Drop the run that has waited longest and tell its sender; have its messages summarized if so specified.

    `on_drop` is called when the change is complete; no body can have begun by then, so a summary still comes first.

    Args:
        newest: who comes; it stays.

    Returns:
        `False` when nobody else waits.
    """
    lane = newest.lane
    victim = next((one for one in lane.queued if one is not newest), None)
    if victim is None:
        return False
    messages, route = list(victim.messages or ()), victim.route
    lane.tally.dropped += 1
    board.groups[lane.spec.group].tally.dropped += 1
    limit = lane.spec.queue_limit
    summarized = lane.spec.when_full == "summarize" and bool(messages)
    victim.ask_to_end(
        RunState.CANCELLED,
        f"dropped{', and given to on_drop to be summarized' if summarized else ''}: "
        f"lane {lane.name!r} was full ({limit} queued) when run {newest.run.id} came",
    )
    log("run_dropped", level="warning", run=victim.run.id, lane=lane.name, limit=limit, by=newest.run.id)
    if lane.spec.on_drop is not None:
        _effects.after(_call_on_drop, board, victim, messages, route, newest, summarized)
    return True


def _call_on_drop(
    board: Board, victim: Execution, messages: list[Message], route: Any, newest: Execution, summarized: bool
) -> None:
    summary = board.hooks.dropped(victim.spec.on_drop, victim.run, messages)
    if not summarized or summary is None:
        return
    message = Message(summary.body if isinstance(summary, Message) else summary, route)
    lane = board.lanes.get(victim.lane.name, victim.lane)
    # Runs that have started because the dropped one was gone have not begun yet: they come first.
    those = chain(lane.running, lane.queued, (newest,))
    heirs = [one for one in list(those) if _may_inherit(one, victim) and same_route(one.route, route)]
    heir = next((one for one in heirs if _may_inherit(one, victim)), None)  # comparing routes is user code
    if heir is None or heir.messages is None:
        log("summary_without_heir", level="warning", run=victim.run.id, lane=victim.run.lane)
    else:
        heir.messages.insert(0, message)


def _may_inherit(one: Execution, victim: Execution) -> bool:
    """Whether a summary of dropped messages may be put before a run's own, as far as the two runs go."""
    return (
        one.messages is not None
        and one.run.id > victim.run.id  # a summary is not put before what was said before it
        and not one.began
        and not one.over
        and one.steered_into is None
        and one.run.session == victim.run.session
    )
