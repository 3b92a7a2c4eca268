"""From the rows of the database to what the inbox knows, by the clock of this machine (the server's is ahead of it)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from ..inbox.rows import Ask, Census, InboxRow, MessageState
from .step import Rows

_NAMES = tuple(InboxRow.__struct_fields__)
_TIMES = ("accepted_at", "started_at", "ended_at")
COLUMNS = ", ".join(f"extract(epoch from m.{name})::float8" if name in _TIMES else f"m.{name}" for name in _NAMES)
ASK_COLUMNS = (
    "id, key, lane, session, route, question, options, keep, extract(epoch from asked_at)::float8, "
    "extract(epoch from expires_at)::float8, state, value, by"
)

Ahead = Callable[[], float]
"""How far the server's clock is ahead of this machine's."""


def place_of(session: str | None, token: int) -> str:
    """Where a message waits: in its session, or in a place of its own."""
    return f"m:{token}" if session is None else f"s:{session}"


def clean(text: str) -> str:
    """Text without what the database refuses: a reason may quote anything."""
    return text.replace("\0", "\\0").encode("utf-8", "replace").decode()


def row_of(found: tuple[Any, ...], ahead: float) -> InboxRow:
    """A message from its `COLUMNS`."""
    fields = dict(zip(_NAMES, found, strict=True))
    fields["state"] = MessageState(fields["state"])
    for name in _TIMES:
        if fields[name] is not None:
            fields[name] -= ahead
    return InboxRow(**fields)


def ask_of(found: tuple[Any, ...], ahead: float) -> Ask:
    """A question from its `ASK_COLUMNS`."""
    ask = Ask(**dict(zip(Ask.__struct_fields__, found, strict=True)))
    expires_at = None if ask.expires_at is None else ask.expires_at - ahead
    return msgspec.structs.replace(ask, asked_at=ask.asked_at - ahead, expires_at=expires_at)


def census_of(rows: Rows, ahead: float) -> Census:
    """What still asks for something, from rows of a state, a number, and since when the oldest waits."""
    oldest = {state: at for state, _, at in rows}.get("accepted")
    counts = {state: number for state, number, _ in rows}
    return Census(
        questions=counts.pop("question"),
        messages={MessageState(state): number for state, number in counts.items()},
        oldest_accepted_at=None if oldest is None else oldest - ahead,
    )
