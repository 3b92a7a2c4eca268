"""What a run waits for, and whether a new one would start at once: the one answer, read by all that report it.

The deadlock detector searches it (`deadlock`). `lanes status` shows the first need of each run, in words of
`runtime.status.handlers`; `lanes stack` shows all needs of a run, in words of `runtime.inspect.run_report`. A queue
timeout (`outcomes`) and `LaneBusy` (`busy`) name the run that is in the way.

`needs_of` gives them in the order in which an operator asks, each worked out when it is asked for: of thousands of
queued runs `lanes status` needs the first one each. All of them must come true, each by any one of the runs and tasks
in it. A body that waits for a right needs the tasks that have to give it back, and keeps its slot; so does a body that
waits for a grant of a pool, and needs a run that holds one, unless time alone brings it; a body that waits for another
run has lent its slot, and needs one again when that run has ended. A queued run needs the run right before it in its
session, or what has the session's turn in the lock registry; a place on its lane; and a slot for itself, or for a run
that goes before it on its lane. What no run or task here decides is in the list as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple

from locks import Right, _clock

from ..checks import Priority
from ..queues.pool import Standing
from ..run import RunState
from .execution import Execution, execution_of
from .owner import World

if TYPE_CHECKING:
    from ..queues.lane import Lane


class Kind(Enum):
    """What has to come."""

    READER = auto()  # the run in whose inbox its message was put has to read it or, once it has, to end
    RUN = auto()  # the run that its body waits for has to end
    RIGHT = auto()  # a right in the lock registry, which its body waits for, has to be given back
    BODY = auto()  # its body waits in the lock registry: the task of the body stands for all that it needs there
    ADMISSION = auto()  # the supervisor has to start work: it is not started yet, or drains
    INSTANT = auto()  # the clock has to reach `held_until`: its sender may say more, or its last attempt has failed
    TURN = auto()  # the run before it in its session has to end
    HELD = auto()  # a task, or another process, that is in no queue here has to give back the turn of its session
    PLACE = auto()  # a run on its lane has to end: the lane is full
    SLOT = auto()  # a run of its group has to give its slot back
    POOL = auto()  # a run has to give back what it holds of a pool, or time has to pass: its body waits for a grant
    THROTTLE = auto()  # admission is slowed: the run starts soon


class Need(NamedTuple):
    """One thing that has to come before a run can go on."""

    kind: Kind
    any_of: tuple[object, ...] = ()
    """Runs and tasks, any one of which brings it; none where the clock, an operator or another process does."""
    limited: bool = False
    """Whether a time limit of its own ends the wait, whatever it waits for."""

    @property
    def runs(self) -> list[Execution]:
        """The runs among `any_of`."""
        return [one for one in self.any_of if isinstance(one, Execution)]


def needs_of(one: Execution) -> Iterator[Need]:
    """All that has to come before a run can go on, or can start; nothing where it goes on by itself."""
    if one.over:
        return
    if one.steered_into is not None:
        yield Need(Kind.READER, (one.steered_into,))
    else:
        yield from _needs_of_body(one) if one.run.state is RunState.RUNNING else _needs_of_queued(one)


def awaited_by(one: Execution) -> list[Need]:
    """What the task of a body needs while it waits for another run, its end and then a slot again; or for a pool."""
    wait = one.wait
    if wait is None:
        return []
    if wait.claim is not None:
        waits = wait.claim.standing is Standing.WAITS  # else it has been granted, and its task has not run since
        return [Need(Kind.POOL, wait.claim.pool.blockers(wait.claim), wait.limited)] if waits else []
    if wait.run is not None:
        target = execution_of(wait.run)
        return [Need(Kind.RUN, (target,), wait.limited)] if target is not None else []
    if not one.owner.board.groups[one.spec.group].keeps_waiting(one):
        return []
    return _slot(one, one.urgency, limited=wait.limited)


def _needs_of_body(one: Execution) -> list[Need]:
    needs, task, registry = awaited_by(one), one.fence.task, one.owner.board.registry
    if task is not None and registry.arbiter.graph.waits(task):  # it may be a registry that a search here does not know
        needs += [Need(Kind.RIGHT, (holder,)) for holder in registry.arbiter.graph.rights_of(task)]
        needs.append(Need(Kind.BODY, (task,)))
    return needs


def _needs_of_queued(one: Execution) -> Iterator[Need]:
    board, urgency = one.owner.board, one.urgency
    if board.tasks is None or not board.may_start(one):
        yield Need(Kind.ADMISSION)
    if one.held_until > _clock.clock.now():
        yield Need(Kind.INSTANT)
    if one.in_line and one.file is not None:
        ahead, at_front = board.turns.place(one.file, one)
        urgency = min(urgency, at_front)  # a run that waits for its turn lends it its priority
        if ahead is not None:
            yield Need(Kind.TURN, (ahead,))
        else:
            held = [Need(Kind.HELD, (task,)) for task in board.registry.arbiter.keepers(one.file, Right.TURN)]
            yield from held or ([Need(Kind.HELD)] if one.turn_scope is not None else [])
    yield from _place(one.lane)
    slot = _slot(one, urgency)
    yield from slot
    if urgency == one.urgency and urgency is not Priority.BACKGROUND:  # it overtakes no run of its lane
        before = one.lane.least_urgent_before(one.rank)
        yield from (need for need in _slot(one, max(urgency, before)) if need not in slot)
    if board.throttle.holds_back(one.spec.group):
        yield Need(Kind.THROTTLE)


def _place(lane: Lane[Execution]) -> list[Need]:
    return [Need(Kind.PLACE, tuple(lane.running))] if len(lane.running) >= lane.spec.capacity else []


def _slot(one: Execution, urgency: Priority, *, limited: bool = False) -> list[Need]:
    """What a run of that class needs before it has a slot."""
    group = one.owner.board.groups[one.spec.group]
    if group.has_slot(urgency):
        return []
    # A run whose wait is about to begin has not lent its slot yet.
    holders = [holder for holder in group.holders if not _lends(holder)]
    others = [holder for holder in holders if group.holders[holder] is not Priority.FOREGROUND]
    needs = list[Need]()
    if len(holders) >= group.spec.slots:
        needs.append(Need(Kind.SLOT, tuple(holders), limited))
    if urgency is not Priority.FOREGROUND and len(others) >= group.spec.slots - group.spec.reserve:
        needs.append(Need(Kind.SLOT, tuple(others), limited))
    return needs


def _lends(one: Execution) -> bool:
    return one.wait is not None and one.wait.run is not None


def busy(board: World[Execution], lane: Lane[Execution], file: str | None) -> Need | None:
    """What a new run would wait for in its session, or, without one, on its lane; `None` when that is free."""
    if file is None:
        return next(iter(_place(lane)), None)
    front = board.turns.front(file)
    return Need(Kind.TURN, (front,)) if front is not None else None


def would_start(
    board: World[Execution], lane: Lane[Execution], file: str | None, urgency: Priority, *, held: bool
) -> bool:
    """Whether a new run would start in the moment that it is submitted: no run is before it anywhere.

    Args:
        file: the session whose turn it needs.
        held: whether it must not start before some instant.
    """
    return (
        not held
        and board.starting
        and board.tasks is not None
        and len(lane.running) < lane.spec.capacity
        and (not lane.queued or lane.next() is None)
        and (file is None or board.turns.front(file) is None)
        and not board.throttle.holds_back(lane.spec.group)
        and board.groups[lane.spec.group].would_start(urgency)
    )
