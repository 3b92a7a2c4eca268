"""Who conducts a session where other machines may, stated from the scheduler's side.

With transcripts in files there is none: the turn of a session is a right in the lock registry.
"""

from __future__ import annotations

from typing import Protocol


class Ownership(Protocol):
    """Which sessions this process conducts. On the event loop's thread."""

    def owns(self, path: str) -> bool:
        """Whether it conducts a session now."""

    async def want(self, path: str) -> None:
        """Wait until it conducts a session. A checkpoint; cancelled, it may come to conduct it all the same.

        Raises:
            Exception: that cannot be asked for.
        """
