"""What is posted to a session."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from .asking import Answer
from .checks import MAX_MESSAGE_BYTES, size
from .errors import InvalidLane


@dataclass(frozen=True, slots=True)
class Message:
    """What is posted to a session."""

    body: Any
    route: Any = None
    """Where the answer goes; messages of different routes are never answered together."""

    @property
    def id(self) -> int:
        """Counts up within the inbox that keeps the message; 0 for one that none keeps."""
        return 0

    @property
    def answer(self) -> Answer | None:
        """What a person has answered, or that nobody did in time, where the message brings that (`RunContext.ask`)."""
        return None


@dataclass(frozen=True, slots=True)
class StoredMessage(Message):
    """A message that was accepted into an inbox. Its body and route are what their JSON says."""

    id: int = 0
    """Counts up within the inbox; 0 for none."""
    to: Answer | None = None

    @property
    def answer(self) -> Answer | None:
        """What became of a question, where the message brings that; its body is the value then."""
        return self.to


def ids_of(messages: Iterable[Message]) -> list[int]:
    """The ids of those messages that are kept in an inbox."""
    return [one.id for one in messages if isinstance(one, StoredMessage)]


def answer_in(messages: Sequence[Message] | None) -> int:
    """The id of the message that brings a person's answer, where a run has one: it shares its run with no other."""
    first = messages[0] if messages else None
    return first.id if isinstance(first, StoredMessage) and first.to is not None else 0


def message_of(value: Any) -> Message:
    """The message itself, or a message with that body.

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


def digest_of(body: Any) -> bytes:
    """A digest that bodies share which are equal as JSON. Of other bodies only the type counts.

    Other bodies are those that have no JSON (dataclasses and such have one, by `msgspec.to_builtins`), and objects
    that are equal to themselves alone (`eq=False`).
    """
    import hashlib  # noqa: PLC0415 -- slow to import, and only repetitions are looked for
    import json  # noqa: PLC0415 -- as above

    kind = type(body)
    text = f"{kind.__module__}.{kind.__qualname__}"
    if body is None or any("__eq__" in base.__dict__ for base in kind.__mro__[:-1]):
        with suppress(Exception):  # circular, too deep, an object of the sender's own
            text = json.dumps(body, sort_keys=True, default=partial(msgspec.to_builtins, order="deterministic"))
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def same_route(one: Any, other: Any) -> bool:
    """Whether two routes are the same. Routes that cannot be compared are not: an answer must not go astray."""
    try:
        return one is other or bool(one == other)
    except Exception:
        return False
