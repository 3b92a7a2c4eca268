"""What holds of a scheduler at each instant at which user code may run: between two changes of its state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Set

from lanes.checks import Priority
from lanes.core.execution import Execution
from lanes.core.phase import Phase
from lanes.core.scheduler import Scheduler
from lanes.queues.pool import Standing
from lanes.run import RunState
from locks import _clock, _effects
from tests import phases


def complaints(scheduler: Scheduler) -> list[str]:
    """Each invariant that does not hold now, in words."""
    history, live = scheduler.board.history, dict.fromkeys(scheduler.board.live.values()).keys()
    wrong = [f"{one!r}: {what}" for one in live for what in _of_execution(scheduler, one)]
    wrong += [what for one in live for what in phases.complaints(one)]
    wrong += _of_lanes(scheduler, live) + _of_turns(scheduler, live) + _of_groups(scheduler, live)
    wrong += _of_pools(scheduler, live)
    kept = {*history._finished, *(one.run.id for one in live)}
    if any(said.run.id not in kept for said in history._known.values()):
        wrong.append("a dedupe key is known of a run that is not kept")
    if not live.isdisjoint(scheduler.board.abandoned):
        wrong.append("an abandoned run is live")
    return wrong


def in_a_change() -> bool:
    """Whether the calling thread is between two halves of a change, where no user code may be."""
    return _effects._local.effects.depth > 0


def _of_execution(scheduler: Scheduler, one: Execution) -> list[str]:
    run, lane, board, file = one.run, one.lane, scheduler.board, one.file
    state, into, parent = run.state, one.steered_into, one.parent
    queued, running = one in lane.queued, one in lane.running
    read = into is not None and state is RunState.RUNNING
    body = state is RunState.RUNNING and not read
    checks = (
        ("it is over, or has an outcome", not one.over and run.outcome is None),
        ("its run has another execution", run._execution is one),
        ("its state is neither queued nor running", state is RunState.QUEUED or state is RunState.RUNNING),
        ("its lane is not the known one", read or board.lanes.get(lane.name) is lane),
        ("it stands in the wrong part of its lane", queued == (state is RunState.QUEUED) and running == body),
        ("it is among the bodies, or is not", (one in board.bodies) == body),
        ("it has a slot and does not run", body or one not in board.groups[one.spec.group].holders),
        ("it conducts without a turn", not body or file is None or one.claim is not None),
        ("it goes on without its parent", parent is None or not parent.over or one.cause is not None),
        ("its parent does not know it", parent is None or one in (parent.children or ())),
        (
            "a child of it is not live",
            not one.children
            or all(child.parent is one and board.live.get(child.run.id) is child for child in one.children),
        ),
        (
            "it stands in no line for its session",
            file is None
            or into is not None
            or (file in board.turns._by_file and one in board.turns._by_file[file].order),
        ),
    )
    return [what for what, holds in checks if not holds]


def _of_lanes(scheduler: Scheduler, live: Set[Execution]) -> list[str]:
    wrong = []
    for name, lane in scheduler.board.lanes.items():
        if not (lane.queued.keys() <= live and lane.running.keys() <= live):
            wrong.append(f"lane {name}: holds runs that are not live: {(set(lane.queued) | set(lane.running)) - live}")
        if len(lane.running) > lane.spec.capacity:
            wrong.append(f"lane {name}: runs more than its capacity")
        if lane.joined != sum(one.joined for one in lane.queued):
            wrong.append(f"lane {name}: joined is {lane.joined}")
        if lane.spec.wild and lane.idle and not any(one.lane is lane for one in live):
            wrong.append(f"lane {name}: is idle and was not retired")
    return wrong


def _of_turns(scheduler: Scheduler, live: Set[Execution]) -> list[str]:
    wrong, board = [], scheduler.board
    conducting = [
        one.file for one in live if one.file and one.run.state is RunState.RUNNING and one.steered_into is None
    ]
    if len(set(conducting)) < len(conducting):
        wrong += [f"{count} bodies conduct {file}" for file, count in Counter(conducting).items() if count > 1]
    for file, queue in board.turns._by_file.items():
        order = list(queue.order)
        if not order or not queue.order.keys() <= live or any(one.file != file for one in order):
            wrong.append(f"the line for {file} is empty, or has strangers: {order}")
            continue
        waiting = [0] * len(Priority)
        for one in order[1:]:
            waiting[one.given_urgency] += 1
        if waiting != queue.waiting:
            wrong.append(f"the line for {file} counts {queue.waiting}, and has {waiting}")
        front = order[0]
        held = front.hold_timer is not None and front.hold_timer.call is not None
        waits = front.is_queued() and not held and board.may_start(front)
        if waits and board.serving and front.phase is Phase.IN_LINE:
            wrong.append(f"{front!r} is at the front of its session, and waits for nothing")
    return wrong


def _of_groups(scheduler: Scheduler, live: Set[Execution]) -> list[str]:
    wrong = []
    for name, group in scheduler.board.groups.items():
        strangers = [one for one in group.holders if one not in live or one.spec.group != name]
        if strangers:
            wrong.append(f"group {name}: its holders {strangers} are not live, or of another group")
        others = sum(urgency is not Priority.FOREGROUND for urgency in group.holders.values())
        if group.others != others:
            wrong.append(f"group {name}: it counts {group.others} others, and has {others}")
        if len(group.holders) > group.spec.slots or others > group.spec.slots - group.spec.reserve:
            wrong.append(f"group {name}: it has given away more than it has")
        if group.next_class() is not None and scheduler.board.serving and not scheduler.board.throttle.holds_back(name):
            wrong.append(f"group {name}: it could start a run, and does not")
    return wrong


def _of_pools(scheduler: Scheduler, live: Set[Execution]) -> list[str]:
    wrong, now = [], _clock.clock.now()
    for name, pool in scheduler.board.pools.items():
        waiting = [claim for line in pool._lines.values() for claim in line.order]
        held, allowance = list(pool.held), pool.allowance
        reserved = sum(claim.tokens for claim in held if not claim.settled)
        if (pool.waiting, allowance.held, allowance.reserved) != (len(waiting), len(held), reserved):
            wrong.append(f"pool {name}: it has counted wrong: {pool!r}, {reserved} tokens reserved")
        for claims, standing in ((waiting, Standing.WAITS), (held, Standing.HELD)):
            if any(claim.standing is not standing or claim.waiter not in live for claim in claims):
                wrong.append(f"pool {name}: a claim that is {standing.name} is not, or its run is not live")
            if any(claim not in (claim.waiter.claims or ()) for claim in claims):
                wrong.append(f"pool {name}: a run does not know of its claim")
        urgency = pool._next_class(now)
        if urgency is not None and pool not in scheduler.pools._timers:
            if pool.could_grant(now):
                wrong.append(f"pool {name}: it could grant a claim, and does not")
            elif not held:
                wrong.append(f"pool {name}: it waits for nothing that would come")
    return wrong
