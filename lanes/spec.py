"""The specification of a lane and of a group: a checker per field; contradictions are refused with both names."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, get_args

from . import checks
from .checks import Priority
from .errors import InvalidLane
from .message import Message
from .retry import RetrySpec
from .run import Run

PriorityName = Literal["foreground", "normal", "background"]
WhenBusy = Literal["queue", "reject", "interrupt", "replace", "collect", "steer"]
ONLY_NEWEST = ("interrupt", "replace")
"""Policies under which at most one run waits in a session: a newer run of the same policy supersedes it."""
DedupeKeeps = Literal["done", "ended"]
WhenFull = Literal["reject", "drop_oldest", "summarize"]
DropHandler = Callable[[Run, Sequence[Message]], Any]


class _ByPattern:
    """Not given: decided by the pattern. `help(LaneSpec)` shows it by these words."""

    def __repr__(self) -> str:
        return "by the pattern"


_BY_PATTERN: Any = _ByPattern()


@dataclass(frozen=True, slots=True)
class LaneSpec:
    """How runs on the lanes of a pattern are queued, limited and ended.

    Args:
        pattern: a lane's name, or a prefix followed by `*`; the most specific pattern wins.
        handler: `async def handler(ctx, messages)`, called for each message that is posted.
        capacity: runs of one lane at a time.
        group: the group whose slots its runs take.
        priority: the class of its runs when slots are scarce: `foreground`, `normal` or `background`. By default people
            go first: `foreground` for `main` and all `session:` lanes, `normal` for others.
        timeout: seconds a run may take, from its start. Hard: nothing but `RunContext.extend` moves its end.
        extend_at_most: seconds that each attempt at a run may add to that by `RunContext.extend`, in all; none by
            default.
        idle_timeout: seconds a run may take between calls of `progress()`; at most `timeout`. Waiting for another run
            does not count.
        queue_timeout: seconds a run may wait, from being submitted to its (first) start.
        queue_limit: messages and runs that may wait on one lane; `None` for any number. What can start at once need
            not wait, so 0 is allowed.
        when_full: what becomes of work beyond that: `reject` raises `LaneFull`; `drop_oldest` ends the run that has
            waited longest, and its outcome says so; `summarize` does so too, and what `on_drop` returns (a `Message` or
            a body; `None` for nothing) is put in front of the messages that wait next in that session and have the same
            route, the new message included. Where there are none, a log line says so.
        when_busy: what becomes of work for a session whose turn a run has or waits for (for a run without a
            session: for a lane at its capacity): `queue` behind; `reject` raises `LaneBusy`; `interrupt` ends the run
            that is under way and goes next; `replace` queues behind, but of several only the newest waits; `collect`
            joins the message that is queued last, if that has the same route; `steer` hands it to the run that is
            under way (`ctx.inbox`), if that has the same route. Where that is not possible, and for work that is no
            message, the work is queued. A run of the session that was asked to end is under way no more. A run that
            interrupts goes before all waiting runs. A run that waits under `interrupt` or `replace` is superseded by a
            newer run of the same policy for the same session (without a session: on the same lane), and leaves the
            queue before `queue_limit` is looked at.
        debounce: seconds of quiet that a message waits for before its run may start; messages of one route that come
            meanwhile join it. At most ten times as long in all, and no longer than half the `queue_timeout`.
        dedupe_keeps: for which runs a `dedupe` key gives the same run again: `done`, for those that wait, run or are
            done, so that what was cancelled, failed or came to another such end can be sent again under its name;
            `ended`, for those too that have ended in any other way.
        grace: seconds a cancelled run may take to clean up before it is abandoned.
        retry: when a body that failed is called again; never by default.
        repeat: whether a message of the durable inbox may be answered again when the process ended while it was being
            answered: everything that its handler does can be done twice. At most as often as `retry` allows, or three
            times. By default, and after that, it ends as `unknown`.
        on_unknown: `async def on_unknown(ctx, messages)`, called in the next process for such messages, in the order of
            their session, before what came later; it may write to the session. Called again if it did not end well.
        on_drop: called with the run that was dropped and its messages, on the event loop; an exception in it is logged.
            What it submits to the same lane, which is full, is refused.

    Raises:
        InvalidLane: naming the field, its value and what is allowed.
    """

    pattern: str
    _: KW_ONLY
    handler: Callable[..., Awaitable[Any]] | None = None
    capacity: int = 1
    group: str = "main"
    priority: PriorityName = _BY_PATTERN
    timeout: float = 300.0
    extend_at_most: float = 0.0
    idle_timeout: float | None = None
    queue_timeout: float | None = None
    queue_limit: int | None = 20
    when_full: WhenFull = "reject"
    when_busy: WhenBusy = "queue"
    debounce: float = 0.0
    dedupe_keeps: DedupeKeeps = "done"
    grace: float = 2.0
    retry: RetrySpec | None = None
    on_drop: DropHandler | None = None
    repeat: bool = False
    on_unknown: Callable[..., Awaitable[Any]] | None = None

    def __post_init__(self) -> None:
        where = f"lane {checks.shown(self.pattern)}, "
        pattern: object = self.pattern
        if not isinstance(pattern, str) or not pattern or "*" in pattern[:-1] or not pattern.isprintable():
            raise InvalidLane(
                f"pattern: {checks.shown(self.pattern)} is not allowed; allowed: a printable name, or a prefix and `*`"
            )
        for name, function in (("handler", self.handler), ("on_unknown", self.on_unknown)):
            if function is not None:
                checks.handler(where + name, function)
        repeat: object = self.repeat
        if not isinstance(repeat, bool):
            raise InvalidLane(f"{where}repeat: {checks.shown(repeat)} is not allowed; allowed: True or False")
        checks.whole(where + "capacity", self.capacity, 1)
        group: object = self.group
        if not isinstance(group, str):
            raise InvalidLane(f"{where}group: {checks.shown(group)} is not allowed; allowed: the name of a group")
        if self.priority is _BY_PATTERN:
            people = self.pattern == "main" or self.pattern.startswith("session:")
            object.__setattr__(self, "priority", "foreground" if people else "normal")
        checks.priority(self.priority, where + "priority")
        checks.choice(where + "when_full", self.when_full, get_args(WhenFull))
        checks.choice(where + "when_busy", self.when_busy, get_args(WhenBusy))
        checks.choice(where + "dedupe_keeps", self.dedupe_keeps, get_args(DedupeKeeps))
        if self.queue_limit is not None:
            checks.whole(where + "queue_limit", self.queue_limit, 0)
        self._check_times(where)
        self._check_room(where)
        if self.retry is not None and not isinstance(self.retry, RetrySpec):
            raise InvalidLane(f"{where}retry: {checks.shown(self.retry)} is not allowed; allowed: a RetrySpec, or None")
        self._check_drops(where)

    def _check_times(self, where: str) -> None:
        checks.seconds(where + "timeout", self.timeout)
        checks.seconds(where + "extend_at_most", self.extend_at_most, zero=True)
        checks.seconds(where + "grace", self.grace, zero=True)
        checks.seconds(where + "debounce", self.debounce, zero=True)
        if (
            self.queue_timeout is not None
            and checks.seconds(where + "queue_timeout", self.queue_timeout) <= self.debounce
        ):
            raise InvalidLane(
                f"{where}debounce: {self.debounce} s is not shorter than queue_timeout ({self.queue_timeout} s), "
                "which ends every run before it may start"
            )
        idle = self.idle_timeout
        if idle is not None and checks.seconds(where + "idle_timeout", idle) > self.timeout:
            raise InvalidLane(
                f"{where}idle_timeout: {idle} s is longer than timeout ({self.timeout} s), which ends it first"
            )

    def _check_room(self, where: str) -> None:
        if self.queue_limit != 0:
            return
        if self.when_busy not in ("queue", "reject"):
            raise InvalidLane(
                f"{where}when_busy: {self.when_busy!r} lets work wait, if only for a moment, and queue_limit is 0; "
                "allowed: 'queue', 'reject', or a queue_limit from 1"
            )
        if self.debounce:
            raise InvalidLane(
                f"{where}debounce: {self.debounce} s lets every message wait, and queue_limit is 0; "
                "allowed: 0, or a queue_limit from 1"
            )

    def _check_drops(self, where: str) -> None:
        if self.on_drop is not None:
            checks.callback(where + "on_drop", self.on_drop, "on_drop(run, messages)", 2)
        if self.when_full == "reject":
            if self.on_drop is not None:
                raise InvalidLane(f"{where}on_drop: is never called, since when_full is 'reject'")
            return
        if not self.queue_limit:
            raise InvalidLane(
                f"{where}when_full: {self.when_full!r} drops nothing, since queue_limit is {self.queue_limit}"
            )
        if self.when_full == "summarize" and self.on_drop is None:
            raise InvalidLane(f"{where}on_drop: is missing; when_full 'summarize' needs what it returns")

    @property
    def wild(self) -> bool:
        """Whether it describes many lanes, each retired when idle."""
        return self.pattern.endswith("*")

    def matches(self, name: str) -> bool:
        """Whether a lane of that name is of this kind."""
        return name.startswith(self.pattern[:-1]) if self.wild else name == self.pattern

    @property
    def urgency(self) -> Priority:
        """Its class."""
        return checks.priority(self.priority)


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
        name: object = self.name
        if not isinstance(name, str) or not name or not name.isprintable():
            raise InvalidLane(f"name: {checks.shown(self.name)} is not allowed; allowed: a printable name")
        checks.whole(f"group {self.name!r}, slots", self.slots, 1)
        checks.whole(f"group {self.name!r}, reserve", self.reserve, 0)
        if self.reserve >= self.slots:
            raise InvalidLane(
                f"group {self.name!r}, reserve: {self.reserve} leaves no slot of {self.slots} (slots) to other classes"
            )


CONTROL = "control"
"""The lane, and its group, of short work that never waits behind the work that it is about: status, stop, reset."""
DEFAULT_GROUPS = (
    GroupSpec("main", slots=32, reserve=4),
    GroupSpec("background", slots=8),
    GroupSpec(CONTROL, slots=64),
)
DEFAULT_LANES = (
    LaneSpec("session:*"),
    LaneSpec("main", capacity=32, queue_limit=1000),
    *(
        LaneSpec(name, capacity=8, group="background", priority="background", queue_limit=1000)
        for name in ("cron", "heartbeat", "subagent")
    ),
    LaneSpec(CONTROL, capacity=64, group=CONTROL, priority="foreground", timeout=60.0, queue_limit=1000),
)
