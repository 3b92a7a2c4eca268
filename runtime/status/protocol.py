"""The messages of a status socket: one JSON object a line, a question, and one a line back, its answer.

A question names itself in `ask`; an answer has exactly one key, which says what kind it is. Both may gain fields: a
client skips those that it does not know; a server refuses them, so that no client believes that they had an effect.

Strings are UTF-8 in any case; what is not finite is null. Seconds everywhere, and never an instant: there is no clock
that both ends share.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import msgspec

from ..mismatch import taken_apart
from .questions import AnswerAsk as AnswerAsk
from .questions import Asks as Asks
from .questions import Discard as Discard
from .questions import Drain as Drain
from .questions import Drop as Drop
from .questions import End as End
from .questions import Ended as Ended
from .questions import Life as Life
from .questions import Messages as Messages
from .questions import Note as Note
from .questions import Parked as Parked
from .questions import Ping as Ping
from .questions import Post as Post
from .questions import Question as Question
from .questions import Reason as Reason
from .questions import Record as Record
from .questions import Recorded as Recorded
from .questions import Requeue as Requeue
from .questions import Reset as Reset
from .questions import Restart as Restart
from .questions import Resubmit as Resubmit
from .questions import RunId as RunId
from .questions import Session as Session
from .questions import Slow as Slow
from .questions import Stack as Stack
from .questions import Status as Status
from .questions import Stop as Stop
from .questions import Supersede as Supersede
from .questions import Timeline as Timeline
from .questions import Trends as Trends
from .rows import AskRow as AskRow
from .rows import LifePart as LifePart
from .rows import MessageRow as MessageRow
from .rows import ParkedRow as ParkedRow
from .rows import SessionPart as SessionPart
from .rows import TimelinePart as TimelinePart
from .rows import TrendsPart as TrendsPart

LONGEST_LINE = 64 * 1024
"""Bytes of a question."""
MOST_LANES, MOST_RUNS, MOST_ABANDONED, MOST_LEASES, MOST_ORDERS, MOST_CHANGES = 200, 500, 50, 200, 10, 50
LONGEST_KEY = 1100
"""Characters of a session's key in a row: any key, and what stands for a lone surrogate in it."""
_LONGEST_TEXT = 500
_LONGEST_STACK = 16_000

ASKS = tuple(kind.__struct_config__.tag for kind in get_args(Question))


class Pong(msgspec.Struct, frozen=True, kw_only=True):
    """The process that answers."""

    pid: int
    sessions: str
    """The directory."""


class Lag(msgspec.Struct, frozen=True, kw_only=True):
    """How late the event loop was in the last minute, in seconds."""

    p50: float
    p99: float
    max: float


class GroupRow(msgspec.Struct, frozen=True, kw_only=True):
    """One group."""

    name: str
    running: int
    slots: int
    queued: int
    oldest_wait_s: float


class PoolRow(msgspec.Struct, frozen=True, kw_only=True):
    """One pool."""

    name: str
    held: int
    slots: int | None
    """Null for any number."""
    waiting: int
    oldest_wait_s: float
    share: float
    """The part of its limits that is in force; below 1 when the provider has refused calls."""
    paused_for_s: float
    """For how long nothing is granted, as the provider has asked."""
    granted: int
    tokens: int
    throttled: int


class LaneRow(msgspec.Struct, frozen=True, kw_only=True):
    """One live lane."""

    name: str
    running: int
    capacity: int
    queued: int
    oldest_wait_s: float


class RunRow(msgspec.Struct, frozen=True, kw_only=True):
    """One run that waits or runs."""

    id: int
    lane: str
    session: str | None
    state: str
    waited_s: float
    """From being submitted to its start, or until now."""
    ran_s: float | None
    """Since its start; null while it waits."""
    deadline_in_s: float | None
    """Until it is cancelled, or gives up waiting; below 0 when that is past, null when it may take for ever."""
    ending: bool
    """Whether it was asked to end, and has not yet."""
    waits_for: str
    """What, in words; empty when it waits for nothing that is known here."""
    holder: str
    """The holder of that, in words."""
    holder_run: int | None
    """That one's id, if it is a run of this process."""
    parent: int | None
    reason: str
    extended_s: float = 0.0
    """By how much it has moved its deadline."""
    extended_for: str = ""
    """Why, in its own words."""
    at: str
    """Where its body stands: file, line, function and the line itself; only of the bodies that have run longest."""


