"""What happens in a story, in seconds of production. Both sides are sent the same work at the same times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

MB = 1_000_000

Behaviour = Literal["answers", "deaf", "stalls", "fails"]
"""What a model call does after its time: answer; answer although it was told to stop; wait for ever, until it is told
to stop; raise."""


@dataclass(frozen=True, slots=True)
class Work:
    """A message for the session, or a note, such as a tool's result, which is only to be written."""

    name: str
    at_s: float
    lane: Literal["session", "main"] = "session"
    asks: bool = True
    """Whether it wants an answer, and so a model call."""
    call: Behaviour = "answers"
    call_s: float = 20.0


@dataclass(frozen=True, slots=True)
class Story:
    """A report, its work, and the limits that its gateway had. The times of the legacy lock are `legacy.Times`."""

    name: str
    title: str
    report: str
    text: str
    work: tuple[Work, ...]
    ends_at_s: float
    restart_at_s: float | None = None
    """When the operator asks for a soft restart, if messages wait then and no run is under way in its time."""
    timeout_s: float = 300.0
    grace_s: float = 2.0
    context_bytes: int = 2 * MB
    """What a run loads before its first line is written: the session, its attachments, its tools."""
    scale: float = 200.0
    """How many seconds of the story pass in a second."""

    def real_s(self, seconds: float) -> float:
        """Seconds of the story, as they pass."""
        return seconds / self.scale


def _every(step_s: float, first_s: float, last_s: float) -> list[float]:
    return [first_s + step_s * turn for turn in range(int((last_s - first_s) / step_s) + 1)]


_TWO_LANES = Story(
    name="story-86004",
    title="Two lanes, one session: a call that does not listen",
    report="https://github.com/openclaw/openclaw/issues/86004",
    text=(
        "A model call is told to stop at 300 s, does not listen, and comes back after 1,110 s. Meanwhile users write "
        "to the session once a minute, and lane main adds a tool's result once a minute."
    ),
    work=(
        Work("first", 0.0, call="deaf", call_s=1110.0),
        *(Work(f"message {at:.0f}", at) for at in _every(60.0, 20.0, 1220.0)),
        *(Work(f"note {at:.0f}", at, lane="main", asks=False) for at in _every(60.0, 50.0, 1190.0)),
    ),
    restart_at_s=700.0,
    ends_at_s=1320.0,
)

_LEAK = Story(
    name="story-86014",
    title="A lock that nobody gives back: runs that time out or fail",
    report="https://github.com/openclaw/openclaw/issues/86014",
    text=(
        "A scheduled run stalls until its timeout of 300 s, and another one, 24 minutes later, fails when its tool "
        "does. Users write to the same session once a minute."
    ),
    work=(
        Work("stalls", 0.0, lane="main", call="stalls"),
        Work("fails", 1450.0, lane="main", call="fails", call_s=30.0),
        *(Work(f"message {at:.0f}", at) for at in _every(60.0, 20.0, 2560.0)),
    ),
    ends_at_s=2700.0,
    scale=300.0,
)

STORIES: Mapping[str, Story] = {story.name: story for story in (_TWO_LANES, _LEAK)}
