"""The tasks of an event loop: which have come to exist, and are left behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import anyio
from anyio.lowlevel import checkpoint


def tasks() -> dict[object, str]:
    """The names of all tasks of the running loop, by coroutine: unlike an id, it is not used twice while referenced."""
    return {info.coro: str(info.name) for info in anyio.get_running_tasks()}


async def leaked_tasks(before: Mapping[object, str]) -> list[str]:
    """The tasks that are not among `before`, took no such one's place, and do not end within a few rounds of the loop.

    A task takes the place of another when it has its name and that one has ended: the task group for a lane's bodies is
    replaced when one of them is abandoned.
    """
    found: list[str] = []
    for _ in range(10):
        now = tasks()
        ended = Counter(name for coro, name in before.items() if coro not in now)
        found = []
        for coro, name in now.items():
            if coro in before:
                continue
            if ended[name]:
                ended[name] -= 1
            else:
                found.append(f"{name} ({coro!r})")
        if not found:
            return []
        await checkpoint()
    return found
