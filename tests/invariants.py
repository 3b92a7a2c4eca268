"""What holds of a scheduler at each instant at which user code may run: between two changes of its state."""

from __future__ import annotations

from collections import Counter

from lanes.checks import Priority
from lanes.core.execution import Execution
from lanes.core.phase import Phase
from lanes.core.scheduler import Scheduler
from lanes.run import RunState
from locks import _effects
from tests import phases


def complaints(scheduler: Scheduler) -> list[str]:
    """Each invariant that does not hold now, in words."""
    live = list(scheduler.board.live.values())
    wrong = [f"{one!r}: {what}" for one in live for what in _of_execution(scheduler, one)]
    wrong += [what for one in live for what in phases.complaints(one)]
    wrong += _of_lanes(scheduler, live) + _of_turns(scheduler, live) + _of_groups(scheduler, live)
    known = {id(said.run) for said in scheduler.board.history._known.values()}
    kept = {id(one.run) for one in live} | {id(run) for run in scheduler.board.history._finished.values()}
    if known - kept:
        wrong.append("a dedupe key is known of a run that is not kept")
    if set(scheduler.board.abandoned) & set(live):
        wrong.append("an abandoned run is live")
    return wrong


def in_a_change() -> bool:
    """Whether the calling thread is between two halves of a change, where no user code may be."""
    return _effects._local.effects.depth > 0


def _of_execution(scheduler: Scheduler, one: Execution) -> list[str]:
    run, lane = one.run, one.lane
    queued, running = one in lane.queued, one in lane.running
    read = one.steered_into is not None and run.state is RunState.RUNNING
    body = run.state is RunState.RUNNING and not read
    group = scheduler.board.groups[one.spec.group]
    checks = {
        "it is over, or has an outcome": not one.over and run.outcome is None,
        "its run has another execution": run._execution is one,
        "its state is neither queued nor running": run.state in (RunState.QUEUED, RunState.RUNNING),
        "its lane is not the known one": read or scheduler.board.lanes.get(lane.name) is lane,
        "it stands in the wrong part of its lane": (queued, running) == (run.state is RunState.QUEUED, body),
        "it is among the bodies, or is not": (one in scheduler.board.bodies) == body,
        "it has a slot and does not run": body or one not in group.holders,
        "it conducts without a turn": not body or one.file is None or one.claim is not None,
        "it goes on without its parent": one.parent is None or not one.parent.over or one.cause is not None,
        "its parent does not know it": one.parent is None or one in (one.parent.children or ()),
        "a child of it is not live": all(
            child.parent is one and scheduler.board.live.get(child.run.id) is child for child in one.children or ()
        ),
        "it stands in no line for its session": one.file is None
        or one.steered_into is not None
        or one in list(scheduler.board.turns.of(one.file)),
    }
    return [what for what, holds in checks.items() if not holds]


def _of_lanes(scheduler: Scheduler, live: list[Execution]) -> list[str]:
    wrong = []
    for name, lane in scheduler.board.lanes.items():
        strangers = (set(lane.queued) | set(lane.running)) - set(live)
        checks = {
            f"holds runs that are not live: {strangers}": not strangers,
            "runs more than its capacity": len(lane.running) <= lane.spec.capacity,
            f"joined is {lane.joined}": lane.joined == sum(one.joined for one in lane.queued),
            "is idle and was not retired": not (lane.spec.wild and lane.idle) or any(one.lane is lane for one in live),
        }
        wrong += [f"lane {name}: {what}" for what, holds in checks.items() if not holds]
    return wrong


def _of_turns(scheduler: Scheduler, live: list[Execution]) -> list[str]:
    wrong = []
    conducting = Counter(
        one.file for one in live if one.file and one.run.state is RunState.RUNNING and one.steered_into is None
    )
    wrong += [f"{count} bodies conduct {file}" for file, count in conducting.items() if count > 1]
    for file, queue in scheduler.board.turns._by_file.items():
        order = list(queue.order)
        waiting = Counter(one.given_urgency for one in order[1:])
        if not order or not set(order) <= set(live) or any(one.file != file for one in order):
            wrong.append(f"the line for {file} is empty, or has strangers: {order}")
            continue
        if [waiting[p] for p in Priority] != queue.waiting:
            wrong.append(f"the line for {file} counts {queue.waiting}, and has {waiting}")
        front = order[0]
        held = front.hold_timer is not None and front.hold_timer.call is not None
        waits = front.is_queued() and not held and scheduler.board.may_start(front)
        if waits and scheduler.board.serving and front.phase is Phase.IN_LINE:
            wrong.append(f"{front!r} is at the front of its session, and waits for nothing")
    return wrong


def _of_groups(scheduler: Scheduler, live: list[Execution]) -> list[str]:
    wrong = []
    for name, group in scheduler.board.groups.items():
        slots = {one for one in live if one in group.holders and one.spec.group == name}
        others = sum(urgency is not Priority.FOREGROUND for urgency in group.holders.values())
        checks = {
            f"its holders are {list(group.holders)}, not {slots}": set(group.holders) == slots,
            f"it counts {group.others} others, and has {others}": group.others == others,
            "it has given away more than it has": len(slots) <= group.spec.slots
            and others <= group.spec.slots - group.spec.reserve,
            "it could start a run, and does not": group.next_class() is None
            or not scheduler.board.serving
            or scheduler.board.throttle.holds_back(name),
        }
        wrong += [f"group {name}: {what}" for what, holds in checks.items() if not holds]
    return wrong
