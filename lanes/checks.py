"""One checker per kind of value; each names the field, the value and what is allowed."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable
from enum import IntEnum
from typing import Any

from .errors import InvalidLane

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""The most text that a message may carry: a queue holds many, and each becomes a line of a transcript."""
MAX_SECONDS = 100 * 366 * 86400
"""A hundred years: a longer duration is a slip, or means "for ever", and some event loops cannot count to it."""
MAX_WHOLE = 2**53
"""Up to that a float counts exactly; a larger number is a slip, and some cannot even be printed or sent as JSON."""


class Priority(IntEnum):
    """The three classes of admission, most urgent first."""

    FOREGROUND = 0
    NORMAL = 1
    BACKGROUND = 2

    __hash__ = int.__hash__  # `Enum`'s own is Python code, and a class is looked up for each run


def shown(value: Any) -> str:
    """A value as an error shows it: short, whatever its `repr` does."""
    try:
        return f"{value!r:.80}"
    except Exception:
        return f"a {type(value).__name__} that cannot be printed"  # such as a number of more than 4300 digits


def is_utf8(text: str) -> bool:
    """Whether text has UTF-8: half of a surrogate pair, as a file name may have, has none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def priority(name: str, field: str = "priority") -> Priority:
    """The class of that name.

    Raises:
        InvalidLane: there is none.
    """
    try:
        return Priority[name.upper()]
    except (KeyError, AttributeError, TypeError):
        allowed = ", ".join(repr(p.name.lower()) for p in Priority)
        raise InvalidLane(f"{field}: {shown(name)} is unknown; allowed: {allowed}") from None


def seconds(field: str, value: Any, *, zero: bool = False) -> float:
    """A duration of at most a hundred years.

    Raises:
        InvalidLane: it is no number, negative, NaN, or more than a hundred years.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value <= MAX_SECONDS or (value == 0 and not zero):
        allowed = f"seconds {'from 0' if zero else 'above 0'} to {MAX_SECONDS}"
        raise InvalidLane(f"{field}: {shown(value)} is no duration; allowed: {allowed}")
    return float(value)


def whole(field: str, value: Any, least: int, most: int | None = MAX_WHOLE) -> int:
    """A whole number from `least` to `most`; `None` for any, where the caller takes at most so many anyway.

    Raises:
        InvalidLane: it is none.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InvalidLane(f"{field}: {shown(value)} is not allowed; allowed: a whole number from {least}")
    if most is not None and value > most:
        raise InvalidLane(f"{field}: {shown(value)} is not allowed; allowed: a whole number up to {most}")
    return value


def choice(field: str, value: Any, allowed: Iterable[str]) -> None:
    """One of some names.

    Raises:
        InvalidLane: it is none of them.
    """
    names = tuple(allowed)
    if not isinstance(value, str) or value not in names:
        raise InvalidLane(f"{field}: {shown(value)} is unknown; allowed: {', '.join(map(repr, names))}")


def handler(field: str, value: Any) -> None:
    """An async function of a context and a list of messages.

    Raises:
        InvalidLane: it is not async, or does not take the two.
    """
    if not callable(value) or not inspect.iscoroutinefunction(_plain(value)):
        raise InvalidLane(f"{field}: {shown(value)} is not async; allowed: `async def handler(ctx, messages)`")
    try:
        inspect.signature(value).bind(None, ())
    except TypeError as error:
        raise InvalidLane(f"{field}: {shown(value)} {error}; allowed: `handler(ctx, messages)`") from None


def callback(field: str, value: Any, shape: str, arguments: int) -> None:
    """A plain function, called on the event loop, which it must not keep waiting.

    Raises:
        InvalidLane: it cannot be called, is async, or does not take so many arguments.
    """
    if not callable(value) or inspect.iscoroutinefunction(_plain(value)):
        raise InvalidLane(f"{field}: {shown(value)} is not allowed; allowed: a plain function `{shape}`")
    try:
        inspect.signature(value).bind(*(None,) * arguments)
    except TypeError as error:
        raise InvalidLane(f"{field}: {shown(value)} {error}; allowed: `{shape}`") from None
    except ValueError:
        return  # a builtin without a signature: its first call shows what it takes


def _plain(value: Any) -> Any:
    """The function behind partials and callable objects."""
    while isinstance(value, functools.partial):
        value = value.func
    return type(value).__call__ if not inspect.isroutine(value) and callable(value) else value


def size(body: Any) -> int:
    """Roughly how much text a message's body carries, in bytes; stops counting past the limit.

    Only text, bytes, lists, tuples and mappings are looked into: the sender has to bound all other bodies.
    """
    total, todo, seen = 0, [body], set[int]()
    while todo and total <= MAX_MESSAGE_BYTES:
        one = todo.pop()
        if isinstance(one, (str, bytes, bytearray)):
            total += len(one)
        elif isinstance(one, (list, tuple, dict)) and id(one) not in seen:
            seen.add(id(one))
            total += len(one)
            if total <= MAX_MESSAGE_BYTES:  # else a copy of what is in it would cost more than what is refused
                todo += [*one.keys(), *one.values()] if isinstance(one, dict) else one
    return total
