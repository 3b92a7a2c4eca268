"""Messages whose end is unknown, that their lanes are to be told of, and the looks for them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import groupby
from typing import NamedTuple

from lanes.message import StoredMessage

from .door import ALL_REPLAYED, message_of_row
from .rows import InboxRow


class Untold(NamedTuple):
    """Messages of one session whose end is unknown, and that its lane is to be told of."""

    lane: str
    session: str | None
    messages: list[StoredMessage]


class Looks:
    """For which sessions there is to be a look, and what they hold back until it has ended. Without I/O.

    A look is for the sessions that had come when it began: others may come without pause.
    """

    def __init__(self) -> None:
        self._asked = self._done = 0
        self._sessions: dict[str, int] = {}
        """Each with the last time that it was asked for."""
        self._held: dict[str, int] = {}
        """Each with the oldest message of it that was held back."""

    @property
    def due(self) -> bool:
        """Whether there is something to look for."""
        return self._done < self._asked

    def ask(self, sessions: Iterable[str]) -> None:
        """There may be something in these sessions, and in what has no session."""
        self._asked += 1
        self._sessions.update(dict.fromkeys(sessions, self._asked))

    def holds(self, session: str | None, message: int) -> bool:
        """Whether a message is not to be queued yet. It comes with a page after the look."""
        if session is None or session not in self._sessions:
            return False
        self._held[session] = min(message, self._held.get(session, message))
        return True

    def begin(self) -> tuple[int, Collection[str]]:
        """A look begins; returns what ends it, and the sessions that it is for."""
        return self._asked, frozenset(self._sessions)

    def end(self, look: int) -> int:
        """A look has ended; returns the id behind which pages are to be read again."""
        self._done = look
        oldest = ALL_REPLAYED
        for session in [one for one, asked in self._sessions.items() if asked <= look]:
            del self._sessions[session]
            oldest = min(oldest, self._held.pop(session, oldest))
        return oldest if oldest == ALL_REPLAYED else oldest - 1


def by_session(rows: list[InboxRow]) -> list[Untold]:
    """Messages, those of one session together, in the order of the first of each."""
    ordered = sorted(rows, key=lambda row: (row.lane, row.session or "", row.id))
    groups = [
        Untold(lane, session, [message_of_row(row, row.id) for row in group])
        for (lane, session), group in groupby(ordered, key=lambda row: (row.lane, row.session))
    ]
    return sorted(groups, key=lambda group: group.messages[0].id)
