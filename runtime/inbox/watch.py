"""What becomes of messages that this process waits for, and that another one answers."""

from __future__ import annotations

import anyio

from .door import Door

_LOOK_S = 0.5


class Watch:
    """Looks for the end of messages that are waited for here and are not in memory. On the event loop's thread."""

    def __init__(self, door: Door) -> None:
        self._door, self._more = door, anyio.Event()

    def look(self) -> None:
        """One of them may have ended."""
        self._more.set()

    async def serve(self) -> None:
        """Look, until cancelled."""
        while True:
            more = self._more = anyio.Event()
            door = self._door
            away = [
                message
                for message, fate in list(door.fates.items())
                if message not in door.in_memory and not fate.ended.is_set()
            ]
            if away:
                await door.look_again(await door.store.ended_among(away))
            with anyio.move_on_after(_LOOK_S):
                await more.wait()
