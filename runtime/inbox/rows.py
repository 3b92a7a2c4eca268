"""What the inbox keeps: a row for each accepted message, its state, and the moves between states."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

import msgspec

from lanes.asking import AskState, Question


class MessageState(StrEnum):
    """Where an accepted message stands."""

    ACCEPTED = "accepted"
    """It waits, in memory or on disk only."""
    STARTED = "started"
    """A body has been given it, or is about to be."""
    WAITING = "waiting"
    """Its handler has asked a person."""
    DONE = "done"
    FAILED = "failed"
    """Its run failed or timed out."""
    PARKED = "parked"
    """As failed; it is kept until it is submitted again or discarded."""
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"
    DROPPED = "dropped"
    """Its lane was full."""
    UNKNOWN = "unknown"
    """The process ended while it was started, and it may not be repeated."""

    @property
    def open(self) -> bool:
        """Whether something will still become of it by itself."""
        return self in (MessageState.ACCEPTED, MessageState.STARTED)


_S = MessageState
MOVES: dict[MessageState, frozenset[MessageState]] = {
    _S.ACCEPTED: frozenset({_S.STARTED, _S.CANCELLED, _S.SUPERSEDED, _S.DROPPED, _S.FAILED, _S.PARKED}),
    _S.STARTED: frozenset(
        set(_S) - {_S.STARTED, _S.DROPPED}
    ),  # accepted again: its lane says `repeat`, or it never began
    _S.WAITING: frozenset({_S.DONE, _S.CANCELLED}),
    _S.DONE: frozenset(),
    _S.FAILED: frozenset(),
    _S.PARKED: frozenset({_S.ACCEPTED, _S.STARTED, _S.CANCELLED}),
    _S.CANCELLED: frozenset(),
    _S.SUPERSEDED: frozenset(),
    _S.DROPPED: frozenset({_S.ACCEPTED}),
    _S.UNKNOWN: frozenset({_S.ACCEPTED, _S.CANCELLED}),
}
"""From each state, those that may follow. An operator may requeue what is parked, dropped or unknown."""
MAY_BECOME: dict[MessageState, tuple[MessageState, ...]] = {
    to: tuple(state for state, follows in MOVES.items() if to in follows) for to in MessageState
}
"""For each state, those that it may follow."""


class NewRow(msgspec.Struct, frozen=True, kw_only=True):
    """A message to be accepted."""

    lane: str
    session: str | None
    priority: str | None = None
    timeout: float | None = None
    when_busy: str | None = None
    body: bytes
    """As JSON, like the route."""
    route: bytes
    dedupe: str | None = None
    digest: bytes = b""
    """Of the body, where there is a key."""
    repeat: int = 0
    """How often a body may be given it, over the ends of processes; 0 for once."""
    started: bool = False
    """Whether it is expected to start at once, so that no further commit stands before its body."""
    first: bool = False
    """Whether it goes before what waits in its session: an answer."""
    again: int | None = None
    """The row that it is submitted for once more."""
    ask: str | None = None
    """The question that it answers."""


class InboxRow(msgspec.Struct, frozen=True, kw_only=True):
    """An accepted message."""

    id: int
    lane: str
    session: str | None
    priority: str | None
    timeout: float | None
    when_busy: str | None
    body: bytes
    route: bytes
    dedupe: str | None
    repeat: int
    first: bool
    ask: str | None
    state: MessageState
    attempt: int
    """How often a body was given it."""
    accepted_at: float
    """Seconds of the wall clock, like the next two."""
    started_at: float | None
    ended_at: float | None
    reason: str
    result: bytes | None
    """What its run returned, as JSON, if it has any."""
    asked: str | None
    """The question with which its run ended."""


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """A question to a person."""

    id: str
    key: str | None
    lane: str
    session: str | None
    route: bytes
    question: bytes
    """As JSON, like the options and what is kept with it."""
    options: bytes | None
    keep: bytes
    asked_at: float
    """Seconds of the wall clock, like the next one."""
    expires_at: float | None
    state: AskState
    value: bytes | None = None
    by: str | None = None


class AskedFor(msgspec.Struct, frozen=True):
    """How a question is closed."""

    ask: str
    state: Literal["answered", "expired"]
    value: bytes
    by: str


class Census(msgspec.Struct, frozen=True, kw_only=True):
    """What the inbox has at an instant that still asks for something."""

    messages: dict[MessageState, int]
    """By state; those that are accepted, started, waiting, parked or unknown."""
    questions: int
    """The open ones."""
    oldest_accepted_at: float | None
    """When the oldest of the accepted messages was accepted, in seconds of the wall clock."""


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """What a store has done since it was opened."""

    commits: int = 0
    """Commits that have changed something."""
    changes: int = 0
    """Calls that have; several may share a commit."""
    uncommitted: int = 0
    """Calls that were not reported yet."""


class Taken(msgspec.Struct, frozen=True):
    """What became of a message that was to be accepted."""

    id: int
    new: bool
    """`False`: a row with its key was there."""
    same_body: bool
    behind: bool
    """Whether older messages of its session are on disk only, behind which it has to wait."""
    state: MessageState
    elsewhere: bool = False
    """Whether another process answers it, or any that claims it."""


def decoded(data: bytes) -> Any:
    """A body or route, as its handler gets it."""
    return msgspec.json.decode(data)


def question_of(ask: Ask) -> Question:
    """A question, as handlers and operators see it."""
    return Question(
        id=ask.id,
        lane=ask.lane,
        session=ask.session,
        question=decoded(ask.question),
        options=None if ask.options is None else decoded(ask.options),
        key=ask.key,
        asked_at=ask.asked_at,
        expires_at=ask.expires_at,
        state=ask.state,
    )
