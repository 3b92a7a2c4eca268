"""What a lane and a group are: one checker per field, contradictions refused with both names."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal, TypeVar

from .errors import InvalidLane

T = TypeVar("T")
PriorityName = Literal["foreground", "normal", "background"]


class Priority(IntEnum):
    """The three classes of admission, most urgent first."""

    FOREGROUND = 0
    NORMAL = 1
    BACKGROUND = 2


def priority(name: str) -> Priority:
    """The class of that name.

    Raises:
        InvalidLane: there is none.
    """
    try:
        return Priority[name.upper()]
    except (KeyError, AttributeError):
        allowed = ", ".join(repr(p.name.lower()) for p in Priority)
        raise InvalidLane(f"priority: {name!r} is unknown; allowed: {allowed}") from None


def seconds(field: str, value: Any, *, zero: bool = False) -> float:
    """A finite duration.

    Raises:
        InvalidLane: it is no number, negative, NaN or infinite.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise InvalidLane(f"{field}: {value!r} is no duration; allowed: seconds {'from 0' if zero else 'above 0'}")
    return float(value)


def whole(field: str, value: Any, least: int) -> int:
    """A whole number of at least `least`.

    Raises:
        InvalidLane: it is none.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InvalidLane(f"{field}: {value!r} is not allowed; allowed: a whole number from {least}")
    return value


@dataclass(frozen=True, slots=True)
class LaneSpec:
    """How runs on the lanes of a pattern are queued, limited and ended.

    Args:
        pattern: a lane's name, or a prefix followed by `*`; the most specific pattern wins.
        handler: `async def handler(ctx, messages)`, called for each message that is posted.
        capacity: runs of one lane at a time.
        group: the group whose slots its runs take.
        priority: the class of its runs when slots are scarce: `foreground`, `normal` or `background`.
        timeout: seconds a run may take, from its start. Hard: nothing extends it.
        idle_timeout: seconds a run may take between calls of `progress()`; at most `timeout`.
        queue_timeout: seconds a run may wait, from being submitted to its start.
        queue_limit: runs that may wait on one lane; `None` for any number.
        grace: seconds a cancelled run may take to clean up before it is abandoned.

    Raises:
        InvalidLane: naming the field, its value and what is allowed.
    """

    pattern: str
    handler: Callable[..., Awaitable[Any]] | None = None
    capacity: int = 1
    group: str = "main"
    priority: PriorityName = "normal"
    timeout: float = 300.0
    idle_timeout: float | None = None
    queue_timeout: float | None = None
    queue_limit: int | None = 20
    grace: float = 2.0

    def __post_init__(self) -> None:
        where = f"lane {self.pattern!r}, "
        pattern: object = self.pattern
        if not isinstance(pattern, str) or not pattern or "*" in pattern[:-1] or not pattern.isprintable():
            raise InvalidLane(
                f"pattern: {self.pattern!r:.80} is not allowed; allowed: a printable name, or a prefix and `*`"
            )
        if self.handler is not None:
            _check_handler(where, self.handler)
        whole(where + "capacity", self.capacity, 1)
        priority(self.priority)
        seconds(where + "timeout", self.timeout)
        seconds(where + "grace", self.grace, zero=True)
        if self.queue_timeout is not None:
            seconds(where + "queue_timeout", self.queue_timeout)
        if self.queue_limit is not None:
            whole(where + "queue_limit", self.queue_limit, 0)
        if self.idle_timeout is not None and seconds(where + "idle_timeout", self.idle_timeout) > self.timeout:
            raise InvalidLane(
                f"{where}idle_timeout: {self.idle_timeout} s is longer than timeout ({self.timeout} s), "
                "which ends it first"
            )

    @property
    def wild(self) -> bool:
        """Whether it describes many lanes, each retired when idle."""
        return self.pattern.endswith("*")

    def matches(self, name: str) -> bool:
        """Whether a lane of that name is of this kind."""
        return name.startswith(self.pattern[:-1]) if self.wild else name == self.pattern


def _check_handler(where: str, handler: Any) -> None:
    target: Any = handler
    while isinstance(target, functools.partial):
        target = target.func
    if not inspect.isroutine(target) and callable(target):
        target = type(target).__call__
    if not callable(handler) or not inspect.iscoroutinefunction(target):
        raise InvalidLane(f"{where}handler: {handler!r:.80} is not async; allowed: `async def handler(ctx, messages)`")
    try:
        inspect.signature(handler).bind(None, ())
    except TypeError as error:
        raise InvalidLane(f"{where}handler: {handler!r:.80} {error}; allowed: `handler(ctx, messages)`") from None


@dataclass(frozen=True, slots=True)
class GroupSpec:
    """Lanes that share a number of slots.

    Args:
        name: what lanes call it.
        slots: runs of the group at a time.
        reserve: of those, the slots that only foreground runs may take.

    Raises:
        InvalidLane: naming the field, its value and what is allowed.
    """

    name: str
    slots: int
    reserve: int = 0

    def __post_init__(self) -> None:
        whole(f"group {self.name!r}, slots", self.slots, 1)
        whole(f"group {self.name!r}, reserve", self.reserve, 0)
        if self.reserve >= self.slots:
            raise InvalidLane(
                f"group {self.name!r}, reserve: {self.reserve} leaves no slot of {self.slots} (slots) to other classes"
            )


DEFAULT_GROUPS = (GroupSpec("main", slots=32, reserve=4), GroupSpec("background", slots=8))
DEFAULT_LANES = (
    LaneSpec("session:*", priority="foreground"),
    LaneSpec("main", capacity=32, priority="foreground", queue_limit=1000),
    *(
        LaneSpec(name, capacity=8, group="background", priority="background", queue_limit=1000)
        for name in ("cron", "heartbeat", "subagent")
    ),
)


class SpecTable:
    """The lanes and groups of a supervisor, by name; those given override the defaults.

    Raises:
        InvalidLane: two specifications of one name, or a lane whose group does not exist.
    """

    def __init__(self, lanes: Iterable[LaneSpec], groups: Iterable[GroupSpec]) -> None:
        self.lanes = _merged(DEFAULT_LANES, lanes, lambda spec: spec.pattern, "pattern", LaneSpec)
        self.groups = _merged(DEFAULT_GROUPS, groups, lambda spec: spec.name, "group", GroupSpec)
        self._by_specificity = sorted(self.lanes.values(), key=lambda s: (s.wild, -len(s.pattern)))
        for spec in self.lanes.values():
            if spec.group not in self.groups:
                known = ", ".join(sorted(self.groups))
                raise InvalidLane(f"lane {spec.pattern!r}, group: {spec.group!r} is unknown; allowed: {known}")

    def find(self, name: Any) -> LaneSpec:
        """The specification of a lane.

        Raises:
            InvalidLane: no pattern matches.
        """
        if isinstance(name, str):
            for spec in self._by_specificity:
                if spec.matches(name):
                    return spec
        known = ", ".join(sorted(self.lanes))
        raise InvalidLane(f"lane: {name!r:.80} is unknown; allowed: {known}")


def _merged(
    defaults: Iterable[T], given: Iterable[T], name: Callable[[T], str], field: str, kind: type[T]
) -> dict[str, T]:
    merged = {name(spec): spec for spec in defaults}
    seen: set[str] = set()
    for spec in given:
        if not isinstance(spec, kind):
            raise InvalidLane(f"{field}: {spec!r:.80} is no {kind.__name__}")
        if name(spec) in seen:
            raise InvalidLane(f"{field}: {name(spec)!r} is specified twice")
        seen.add(name(spec))
        merged[name(spec)] = spec
    return merged
