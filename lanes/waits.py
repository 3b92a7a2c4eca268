"""Runs that wait for other runs: they lend their slot, and a wait that can never end is refused before it begins.

A run counts as waiting while the task that runs its body waits: what its child tasks do leaves the body free to go on.
What a run needs in order to end is a list of alternatives each: all of them must come true, each by any one of the runs
in it. A run that waits for another needs that one. A queued one needs whoever is right before it in its session, any
one of those that run on its lane when that is full, and any one of those that have the slots of its group when there is
none left for it. Who waits for a run has lent its slot, but who waits for a right in the lock registry has not.
Rights count too (`LockRegistry.blockers`); the registry asks `tasks_before` in return. So a ring is found whatever it
is made of, by whoever would close it; a plain search for cycles would refuse a wait for a lane of two places because of
one that is stuck.

A run that goes on takes a slot again, and does not wait for one where that would never end: it goes on without.

Not seen: a body that waits for one of its own child tasks; a ring that is closed by no wait, but by a run that is put
before another one; and, when a right is asked for, a ring through alternatives. Deadlines bound those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import anyio

from locks import DeadlockError, LockRegistry, _effects
from locks._loop import current_task

from .checks import Priority
from .run import RunState

if TYPE_CHECKING:
    from .admission import Group
    from .execution import Execution
    from .run import Run
    from .turns import Turns

# What for, and any one of whom.
_Needs = list[tuple[str, list["Execution"]]]
# Who is right before each one in its session, as far as one search has looked.
_Lines = dict["Execution", "Execution | None"]


class Waits:
    """Which run waits for which, in one scheduler. On the event loop's thread.

    Invariants: an execution is in `_waiting`, and in the list in `_awaited` of the run that it waits for, exactly while
    the task of its body waits in `wait` and that run has not ended; in `_by_task` until that task goes on.
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
            if turn is not None and self._stuck(asking) is None:
                await turn.wait()
        finally:
            self._end(asking, run, task)

    @_effects.change
    def _lend(self, asking: Execution, group: Group) -> None:
        group.give_back(asking)
        self._admit(group)

    @_effects.change
    def _end(self, asking: Execution, run: Run, task: object) -> None:
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

    def tasks_before(self, task: object) -> Iterable[object]:
        """The tasks that must go on before a task that waits here can: what the lock registry asks.

        Only those without an alternative: the registry's own search knows no others.
        """
        asking = self._by_task.get(task)
        todo = [asking] if asking is not None else []
        seen: set[Execution] = set()
        lines: _Lines = {}
        while todo:
            one = todo.pop()
            if one in seen:
                continue
            seen.add(one)
            if one is not asking and one.fence.task is not None:
                yield one.fence.task
                continue
            todo += [some[0] for _, some in self._needs(one, lines) if len(some) == 1]

    def _begin(self, asking: Execution, run: Run, task: object) -> None:
        self._waiting[asking] = run
        stuck = self._stuck(asking)
        if stuck is None:
            self._by_task[task] = asking
            self._awaited.setdefault(run, []).append(asking)
            return
        del self._waiting[asking]
        chain = _chain(asking, stuck)
        told = "; ".join(f"{who} waits for {what}" for who, what, _ in chain)
        raise DeadlockError(f"waiting for run {run.id} on lane {run.lane} would never end: {told}", chain=chain)

    def _forget(self, asking: Execution, run: Run) -> None:
        others = self._awaited[run]
        others.remove(asking)
        if not others:
            del self._awaited[run]

    def _needs(self, one: Execution, lines: _Lines) -> _Needs:
        """Who must end before it can: all of the lists, each by any of its members. Empty: it can go on by itself."""
        waits = one.owner.waits
        if waits is not self:
            return waits._needs(one, lines)  # a run of another supervisor
        if one.over or one.ending:
            return []  # asked to end, it is woken from whatever it waits for
        if one.steered_into is not None:
            return [("reader", [one.steered_into])]
        if one.run.state is RunState.RUNNING:
            return self._needs_of_running(one)
        needs: _Needs = []
        if one.in_line and one.file is not None:
            if one not in lines:
                lines |= self._turns.line(one.file)
            ahead = lines[one]
            if ahead is not None:
                needs.append(("turn", [ahead]))
        if len(one.lane.running) >= one.lane.spec.capacity:
            needs.append(("place", list(one.lane.running)))
        return needs + self._slot(one)

    def _needs_of_running(self, one: Execution) -> _Needs:
        awaited = self._waiting.get(one)
        if awaited is not None:
            target = awaited._execution
            return [("run", [target])] if target is not None else []
        if self._groups[one.spec.group].keeps_waiting(one):
            return self._slot(one)
        return [("right", [holder]) for holder in map(self._holder, self._registry.blockers(one.fence.task)) if holder]

    def _slot(self, one: Execution) -> _Needs:
        """Who keeps it from a slot; the one who asks has lent its own by then."""
        group = self._groups[one.spec.group]
        if group.has_slot(one.urgency):
            return []
        spec = group.spec
        holders = [holder for holder in group.holders if holder not in self._waiting]
        others = [holder for holder in holders if holder.urgency is not Priority.FOREGROUND]
        needs: _Needs = []
        if len(holders) >= spec.slots:
            needs.append(("slot", holders))
        if one.urgency is not Priority.FOREGROUND and len(others) >= spec.slots - spec.reserve:
            needs.append(("slot", others))
        return needs

    def _holder(self, task: object) -> Execution | None:
        return next((one for one in self._live.values() if one.fence.task is task), None)

    def _stuck(self, asking: Execution) -> dict[Execution, _Needs] | None:
        """Everybody who can never end, with their needs, if the asking one is among them.

        Who can end is found step by step, from those who need nobody; the others are stuck.
        """
        needs: dict[Execution, _Needs] = {}
        lines: _Lines = {}
        todo = [asking]
        while todo:
            one = todo.pop()
            if one not in needs:
                needs[one] = self._needs(one, lines)
                todo += [other for _, some in needs[one] for other in some]
        can_end: set[Execution] = set()
        inside_out = list(reversed(needs.items()))  # so that one round is enough for a long queue
        found = True
        while found:
            found = False
            for one, needed in inside_out:
                if one not in can_end and all(any(other in can_end for other in some) for _, some in needed):
                    can_end.add(one)
                    found = True
        if asking in can_end:
            return None
        return {one: needed for one, needed in needs.items() if one not in can_end}


def _chain(asking: Execution, stuck: dict[Execution, _Needs]) -> tuple[tuple[object, str, object], ...]:
    """One way round the ring, as the lock registry tells it: who waits, for what, and who keeps them waiting."""
    steps: list[tuple[object, str, object]] = []
    one = asking
    seen: set[Execution] = set()
    while one not in seen:
        seen.add(one)
        kind, some = next((kind, some) for kind, some in stuck[one] if all(other in stuck for other in some))
        steps.append((one.fence.holder, _told(kind, one, some[0]), some[0].fence.holder))
        one = some[0]
    return tuple(steps)


def _told(kind: str, one: Execution, other: Execution) -> str:
    if kind == "turn":
        return f"the turn of session {one.run.session}, which run {other.run.id} has before it"
    if kind == "place":
        return f"a place on lane {one.lane.name}, where run {other.run.id} runs"
    if kind == "slot":
        return f"a slot of group {one.spec.group}, where run {other.run.id} has one"
    if kind == "right":
        return f"a right of {other.fence.holder}"
    if kind == "reader":
        return f"run {other.run.id}, which has its message"
    return f"run {other.run.id}"
