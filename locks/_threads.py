"""Threads for our own disk work, a few at a time.

Tool calls that hang and fill the default pool must not stop it, so it has a limit of its own. Nor must a disk that
hangs: a task that is cancelled abandons the thread, and another takes the place at once. So the limit is on the tasks
that wait for a thread, not on the threads. Those that hang are as many as operations were abandoned, and end with the
disk's answer.

Rejected: handing the limit to `to_thread` itself. On trio a thread keeps its place until it ends, so eight calls that
hang, on one disk, would stop the work on every other; on asyncio it gives it back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar

_T = TypeVar("_T")
_AT_ONCE = 8
_waiting: RunVar[CapacityLimiter] = RunVar("locks.threads")


async def in_thread(call: Callable[[], _T]) -> _T:
    """Call in a worker thread what may hang in the disk. A checkpoint.

    Cancelled, the thread is abandoned, so that a disk that hangs does not keep a run past its grace. Then the call is
    never made, or goes on by itself, may even begin only then, and its end is reported to no task: what it owns, it
    lets go of itself.
    """
    try:
        waiting = _waiting.get()
    except LookupError:
        waiting = CapacityLimiter(_AT_ONCE)
        _waiting.set(waiting)
    async with waiting:
        # The limit of the thread itself is its own, so it takes no other task's place when it is abandoned.
        return await to_thread.run_sync(call, abandon_on_cancel=True, limiter=CapacityLimiter(1))
