"""What differs between the two event loops and is needed below anyio: posting from a thread, and who is running."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

Post = Callable[[Callable[[], Any]], None]
"""Have the event loop call something soon; from any thread, without waiting."""


def poster() -> Post:
    """How other threads reach the event loop that is running now."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        import trio  # noqa: PLC0415 -- only where trio runs is it already imported

        token = trio.lowlevel.current_trio_token()

        def post_to_trio(call: Callable[[], Any]) -> None:
            try:
                token.run_sync_soon(call)
            except trio.RunFinishedError:
                return  # nobody is left to hear of it

        return post_to_trio

    def post_to_asyncio(call: Callable[[], Any]) -> None:
        try:
            loop.call_soon_threadsafe(call)
        except RuntimeError:
            return  # closed: nobody is left to hear of it

    return post_to_asyncio


def current_loop() -> object:
    """An object that stands for the running event loop."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        import trio  # noqa: PLC0415 -- only where trio runs is it already imported

        return trio.lowlevel.current_trio_token()


def current_task() -> object:
    """The running task; it has a name (`name`, or `get_name()` on asyncio)."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        import trio  # noqa: PLC0415 -- only where trio runs is it already imported

        return trio.lowlevel.current_task()
