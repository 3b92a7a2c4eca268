"""A lane: a FIFO of runs with a capacity, and the task group in which their bodies run."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import TaskGroup

from .spec import LaneSpec, Priority, priority

if TYPE_CHECKING:
    from .execution import Execution


class Lane:
    """The queue and the running bodies of one lane.

    Invariants: an execution is in `queued` from being submitted until it starts or ends; in `ready` at most once, and
    while `is_ready`: it needs nothing but a place and a slot; in `running` from
    its start until it ends or is abandoned.
    """

    __slots__ = ("_dead", "host", "name", "queued", "ready", "ring", "running", "spec", "urgency")

    def __init__(self, name: str, spec: LaneSpec) -> None:
        self.name = name
        self.spec = spec
        self.urgency: Priority = priority(spec.priority)
        self.queued: set[Execution] = set()
        self.ready: list[tuple[int, Execution]] = []
        self._dead = 0  # entries of `ready` that are not ready any more
        self.running: set[Execution] = set()
        self.ring: Priority | None = None
        """The class in whose ring of lanes that could start something the group has it."""
        self.host: LaneHost | None = None

    def __repr__(self) -> str:
        return f"<Lane {self.name}: {len(self.running)} of {self.spec.capacity} running, {len(self.queued)} queued>"

    @property
    def idle(self) -> bool:
        """Whether nothing runs or waits on it."""
        return not self.queued and not self.running

    def make_ready(self, execution: Execution) -> None:
        """Queue for a place: by age, so that one who had to wait for another process does not wait twice."""
        execution.is_ready = True
        heapq.heappush(self.ready, (execution.run.id, execution))

    def forget(self, execution: Execution) -> None:
        """Let go of one that has ended, wherever it stands."""
        self.queued.discard(execution)
        if not execution.is_ready:
            return
        execution.is_ready = False
        self._dead += 1
        if self._dead > 64 and self._dead * 2 > len(self.ready):  # lest a full lane collects the cancelled for ever
            self.ready = [entry for entry in self.ready if entry[1].is_ready]
            heapq.heapify(self.ready)
            self._dead = 0

    def next(self) -> Execution | None:
        """Who would start next; `None` when nobody is ready or the lane is full."""
        if len(self.running) >= self.spec.capacity:
            return None
        while self.ready:
            execution = self.ready[0][1]
            if execution.is_ready:
                return execution
            heapq.heappop(self.ready)
            self._dead -= 1
        return None

    def take(self) -> Execution:
        """Move the one that `next` names to the running."""
        execution = heapq.heappop(self.ready)[1]
        execution.is_ready = False
        self.queued.discard(execution)
        self.running.add(execution)
        return execution

    def put_back(self, execution: Execution) -> None:
        """Undo `take`: it has to wait for something else after all."""
        self.running.discard(execution)
        self.queued.add(execution)


class LaneHost:
    """A task group whose children are the bodies of one lane.

    A task group cannot end while a child runs. So when a body is abandoned, its lane takes a fresh host, and the old
    one ends whenever that body does.
    """

    def __init__(self) -> None:
        self._group: TaskGroup | None = None
        self._waiting: list[Execution] = []
        self._closing = anyio.Event()

    def start(self, execution: Execution) -> None:
        """Start a body as a task of its own, in a copy of its submitter's context."""
        group, context = self._group, execution.context
        if group is None:
            self._waiting.append(execution)
        elif context is not None:
            execution.task = context.run(_start, group, execution)

    def close(self) -> None:
        """Start nothing more, and end when the last body has."""
        self._closing.set()

    async def serve(self) -> None:
        """Hold the task group open until `close`."""
        async with anyio.create_task_group() as group:
            self._group = group
            self._start_waiting()
            await self._closing.wait()

    def _start_waiting(self) -> None:
        # Not in `serve`, whose frame lives as long as the lane and would keep what its variables name.
        waiting, self._waiting = self._waiting, []
        for execution in waiting:
            self.start(execution)


def _start(group: TaskGroup, execution: Execution) -> anyio.TaskHandle[None]:
    return group.start_soon(execution.conduct, name=execution.task_name)


def spawn(group: TaskGroup, body: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
    """Start a task that nobody waits for but its group."""
    _ = group.start_soon(body, name=name)
