"""Runs that wait for other runs: they lend their slot, and a wait that can never end is refused before it begins.

What a run needs before it can go on is what `needs` answers: a list, all of whose members must come true, each by any
one of its nodes. A node is a run or a task. The lock registry asks `Waits.needs` as well, and searches
(`locks.rights.deadlock`). So a ring is found whatever it is made of, by the wait that would close it; a plain search
for cycles would refuse a wait for a lane of two places because one run there is stuck.

A run counts as waiting while the task that runs its body waits: what its child tasks do leaves the body free to go on.
It does not count while a time limit of its own ends the wait, a cancel scope with a deadline inside the body: then the
body goes on, whatever it waits for. The run's own budgets are no such limits; they end it by failing.

A run that goes on takes a slot again. Where the wait for a slot would never end, the run goes on without a slot.

Not seen: a body that waits for one of its own child tasks; a ring that is closed by no wait, but by a run that is put
before another one; a ring through a right in another lock registry, as two supervisors have that do not share one; and
limits that are in no cancel scope (`asyncio.timeout`). Deadlines bound those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import anyio

from locks import DeadlockError, Holder, _effects
from locks._loop import Signal, current_task
from locks.lowlevel import AnyOf, name_of, never_ending

from ..queues.groups import Group
from ..queues.pool import Claim
from ..run import Run
from .board import Board
from .execution import Execution, execution_of
from .needs import Kind, Need, awaited_by, needs_of

_Stuck = dict[object, list[object]]


class Waits:
    """Which run waits for which, in one scheduler. On the event loop's thread.

    Invariants: an execution has a `wait`, and is in `_by_task`, exactly while the task of its body waits in `wait`, or
    for a grant of a pool; in `wait` it is in the list in `_awaited` of the run that it waits for until that run has
    ended.
    """

    def __init__(self, board: Board, admit: Callable[[Group[Execution]], None]) -> None:
        self._board = board
        self._admit = admit
        self._awaited: dict[Run, list[Execution]] = {}
        self._by_task: dict[object, Execution] = {}

    def __len__(self) -> int:
        return len(self._by_task)

    def __contains__(self, execution: Execution) -> bool:
        return execution.fence.task in self._by_task

    async def wait(self, asking: Execution, run: Run, ended: Signal) -> None:
        """Wait until a run has ended, on behalf of another one. A checkpoint.

        Cancelled, the asking run goes on at once; it takes the next free slot.

        Raises:
            DeadlockError: the run can only end after the asking one. Nothing has changed.
        """
        task = asking.fence.task
        if task is None or task is not current_task() or run._execution is None:
            await ended.wait()
            return
        group = self._board.groups[asking.spec.group]
        self._begin(asking, run, task)
        try:
            self._lend(asking, group)  # the hooks of what starts by it may end the process
            await ended.wait()
            turn = group.turn_of(asking)
            if turn is not None and not self._waits_in_vain(asking):
                await turn.wait()
        finally:
            self._end(asking, run, task)

    def begin_claim(self, asking: Execution, claim: Claim[Execution]) -> object:
        """A run waits for a grant of a pool; returns its task, if that is what waits.

        Raises:
            DeadlockError: the runs that hold the pool can only end after the asking one. Nothing has changed.
        """
        task = asking.fence.task
        if task is None or task is not current_task():
            return None
        limited = anyio.current_effective_deadline() < asking.fence.scope_ends
        self._by_task[task] = asking
        asking.begin_wait(None, limited=limited, claim=claim)
        if _needed(asking, awaited_by):
            self._refuse_ring(asking, task, f"waiting for a grant of pool {claim.pool.spec.name}")
        return task

    def end_claim(self, asking: Execution, task: object) -> None:
        """The wait of `begin_claim`, which has returned that task, is over."""
        if task is not None and self._by_task.pop(task, None) is not None:
            asking.progress()  # its idle budget counts from here again
            asking.end_wait()

    @_effects.change
    def _lend(self, asking: Execution, group: Group[Execution]) -> None:
        asking.lend_slot()
        group.give_back(asking)
        self._admit(group)

    @_effects.change
    def _end(self, asking: Execution, run: Run, task: object) -> None:
        self._board.groups[asking.spec.group].waits_no_more(asking)
        if self._by_task.pop(task, None) is not None:
            asking.progress()  # its idle budget counts from here again
        wait = asking.wait
        asking.end_wait()
        if wait is not None and wait.run is not None:
            self._forget(asking, run)
            self._go_on(asking)

    def ended(self, run: Run) -> None:
        """Let the runs that wait for a run go on, before its slot is given to another one."""
        for asking in self._awaited.pop(run, ()):
            wait = asking.wait
            assert wait is not None
            wait.run = None
            self._go_on(asking)

    def _go_on(self, asking: Execution) -> None:
        if not asking.is_underway():
            return  # it was asked to end: its clean-up is bounded, and waits for no slot
        if asking.in_line and asking.file is not None:
            # Runs that wait for its turn lend it their priority.
            asking.urgency = self._board.turns.most_urgent(asking.file)
        self._board.groups[asking.spec.group].take_again(asking)

    def needs(self, node: object) -> Sequence[object]:
        """All that a run, or the task of a body that waits here, needs before it can go on: a `WaitSource`."""
        if isinstance(node, Execution):
            needed = _needed(node, needs_of)
        else:
            waiting = self._by_task.get(node)
            needed = _needed(waiting, awaited_by) if waiting is not None else []
        return [need.any_of[0] if len(need.any_of) == 1 else AnyOf(need.any_of) for need in needed]

    def _begin(self, asking: Execution, run: Run, task: object) -> None:
        self._by_task[task] = asking
        asking.begin_wait(run, limited=anyio.current_effective_deadline() < asking.fence.scope_ends)
        target = execution_of(run)
        assert target is not None
        # Mostly it needs nothing, and then there is nothing to search.
        if target is asking or _needed(target, needs_of):
            self._refuse_ring(asking, task, f"waiting for run {run.id} on lane {run.lane}")
        self._awaited.setdefault(run, []).append(asking)

    def _refuse_ring(self, asking: Execution, task: object, waiting: str) -> None:
        """Undo a wait that has just begun, and raise, if it would never end."""
        stuck = self._stuck(asking)
        if stuck is None:
            return
        chain = self._chain(asking, stuck)
        asking.end_wait()
        del self._by_task[task]
        ring = "; ".join(f"{waiter} waits for {what}" for waiter, what, _ in chain)
        raise DeadlockError(f"{waiting} would never end: {ring}", chain=chain)

    def _forget(self, asking: Execution, run: Run) -> None:
        others = self._awaited[run]
        others.remove(asking)
        if not others:
            del self._awaited[run]

    def _waits_in_vain(self, asking: Execution) -> bool:
        """Whether a run that takes its slot again would never get it, or only a limit of its own would end that."""
        wait = asking.wait
        assert wait is not None
        limited, wait.limited = wait.limited, False
        try:
            return self._stuck(asking) is not None
        finally:
            wait.limited = limited

    def _stuck(self, asking: Execution) -> _Stuck | None:
        """Everything that can never end, with its needs, if the asking one is among it."""
        stuck = never_ending(asking, self._board.registry.arbiter.graph.needs)
        return stuck if asking in stuck else None

    # Reporting

    def _chain(self, asking: Execution, stuck: _Stuck) -> tuple[tuple[Holder, str, Holder], ...]:
        """One way round the ring, as the lock registry reports it: the waiter, what it waits for, and what has that."""
        steps = list[tuple[Holder, str, Holder]]()
        one: object = asking
        seen = set[object]()
        while one not in seen:
            seen.add(one)
            kind, other = self._step(one, stuck)
            steps.append((_holder(one), _words(kind, one, other), _holder(other)))
            one = other
        return tuple(steps)

    def _step(self, one: object, stuck: _Stuck) -> tuple[Kind | None, object]:
        """What a node waits for in vain, and the node that has it; runs stand for the tasks of their bodies."""
        while isinstance(one, Execution):
            needs = _needed(one, needs_of)
            need = next(need for need in needs if all(other in stuck for other in need.any_of))
            if need.kind is not Kind.BODY:
                return need.kind, self._run_of(need.any_of[0])
            one = need.any_of[0]  # its task waits for something that the lock registry knows
        other = next(other for other in stuck[one] if other in stuck)
        return None, self._run_of(other.nodes[0] if isinstance(other, AnyOf) else other)

    def _run_of(self, node: object) -> object:
        if isinstance(node, Execution):
            return node
        return next((one for one in self._board.live.values() if one.fence.task is node), node)


def _needed(one: Execution, needs: Callable[[Execution], Iterable[Need]]) -> list[Need]:
    """The needs of a run that only runs and tasks can meet."""
    if one.over or one.ending:
        return []  # asked to end, it is woken from whatever it waits for
    return [need for need in needs(one) if need.any_of and not need.limited]


def _holder(node: object) -> Holder:
    return node.fence.holder if isinstance(node, Execution) else Holder(task=name_of(node) or "")


def _pool_of(one: Execution) -> str:
    claim = one.wait.claim if one.wait is not None else None
    return f"pool {claim.pool.spec.name}" if claim is not None else "no pool"


def _words(kind: Kind | None, one: object, other: object) -> str:
    if kind is None or not isinstance(one, Execution):
        return str(_holder(other))
    if kind is Kind.RIGHT:
        return f"a right of {_holder(other)}"
    if kind is Kind.HELD:
        return f"the turn of session {one.run.session}, which {_holder(other)} has"
    assert isinstance(other, Execution)
    words = {
        Kind.TURN: f"the turn of session {one.run.session}, which run {other.run.id} has before it",
        Kind.PLACE: f"a place on lane {one.lane.name}, where run {other.run.id} runs",
        Kind.SLOT: f"a slot of group {one.spec.group}, where run {other.run.id} has one",
        Kind.READER: f"run {other.run.id}, which has its message",
        Kind.POOL: f"a grant of {_pool_of(one)}, where run {other.run.id} has one",
    }
    return words.get(kind, f"run {other.run.id}")
