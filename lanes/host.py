"""The task group of a lane, in which the bodies of its runs are tasks of their own."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import TaskGroup

if TYPE_CHECKING:
    from .execution import Execution


class LaneHost:
    """A task group whose children are the bodies of one lane.

    A task group cannot end while a child runs. So when a body is abandoned, its lane takes a fresh host, and the old
    one ends whenever that body does.
    """

    __slots__ = ("_closing", "_group", "_waiting")

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
