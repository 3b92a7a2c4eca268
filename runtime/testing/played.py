"""What a sweep over a handler has found: one play for each place, and the faults of all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lanes import Outcome

from ..inbox.rows import MessageState
from .handlers import Handler


@dataclass(frozen=True, slots=True)
class Played:
    """One play: a handler that was cancelled, or whose process was killed, at one of its suspensions."""

    at: int
    """Which suspension, from 1. Of kills, which place: 0 is before the first step, the last one is when the handler has
    returned, and that is not kept."""
    where: str
    """The line of the handler that was suspended: `handle (bot.py:12)`."""
    records: list[dict[str, Any]] = field(default_factory=list)
    """The records of the session: after the cancellation; after the next process has put things right."""
    outcome: Outcome | None = None
    """How the run of a cancelled handler has ended."""
    state: MessageState | None = None
    """What became of the message in the next process."""
    events: list[Any] = field(default_factory=list)
    """What was emitted: until the end; in the next process."""


Check = Callable[[Played], Any]
"""A check of the test's own: raises, best by `assert`, where something is wrong."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is wrong after one play."""

    played: Played
    what: str

    def __str__(self) -> str:
        return f"at {self.played.at}, {self.played.where}: {self.what}"


class HandlerFault(AssertionError):
    """A handler does not do well when it is cancelled, or its process is killed, at some of its suspensions."""

    def __init__(self, what: str, faults: Sequence[Fault]) -> None:
        super().__init__(what, faults)
        self.faults = list(faults)

    def __str__(self) -> str:
        return "\n  ".join([self.args[0], *map(str, self.faults)])


def judged(check: Check | None, played: Played) -> list[str]:
    """What a test's own check says of a play."""
    if check is None:
        return []
    try:
        check(played)
    except Exception as error:
        return [f"check: {type(error).__name__}: {error}" if str(error) else f"check: {type(error).__name__}"]
    return []


def name_of(handler: Handler) -> str:
    """What a handler is called."""
    return str(getattr(handler, "__qualname__", type(handler).__qualname__))


def counted(number: int, what: str) -> str:
    """A number of things, in words."""
    return f"{number} {what}{'' if number == 1 else 's'}"
