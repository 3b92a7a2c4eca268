"""What the inbox refuses, and what its senders are told."""

from __future__ import annotations

from lanes.checks import shown
from lanes.errors import LaneError

from .rows import Ask


class InboxDown(LaneError):
    """The inbox cannot be written any more: a full or failing disk, say. Nothing was accepted; no run started.

    Every later `accept` raises it too, until the supervisor is restarted: after a failed sync, what the disk has is
    unknown, and a second try could report as durable what is not.
    """

    retryable = True
    path: str


class InboxInvalid(LaneError, ValueError):
    """The file of the inbox cannot be used: it is damaged, is no inbox, or was written by a newer version."""

    path: str


class OutcomeUnknown(LaneError):
    """The process ended while the message was being answered, and its lane does not say `repeat=True`.

    What its handler has done by then stands; whether that was all, the inbox cannot know.
    """

    message_id: int


class AskClosed(LaneError):
    """The question was never asked, or has an answer, or has expired. Nothing has changed."""

    ask_id: str
    state: str | None
    """`"answered"`, `"expired"` or `"withdrawn"`; `None` for a question that was never asked."""


def ask_closed(ask_id: object, ask: Ask | None) -> AskClosed:
    """The refusal of an answer to a question that is not open."""
    if ask is None:
        why = "was never asked, or is not kept any more"
    else:
        by = f" by {ask.by!r}" if ask.by else ""
        why = f"is {ask.state}{by}"
    return AskClosed(
        f"ask: {shown(ask_id)} {why}; allowed: the id of an open question",
        ask_id=str(ask_id),
        state=None if ask is None else ask.state,
    )