class AbandonedRow(msgspec.Struct, frozen=True, kw_only=True):
    """A body that ignored its cancellation and still runs."""

    id: int
    lane: str
    session: str | None
    reason: str
    abandoned_for_s: float
    at: str
    stack: str


class LeaseRow(msgspec.Struct, frozen=True, kw_only=True):
    """A right that is held in this process."""

    path: str
    right: str
    holder: str
    epoch: int
    held_s: float
    remaining_s: float | None
    waiting: int


class InboxPart(msgspec.Struct, frozen=True, kw_only=True):
    """The inbox, counted `counted_s_ago`."""

    messages: dict[str, int]
    """By state, of the states that still ask for something."""
    questions: int
    """Those that wait for a person."""
    oldest_wait_s: float
    """Of the accepted messages."""
    counted_s_ago: float
    in_memory: int
    on_disk_only: int
    replayed: int
    commits: int
    changes: int
    uncommitted: int
    error: str
    """Why nothing is accepted any more; empty while it works."""


class NodePart(msgspec.Struct, frozen=True, kw_only=True):
    """The process among others on a store."""

    id: int
    """0 while it is lost."""
    name: str
    lease_left_s: float
    """For how long it may be silent."""
    sessions: int
    claimed: int
    given_back: int
    beats: int
    reconnects: int


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a drain or a restart that was asked for here."""

    id: int
    what: Literal["drain", "restart"]
    over: bool
    finished: int = 0
    cancelled: int = 0
    abandoned: int = 0
    unstarted: int = 0
    error: str = ""


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """A process at an instant. Of lanes, runs, abandoned bodies and leases there are at most as many as fit a page."""

    pid: int
    sessions: str
    state: str
    generation: int
    uptime_s: float
    healthy: bool
    problems: list[str]
    admission_slowed: str
    loop_lag: Lag
    counts: dict[str, int]
    """Runs by state: `queued` and `running` now, the others since the start."""
    parked: int
    groups: list[GroupRow]
    lanes: list[LaneRow]
    """Those with the oldest wait first."""
    lanes_left_out: int
    runs: list[RunRow]
    """Running ones, then those that wait; of each the oldest first."""
    runs_left_out: int
    abandoned: list[AbandonedRow]
    """Those that were abandoned first come first."""
    abandoned_left_out: int
    leases: list[LeaseRow]
    """Those that are held longest come first."""
    leases_left_out: int
    orders: list[Order]
    """The last ones, the latest last."""
    inbox: InboxPart | None = None
    """Null for a supervisor without one."""
    node: NodePart | None = None
    """Null for a supervisor that keeps its sessions in files."""
    pools: list[PoolRow] = []
    configured: list[str] = []
    """What was changed last while it runs, a line each."""
    configured_s_ago: float | None = None
    """When; null when nothing was."""


class Stopped(msgspec.Struct, frozen=True, kw_only=True):
    """A run was asked to end."""

    run: int
    lane: str
    state: str
    """In which it was found."""
    asked: bool
    """Whether this is what ends it; else something else has asked it before."""
    reason: str
    """Why it ends."""


class Started(msgspec.Struct, frozen=True, kw_only=True):
    """What takes time has begun."""

    order: int
    """Its id: what came of it stands in each later status."""
    within_s: float
    """How long it takes at most, by the limits that are configured."""


class Stood(msgspec.Struct, frozen=True, kw_only=True):
    """Where a run stands."""

    run: int
    text: str


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """A run, and how it has ended."""

    run: int
    state: str
    """`queued` or `running` while it has not."""
    value: msgspec.Raw = msgspec.Raw(b"null")
    """What its body returned, as JSON; null where it has none."""
    error: str = ""
    """What its body raised, in words."""
    reason: str = ""
    waited_s: float = 0.0
    ran_s: float = 0.0
    attempts: int = 1


class Recording(msgspec.Struct, frozen=True, kw_only=True):
    """What is recorded, and the next part of it."""

    id: int
    left_s: float
    """For how long it goes on."""
    events: msgspec.Raw = msgspec.Raw(b"[]")
    """An array of events in the Chrome Trace Event format."""
    over: bool = False
    """Whether this was the last part."""
    error: str = ""
    """Why it has ended before its time, if it has."""


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for is done."""

    text: str
    """What was done, in words."""


