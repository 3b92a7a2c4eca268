"""The task of a body: from its first step to the report of how it ended, whatever it raised."""

from __future__ import annotations

from typing import Any

from locks._loop import current_task
from locks.lowlevel import current_fence

from ..body.context import RunContext
from ..run import _current
from .execution import Execution
from .phase import OVER
from .task_host import TaskHost


async def conduct(execution: Execution, host: TaskHost) -> None:
    """Run the body in the calling task, which is its own; contains everything it raises.

    Cancelling the scope of the body cancels the body, and nothing around it does. A native cancellation of this task
    that is still pending when the body has ended hits nothing: there is no `await` after that.
    """
    owner, body = execution.owner, execution.body
    if execution.phase in OVER or body is None:
        return  # it was abandoned before the loop came to start it
    if execution.cause is not None:
        owner.body_ended(execution, None, None)  # cancelled before its first step: there is nothing to clean up
        return
    scope, task = host.new_scope(), current_task()
    execution.body_begins(task, scope)
    _current.set(execution.run)
    current_fence.set(execution.fence)
    args = execution.args if execution.messages is None else (list(execution.messages),)
    value: Any = None
    error: BaseException | None = None
    try:
        with scope:  # raises itself where the body has left a scope of its own open
            if (execution.messages is not None or execution.file is not None) and owner.board.journal is not None:
                await owner.board.journal.begin(execution.messages or (), execution.file, execution.fence)
            value = await body(RunContext(execution, owner.board.services), *args)
    except BaseException as raised:
        error = raised
    interrupt: KeyboardInterrupt | None = None
    try:
        interrupt = interrupt_in(error) if error is not None else None
        leaves = interrupt is not None and owner.interrupted(execution, interrupt)  # before the next one is let in
        try:
            owner.body_ended(execution, value, error)
        except KeyboardInterrupt as raised:  # a hook's, or Ctrl-C in this instant
            interrupt, leaves = raised, owner.interrupted(execution, raised) or leaves
        if interrupt is not None and leaves:
            raise interrupt
    finally:
        # A frame that is its own traceback's end would need the garbage collector.
        del value, error, body, args, interrupt
        execution.body_over()
    host.leave(task)


def interrupt_in(error: BaseException) -> KeyboardInterrupt | None:
    """The `KeyboardInterrupt` that an exception is, or has among its members: the process is to end, not the run."""
    found = [error]
    for one in found:  # grows meanwhile; groups may stand in each other deeper than a call could follow
        if isinstance(one, KeyboardInterrupt):
            return one
        if isinstance(one, BaseExceptionGroup):
            found += one.exceptions
    return None
