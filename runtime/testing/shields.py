"""Whether a cancellation from outside can reach the place where the running task waits."""

from __future__ import annotations

import asyncio
from typing import Any

import trio
from anyio._backends import _asyncio as anyio_asyncio  # there is no public way to ask for the scopes of a task

from locks._loop import on_trio


def innermost_scope() -> object:
    """The cancel scope that the running task has entered last."""
    if on_trio():
        return trio.lowlevel.current_task()._cancel_status
    task = asyncio.current_task()
    state = None if task is None else anyio_asyncio._task_states.get(task)
    return None if state is None else state.cancel_scope


def shielded_within(outer: object) -> bool:
    """Whether the running task has entered a shielded scope since `outer` was its innermost one."""
    scope: Any = innermost_scope()
    while scope is not None and scope is not outer:
        if getattr(scope, "_scope", scope).shield:
            return True
        scope = scope._parent if on_trio() else scope._parent_scope
    return False
