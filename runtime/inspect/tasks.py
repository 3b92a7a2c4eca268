"""The tasks of a run, as a tree, whether anyio, trio or asyncio started them.

A task inherits the context of the code that starts it, and in the context stands the run (`current_run`). So none is
missed, also when `asyncio.create_task` started it and its result was not kept. anyio knows the parents of its own
tasks; a native task belongs to the task that awaits it, or whose variables name it or its task group.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import anyio

from lanes import Run
from lanes.body.stacks import is_running, steps, variables
from lanes.run import _current
from locks._loop import know_loop, on_trio, running_loop

_MOST_LOOKED_INTO = 1000
"""Tasks of one run of which it is found out what they await; of more, all but that."""


@dataclass(slots=True, eq=False)
class Task:
    """A task of the event loop."""

    id: int
    name: str
    parent: int | None
    """The id of the task that started it; only anyio's and trio's own are known."""
    coro: Any
    native: Any
    """The event library's own object."""
    children: list[Task] = field(default_factory=list)
    """Set by `grow`."""


def all_tasks() -> dict[int, Task]:
    """The tasks of the running loop. Sorted: asyncio and trio have them in sets."""
    native = {id(task): task for task in _native_tasks()}
    infos = sorted(running_tasks(), key=lambda info: (len(info.name or ""), info.name or "", info.id))
    return {info.id: Task(info.id, str(info.name), info.parent_id, info.coro, native.get(info.id)) for info in infos}


def running_tasks() -> list[anyio.TaskInfo]:
    """The tasks of the running loop as anyio knows them; none on a thread without a loop."""
    if running_loop() is None:
        return []  # its loop has ended
    context = copy_context()
    know_loop(context)  # a callback of the loop is no task, and anyio knows the loop by that
    return context.run(anyio.get_running_tasks)


def _native_tasks() -> list[Any]:
    if running_loop() is None:
        return []
    if not on_trio():
        return list(asyncio.all_tasks())
    found = [sys.modules["trio"].lowlevel.current_root_task()]
    for task in found:  # grows meanwhile
        found += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return found


def _run_of_task(task: Task) -> Run | None:
    """The run in the context of a task."""
    if hasattr(task.native, "get_context"):
        context = task.native.get_context()
    else:  # trio; asyncio before Python 3.12, where only the garbage collector knows it
        found = [getattr(task.native, "context", None), *gc.get_referents(task.native)]
        context = next((one for one in found if isinstance(one, Context)), None)
    return context.get(_current) if context is not None else None


Kin = tuple[dict[int | None, list[Task]], dict[Run | None, list[Task]]]


def kin_of(tasks: dict[int, Task]) -> Kin:
    """Tasks by parent, and by run: found once, however many runs are asked about."""
    by_parent, by_run = defaultdict[int | None, list[Task]](list), defaultdict[Run | None, list[Task]](list)
    for task in tasks.values():
        by_parent[task.parent].append(task)
        # A task that has not begun may be the body of a run that this run has just submitted.
        if getattr(task.coro, "cr_suspended", True) or is_running(task.coro):
            by_run[_run_of_task(task)].append(task)
    return by_parent, by_run


def grow(run: Run, root: Task, tasks: dict[int, Task], kin: Kin) -> list[Task]:
    """Give each task of a run its children; returns the run's tasks that are no task's child.

    Args:
        root: the task of the run's body.
        tasks: `all_tasks()`, looked at in the same step of the loop.
        kin: `kin_of(tasks)`.
    """
    by_parent, by_run = kin
    mine = [task for task in by_run[run] if task is not root]
    native = {task.id for task in mine if task.parent is None}
    placed = {root.id}

    def children_of(task: Task) -> list[Task]:
        # Of further tasks it is not found out what they await: they are only counted.
        return by_parent[task.id] + (_awaited(task, tasks, native) if len(placed) < _MOST_LOOKED_INTO else [])

    def place_below(top: Task) -> None:
        todo = [top]
        for task in todo:  # grows meanwhile
            for child in children_of(task):
                if child.id not in placed:
                    placed.add(child.id)
                    task.children.append(child)
                    todo.append(child)

    place_below(root)
    left = [task for task in mine if task.id not in placed]
    awaited = {child.id for task in left for child in children_of(task)}
    strays = []
    for task in [*(one for one in left if one.id not in awaited), *left]:  # the latter: those that await each other
        if task.id not in placed:
            placed.add(task.id)
            strays.append(task)
            place_below(task)
    return strays


def _awaited(task: Task, tasks: dict[int, Task], native: set[int]) -> list[Task]:
    """The native tasks that a task awaits, and those of the run that its variables name. None on trio.

    Args:
        native: the run's native tasks, by id.
    """
    if not isinstance(task.native, asyncio.Future):
        return []
    waiter = getattr(task.native, "_fut_waiter", None)
    found = {id(one): None for one in (waiter, *(getattr(waiter, "_children", None) or ()))}
    named = [id(one) for step in steps(task.coro) for one in _futures(variables(step))]
    found |= {one: None for one in named if one in native}
    return [tasks[one] for one in found if one in tasks and one != task.id]


def _futures(values: list[Any]) -> Iterator[Any]:
    """Tasks among values, in task groups, and in collections: one level down."""
    for value in values:
        one = value.__self__ if isinstance(value, MethodType) else value
        if isinstance(one, asyncio.TaskGroup):
            yield from list(getattr(one, "_tasks", ()))
        elif isinstance(one, list | tuple | set | frozenset):
            yield from list(one)[:_MOST_LOOKED_INTO]
        elif type(one) is dict:
            yield from list(one.values())[:_MOST_LOOKED_INTO]
        else:
            yield one
