"""What a side did with its work, and when, in seconds of the story."""

from __future__ import annotations

import anyio
import msgspec

from locks import _clock

from .story import Work


class Lifeline(msgspec.Struct, array_like=True):
    """A piece of work, from its sender's point of view."""

    name: str
    lane: str
    asks: bool
    sent_s: float
    begun_s: float | None = None
    """When its run had the session."""
    over_s: float | None = None
    """When its lane had done with it. Only the first end counts."""
    how: str = ""
    """How it ended: `done`, or what its sender was told."""
    late_s: float | None = None
    """When a record was written for it although it was over."""
    refused_s: float | None = None
    """When such a record was refused."""


class Played(msgspec.Struct):
    """One side of a story that was played."""

    story: str
    scale: float
    figures: dict[str, float]
    lifelines: list[Lifeline]
    memory: list[tuple[float, float]]
    """Seconds of the story, and by how many MB the process had grown then."""
    restarted_s: float | None = None


class Journal:
    """The lifelines of one side, in the order of their work. To be used on one thread."""

    def __init__(self, scale: float) -> None:
        self._scale = scale
        self._began = _clock.clock.now()
        self.lifelines: dict[str, Lifeline] = {}

    def now_s(self) -> float:
        """How far the story has come."""
        return round((_clock.clock.now() - self._began) * self._scale, 2)

    async def until(self, at_s: float) -> None:
        """Wait until the story has come so far. A checkpoint."""
        await anyio.sleep(max(0.0, at_s - self.now_s()) / self._scale)

    def sent(self, work: Work) -> None:
        """It is about to be sent."""
        self.lifelines[work.name] = Lifeline(work.name, work.lane, work.asks, self.now_s())

    def begun(self, work: Work) -> None:
        """Its run has the session."""
        self.lifelines[work.name].begun_s = self.now_s()

    def written(self, work: Work) -> None:
        """A record of it is in the file."""
        if self.lifelines[work.name].over_s is not None:
            self.lifelines[work.name].late_s = self.now_s()

    def refused(self, work: Work) -> None:
        """A record of it was refused."""
        self.lifelines[work.name].refused_s = self.now_s()

    def over(self, work: Work, how: str) -> None:
        """Its lane has done with it."""
        line = self.lifelines[work.name]
        if line.over_s is None:
            line.over_s, line.how = self.now_s(), how

    def stuck(self) -> bool:
        """Whether work waits, and no run that wants an answer is under way."""
        left = [line for line in self.lifelines.values() if line.over_s is None]
        return any(line.begun_s is None for line in left) and not any(line.asks and line.begun_s for line in left)
