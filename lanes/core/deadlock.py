"""Runs that wait for other runs: they lend their slot, and a wait that can never end is refused before it begins.

What a run needs, before it can end, says `_needs`: in a list all of whose members must come true, each by any one of
the nodes in it. A node is a run or a task. A run that is under way needs the task of its body to go on. That task needs
the run that it waits for, or, while it waits for its slot again, any one of those that have the slots; or the right
that it waits for (`LockRegistry.needs`). A queued run needs whoever is right before it in its session, or has the
session's turn in the lock registry; any one of those that run on its lane when that is full; and any one of those that
have the slots of its group when there is none left for it, or for one that goes before it on its lane. Who waits for a
run has lent its slot, but who waits for a right in the lock registry has not. The registry asks `needs` as well, and
searches (`locks.rights.deadlock`). So a ring is found whatever it is made of, by whoever would close it; a plain
search for cycles would refuse a wait for a lane of two places because of one that is stuck.

A run counts as waiting while the task that runs its body waits: what its child tasks do leaves the body free to go on.
It does not count while a time limit of its own ends the wait, a cancel scope with a deadline inside the body: then the
body goes on, whatever it waits for. The run's own budgets are no such limits; they end it by failing.

A run that goes on takes a slot again, and does not wait for one where that would never end: it goes on without.

Not seen: a body that waits for one of its own child tasks; a ring that is closed by no wait, but by a run that is put
before another one; one through a right in another lock registry, as two supervisors have that do not share one; and
limits that are in no cancel scope (`asyncio.timeout`). Deadlines bound those.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import anyio

from locks import DeadlockError, Holder, LockRegistry, Right, _effects
from locks._loop import current_task
from locks.lowlevel import AnyOf, name_of

from ..checks import Priority
from ..run import RunState
from .execution import Execution

if TYPE_CHECKING:
    from ..queues.groups import Group
    from ..queues.turns import Turns
    from ..run import Run

_Needs = list[tuple[str, list[object]]]
"""What for, and any one of which runs and tasks."""
_Stuck = dict[object, list[object]]


class Waits:
    """Which run waits for which, in one scheduler. On the event loop's thread.

    Invariants: an execution is in `_waiting`, and in the list in `_awaited` of the run that it waits for, exactly while
    the task of its body waits in `wait` and that run has not ended; in `_by_task` until that task goes on; in
    `_limited` for as long, if a time limit of its own ends the wait.
    """

    def __init__(
        self,
        turns: Turns,
        live: Mapping[int, Execution],
        registry: LockRegistry,
        groups: Mapping[str, Group],
        admit: Callable[[Group], None],
    ) -> None:
        self._turns = turns
        self._live = live
        self._registry = registry
        self._groups = groups
        self._admit = admit
        self._waiting: dict[Execution, Run] = {}
        self._awaited: dict[Run, list[Execution]] = {}
        self._by_task: dict[object, Execution] = {}
        self._limited: set[Execution] = set()

    def __len__(self) -> int:
        return len(self._by_task)

    def __contains__(self, execution: Execution) -> bool:
        return execution.fence.task in self._by_task

    async def wait(self, asking: Execution, run: Run, ended: anyio.Event) -> None:
        """Wait until a run has ended, on behalf of another one. A checkpoint.

        Cancelled, the asking run goes on at once; it takes the next free slot.

        Raises:
            DeadlockError: the run can only end after the asking one. Nothing has changed.
        """
        task = asking.fence.task
        if task is None or task is not current_task() or run._execution is None:
            await ended.wait()
            return
        group = self._groups[asking.spec.group]
        self._begin(asking, run, task)
        self._lend(asking, group)
        try:
            await ended.wait()
            turn = group.turn_of(asking)
            if turn is not None and not self._waits_in_vain(asking):
                await turn.wait()
        finally:
            self._end(asking, run, task)

    @_effects.change
    def _lend(self, asking: Execution, group: Group) -> None:
        group.give_back(asking)
        self._admit(group)

    @_effects.change
    def _end(self, asking: Execution, run: Run, task: object) -> None:
        self._groups[asking.spec.group].waits_no_more(asking)
        self._limited.discard(asking)
        if self._by_task.pop(task, None) is not None:
            asking.progress()  # its idle budget counts from here again
        if self._waiting.pop(asking, None) is not None:
            self._forget(asking, run)
            self._go_on(asking)

    def ended(self, run: Run) -> None:
        """Have those that wait for a run go on, before its own slot is given to anybody else."""
        for asking in self._awaited.pop(run, ()):
            del self._waiting[asking]
            self._go_on(asking)

    def _go_on(self, asking: Execution) -> None:
        if not asking.is_underway():
            return  # it was asked to end: its clean-up is bounded, and waits for no slot
        if asking.in_line and asking.file is not None:
            asking.urgency = self._turns.most_urgent(asking.file)  # who waits for its turn lends it its priority
        self._groups[asking.spec.group].take_again(asking)

    def needs(self, node: object) -> Sequence[object]:
        """All that a run, or the task of a body that waits here, needs before it can go on: a `WaitSource`."""
        if isinstance(node, Execution):
            needed = node.owner.waits._needs(node)
        else:
            waiting = self._by_task.get(node)
            if waiting is None:
                return ()
            needed = self._awaited_by(waiting)
        return [some[0] if len(some) == 1 else AnyOf(tuple(some)) for _, some in needed]

    def _begin(self, asking: Execution, run: Run, task: object) -> None:
        self._waiting[asking], self._by_task[task] = run, asking
        if anyio.current_effective_deadline() < asking.fence.scope_ends:
            self._limited.add(asking)
        target = run._execution
        assert target is not None
        # Mostly it needs nothing, and then there is nothing to search.
        stuck = self._stuck(asking) if target is asking or target.owner.waits._needs(target) else None
        if stuck is None:
            self._awaited.setdefault(run, []).append(asking)
            return
        chain = self._chain(asking, stuck)
        del self._waiting[asking], self._by_task[task]
        told = "; ".join(f"{who} waits for {what}" for who, what, _ in chain)
        raise DeadlockError(f"waiting for run {run.id} on lane {run.lane} would never end: {told}", chain=chain)

    def _forget(self, asking: Execution, run: Run) -> None:
        others = self._awaited[run]
        others.remove(asking)
        if not others:
            del self._awaited[run]

    def _waits_in_vain(self, asking: Execution) -> bool:
        """Whether a run that takes its slot again would never get it, or only a limit of its own would end that."""
        limited = asking in self._limited
        self._limited.discard(asking)
        stuck = self._stuck(asking)
        if limited:
            self._limited.add(asking)
        return stuck is not None

    def _stuck(self, asking: Execution) -> _Stuck | None:
        """Everything that can never end, with its needs, if the asking one is among it."""
        stuck = self._registry.never_ending(asking)
        return stuck if asking in stuck else None

    def _needs(self, one: Execution) -> _Needs:
        """What has to come before a run can end; nothing where it can go on by itself."""
        if one.over or one.ending:
            return []  # asked to end, it is woken from whatever it waits for
        if one.steered_into is not None:
            return [("reader", [one.steered_into])]
        if one.run.state is RunState.RUNNING:
            # The task of its body waits, in this registry or in another one that the search does not know.
            task, registry = one.fence.task, one.owner.registry
            needs = self._awaited_by(one)
            if task is not None and registry.waits(task):
                needs += [("right", [holder]) for holder in registry.needs(task)]
                needs.append(("body", [task]))
            return needs
        urgency, needs = one.urgency, []
        if one.in_line and one.file is not None:
            ahead, at_front = self._turns.place(one.file, one)
            urgency = min(urgency, at_front)  # who waits for its turn lends it its priority
            if ahead is not None:
                needs.append(("turn", [ahead]))
            else:
                needs += [("held", [holder]) for holder in self._registry.keepers(one.file, Right.TURN)]
        if len(one.lane.running) >= one.lane.spec.capacity:
            needs.append(("place", list(one.lane.running)))
        if urgency == one.urgency:
            urgency = max(urgency, one.lane.least_urgent_before(one.rank))  # it does not overtake those
        return needs + self._slot(one, urgency)

    def _awaited_by(self, one: Execution) -> _Needs:
        """What the body of a run waits for here."""
        if one in self._limited or one.over or one.ending:
            return []
        awaited = self._waiting.get(one)
        if awaited is not None:
            target = awaited._execution
            return [("run", [target])] if target is not None else []
        return self._slot(one, one.urgency) if self._groups[one.spec.group].keeps_waiting(one) else []

    def _slot(self, one: Execution, urgency: Priority) -> _Needs:
        """Who keeps a run of that class from a slot; the one who asks has lent its own by then."""
        group = self._groups[one.spec.group]
        if group.has_slot(urgency):
            return []
        spec = group.spec
        holders = [holder for holder in group.holders if holder not in self._waiting]
        others = [holder for holder in holders if group.holders[holder] is not Priority.FOREGROUND]
        needs = _Needs()
        if len(holders) >= spec.slots:
            needs.append(("slot", list(holders)))
        if urgency is not Priority.FOREGROUND and len(others) >= spec.slots - spec.reserve:
            needs.append(("slot", list(others)))
        return needs

    # Telling

    def _chain(self, asking: Execution, stuck: _Stuck) -> tuple[tuple[Holder, str, Holder], ...]:
        """One way round the ring, as the lock registry tells it: who waits, for what, and who keeps them waiting."""
        steps = list[tuple[Holder, str, Holder]]()
        one: object = asking
        seen = set[object]()
        while one not in seen:
            seen.add(one)
            kind, other = self._step(one, stuck)
            steps.append((_holder(one), _told(kind, one, other), _holder(other)))
            one = other
        return tuple(steps)

    def _step(self, one: object, stuck: _Stuck) -> tuple[str, object]:
        """What something waits for in vain, and who keeps it; runs stand for the tasks of their bodies."""
        while isinstance(one, Execution):
            needs = one.owner.waits._needs(one)
            kind, some = next((kind, some) for kind, some in needs if all(other in stuck for other in some))
            if kind != "body":
                return kind, self._run_of(some[0])
            one = some[0]  # its task waits for something that others tell of
        other = next(other for other in stuck[one] if other in stuck)
        return "task", self._run_of(other.nodes[0] if isinstance(other, AnyOf) else other)

    def _run_of(self, node: object) -> object:
        if isinstance(node, Execution):
            return node
        return next((one for one in self._live.values() if one.fence.task is node), node)


def _holder(node: object) -> Holder:
    return node.fence.holder if isinstance(node, Execution) else Holder(task=name_of(node) or "")


def _told(kind: str, one: object, other: object) -> str:
    if kind == "task" or not isinstance(one, Execution):
        return str(_holder(other))
    if kind == "right":
        return f"a right of {_holder(other)}"
    if kind == "held":
        return f"the turn of session {one.run.session}, which {_holder(other)} has"
    assert isinstance(other, Execution)
    if kind == "turn":
        return f"the turn of session {one.run.session}, which run {other.run.id} has before it"
    if kind == "place":
        return f"a place on lane {one.lane.name}, where run {other.run.id} runs"
    if kind == "slot":
        return f"a slot of group {one.spec.group}, where run {other.run.id} has one"
    if kind == "reader":
        return f"run {other.run.id}, which has its message"
    return f"run {other.run.id}"
