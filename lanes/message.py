"""What is posted to a session."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .checks import MAX_MESSAGE_BYTES, size
from .errors import InvalidLane


@dataclass(frozen=True, slots=True)
class Message:
    """What is posted to a session."""

    body: Any
    route: Any = None
    """Where the answer goes; messages of different routes are never answered together."""


def message_of(value: Any) -> Message:
    """The message itself, or one with that body.

    Raises:
        InvalidLane: it is enormous.
    """
    message = value if isinstance(value, Message) else Message(value)
    if isinstance(message.body, (str, bytes, bytearray, list, tuple, dict)) and size(message.body) > MAX_MESSAGE_BYTES:
        raise InvalidLane(
            f"message: {type(message.body).__name__} of more than {MAX_MESSAGE_BYTES} bytes; "
            f"allowed: {MAX_MESSAGE_BYTES} bytes of text"
        )
    return message


def same_route(one: Any, other: Any) -> bool:
    """Whether two routes are the same. Those that cannot be compared are not, lest an answer goes astray."""
    try:
        return one is other or bool(one == other)
    except Exception:
        return False
