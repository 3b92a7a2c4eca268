"""Runs that wait for other runs: they lend their slot, and a wait that can never end is refused before it begins.

A run counts as waiting while the task that runs its body waits: what its child tasks do leaves the body free to go on.
What a run needs in order to end is a list of alternatives each: all of them must come true, each by any one of the runs
in it. A run that waits for another needs that one. A queued one needs whoever is in front of it in its session, and,
when its lane is full, any one of those that run there. Group slots never close a ring, since who waits lends its own.
Rights in the lock registry count too (`LockRegistry.blockers`); the registry asks `tasks_before` in return. So a ring
is found whatever it is made of, by whoever would close it; a plain search for cycles would refuse a wait for a lane of
two places because of one that is stuck.

Not seen: a body that waits for one of its own child tasks. Deadlines bound that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import anyio

from locks import DeadlockError, LockRegistry
from locks._loop import current_task

from .run import RunState

if TYPE_CHECKING:
    from .admission import Group
    from .execution import Execution
    from .run import Run
    from .turns import Turns

_Needs = list[list["Execution"]]


class Waits:
    """Which run waits for which, in one scheduler. On the event loop's thread.

    Invariant: an execution is in it exactly while the task of its body waits in `wait`.
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
        self._by_task: dict[object, Execution] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    async def wait(self, asking: Execution, run: Run, ended: anyio.Event) -> None:
        """Wait until a run has ended, on behalf of another one. A checkpoint.

        Raises:
            DeadlockError: the run can only end after the asking one. Nothing has changed.
        """
        task = asking.fence.task
        if task is None or task is not current_task() or run._execution is None:
            await ended.wait()
            return
        self._begin(asking, run, task)
        group = self._groups[asking.spec.group]
        lends = asking.has_slot
        if lends:
            group.give_back(asking)
            self._admit(group)
        try:
            await ended.wait()
        except BaseException:
            self._end(asking, task)
            if lends and asking.is_underway():
                group.take_again(asking, waits=False)
            raise
        self._end(asking, task)
        if lends and asking.is_underway():
            turn = group.take_again(asking, waits=True)
            if turn is not None:
                await turn.wait()

    def tasks_before(self, task: object) -> Iterable[object]:
        """The tasks that must go on before a task that waits here can: what the lock registry asks.

        Only those without an alternative: the registry's own search knows no others.
        """
        asking = self._by_task.get(task)
        todo = [asking] if asking is not None else []
        seen: set[Execution] = set()
        while todo:
            one = todo.pop()
            if one in seen:
                continue
            seen.add(one)
            if one is not asking and one.fence.task is not None:
                yield one.fence.task
                continue
            todo += [needed[0] for needed in self._needs(one) if len(needed) == 1]

    def _begin(self, asking: Execution, run: Run, task: object) -> None:
        self._waiting[asking] = run
        self._by_task[task] = asking
        stuck = self._stuck(asking)
        if stuck is None:
            return
        chain = self._chain(asking, stuck)
        self._end(asking, task)
        told = "; ".join(f"{who} waits for {what}" for who, what, _ in chain)
        raise DeadlockError(f"waiting for run {run.id} on lane {run.lane} would never end: {told}", chain=chain)

    def _end(self, asking: Execution, task: object) -> None:
        self._waiting.pop(asking, None)
        self._by_task.pop(task, None)

    def _needs(self, one: Execution) -> _Needs:
        """Who must end before it can: all of the lists, each by any of its members. Empty: it can go on by itself."""
        if one.over:
            return []
        if one.steered_into is not None:
            return [[one.steered_into]]
        if one.run.state is RunState.RUNNING:
            awaited = self._waiting.get(one)
            if awaited is not None:
                target = awaited._execution
                return [[target]] if target is not None else []
            return [[holder] for holder in map(self._holder, self._registry.blockers(one.fence.task)) if holder]
        needs: _Needs = []
        if one.in_line and one.file is not None:
            front = self._turns.front(one.file)
            if front is not None and front is not one:
                needs.append([front])
        if len(one.lane.running) >= one.lane.spec.capacity:
            needs.append(list(one.lane.running))
        return needs

    def _holder(self, task: object) -> Execution | None:
        return next((one for one in self._live.values() if one.fence.task is task), None)

    def _stuck(self, asking: Execution) -> dict[Execution, _Needs] | None:
        """Everybody who can never end, with their needs, if the asking one is among them.

        Who can end is found step by step, from those who need nobody; the others are stuck.
        """
        needs: dict[Execution, _Needs] = {}
        todo = [asking]
        while todo:
            one = todo.pop()
            if one not in needs:
                needs[one] = self._needs(one)
                todo += [other for needed in needs[one] for other in needed]
        can_end: set[Execution] = set()
        found = True
        while found:
            found = False
            for one, needed in needs.items():
                if one not in can_end and all(any(other in can_end for other in some) for some in needed):
                    can_end.add(one)
                    found = True
        if asking in can_end:
            return None
        return {one: needed for one, needed in needs.items() if one not in can_end}

    def _chain(self, asking: Execution, stuck: dict[Execution, _Needs]) -> tuple[tuple[object, str, object], ...]:
        """One way round the ring, as the lock registry tells it: who waits, for what, and who keeps them waiting."""
        steps: list[tuple[object, str, object]] = []
        one = asking
        seen: set[Execution] = set()
        while one not in seen:
            seen.add(one)
            blocked = next(some for some in stuck[one] if all(other in stuck for other in some))
            other = blocked[0]
            if one.run.state is RunState.RUNNING:
                what = (
                    f"run {other.run.id}" if self._waiting.get(one) is other.run else f"a right of {other.fence.holder}"
                )
            elif one.lane is other.lane and other in one.lane.running:
                what = f"a place on lane {one.lane.name}, where run {other.run.id} runs"
            else:
                what = f"the turn of session {one.run.session}, which run {other.run.id} has"
            steps.append((one.fence.holder, what, other.fence.holder))
            one = other
        return tuple(steps)
