"""A service whose value bodies need: a secret that is good for one generation, and takes its time to come and go."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from locks._events import log

NAME = "secrets"
"""Of the service."""


class GenerationSecrets:
    """Gives each generation a secret of its own, and counts what must not happen. On the event loop's thread.

    Args:
        takes_s: seconds that the service takes to be entered, and to be left.
        instance: distinguishes the secrets of this process from those of others.
    """

    def __init__(self, takes_s: float, instance: str) -> None:
        self.overlaps = 0
        """Generations that began while another one was there. Must stay 0."""
        self.old_uses = 0
        """Runs that worked with a secret that was withdrawn. Must stay 0."""
        self._takes_s, self._instance = takes_s, instance
        self._made = 0
        self._there: set[str] = set()
        """The names of the generations that have begun to enter and have not left."""
        self._valid = ""

    @asynccontextmanager
    async def service(self) -> AsyncIterator[Secret]:
        """The service of one generation."""
        self._made += 1
        name = f"{self._instance}.{self._made}"
        self.overlaps += bool(self._there)
        self._there.add(name)
        try:
            await anyio.sleep(self._takes_s)
            self._valid = name
            yield Secret(self, name)
        finally:
            if self._valid == name:
                self._valid = ""
            with anyio.CancelScope(shield=True):
                await anyio.sleep(self._takes_s)
            self._there.discard(name)

    def is_valid(self, name: str) -> bool:
        """Whether the secret of that name is good."""
        return self._valid == name


class Secret:
    """What the service gives."""

    def __init__(self, secrets: GenerationSecrets, name: str) -> None:
        self.name = name
        """Of its generation; stands in what was written with it."""
        self._secrets = secrets

    def use(self) -> None:
        """Work with it."""
        if not self._secrets.is_valid(self.name):
            self._secrets.old_uses += 1
            log("old_secret_used", level="error", generation=self.name)