class Frozen(msgspec.Struct, frozen=True, kw_only=True):
    """The event loop does not answer; nothing was done."""

    pid: int
    sessions: str
    for_s: float
    """Since when it is blocked, as far as that is known."""
    place: str
    """File, line and function that do not let go of it."""
    stack: str
    """Outermost call first."""
    run: str
    """The run whose code that is; empty when it is no run's."""


Kind = Literal["bad_question", "unknown_run", "refused", "run_ended", "not_now", "not_allowed", "too_many", "failed"]


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing was done."""

    kind: Kind
    message: str
    field: str = ""
    """Of the question, what was wrong."""


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Exactly one of these."""

    pong: Pong | None = None
    status: Picture | None = None
    stopped: Stopped | None = None
    started: Started | None = None
    stack: Stood | None = None
    done: Done | None = None
    outcome: Outcome | None = None
    recording: Recording | None = None
    trends: TrendsPart | None = None
    timeline: TimelinePart | None = None
    session: SessionPart | None = None
    life: LifePart | None = None
    parked: list[ParkedRow] | None = None
    asks: list[AskRow] | None = None
    messages: list[MessageRow] | None = None
    frozen: Frozen | None = None
    error: Refused | None = None


class BadQuestion(ValueError):
    """A line is no question."""

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (*self.args, self.field)


_questions: msgspec.json.Decoder[Question] = msgspec.json.Decoder(Question)
_answers = msgspec.json.Decoder(Answer)


def question_of(line: bytes) -> Question:
    """What a line asks.

    Raises:
        BadQuestion: nothing that is known; the message names the field and what is allowed.
    """
    try:
        return _questions.decode(line)
    except msgspec.ValidationError as error:
        raise _explained(error) from None
    except (ValueError, RecursionError) as error:
        raise BadQuestion(f"no JSON: {text(str(error))}; allowed: an object on one line") from None


def _explained(error: msgspec.ValidationError) -> BadQuestion:
    found = taken_apart(error)
    if found.field:
        what = "is missing" if found.missing else "is not known; allowed: less"
        return BadQuestion(f"{text(found.field)}: {what}", text(found.field))
    what = found.what.replace("`", "")
    if found.path == "ask":
        what = f"{what}; allowed: {', '.join(ASKS)}"
    return BadQuestion(text(f"{found.path}: {what}" if found.path else what), found.path)


def answer_of(line: bytes) -> Answer:
    """The answer on a line.

    Raises:
        ValueError: no answer.
    """
    return _answers.decode(line)


def encoded(message: Answer | Question) -> bytes:
    """A line."""
    return msgspec.json.encode(message) + b"\n"


def text(given: object, longest: int = _LONGEST_TEXT) -> str:
    """Text that can be sent: bounded, and without lone surrogates."""
    clean = str(given).encode(errors="backslashreplace").decode()
    return clean if len(clean) <= longest else clean[: longest - 1] + "…"


def stack_text(given: str) -> str:
    """A stack that can be sent; of a long one its inner end."""
    clean = given.encode(errors="backslashreplace").decode()
    return clean if len(clean) <= _LONGEST_STACK else "…" + clean[1 - _LONGEST_STACK :]
