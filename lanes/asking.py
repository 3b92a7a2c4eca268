"""A question to a person, and the answer: between them nothing is held, and days may pass.

A handler asks (`raise await ctx.ask(...)`), and its run ends. The answer comes as a message of its own to the same
session, before all that waits there.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Literal

import msgspec

AskState = Literal["open", "answered", "expired", "withdrawn"]


class NewQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """A question to be asked, as `RunContext.ask` is given it: nothing is checked yet."""

    question: Any
    options: Sequence[Any] | None
    expires: float | timedelta | None
    """From now; seconds, or a `timedelta`."""
    key: str | None
    keep: Any


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """A question that was asked."""

    id: str
    """What `Supervisor.answer` takes."""
    lane: str
    session: str | None
    question: Any
    options: list[Any] | None = None
    """The values that an answer may have; `None` for any."""
    key: str | None = None
    asked_at: float
    """Seconds of the wall clock, like the next one."""
    expires_at: float | None = None
    state: AskState = "open"


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a question; `Message.answer` of the message that brings it."""

    ask: str
    """The id of the question."""
    question: Any
    options: list[Any] | None = None
    outcome: Literal["answered", "expired"] = "answered"
    value: Any = None
    """What was answered; `None` when the question has expired."""
    by: str = ""
    """Who has answered, as `Supervisor.answer` was told."""
    keep: Any = None
    """What the handler has stored with the question."""


class WaitsForAnswer(Exception):
    """Raised by a body that has asked a person: its run ends as done, and its value is the `Question`."""

    retryable = False

    def __init__(self, question: Question) -> None:
        super().__init__(f"asked a person: {question.id}")
        self.question = question

    @property
    def id(self) -> str:
        """What `Supervisor.answer` takes."""
        return self.question.id

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.question,)
