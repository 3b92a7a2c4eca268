"""What a scheduler reports of messages that are kept on disk, stated from its side. The inbox in `runtime` keeps it.

Only messages that were kept (`StoredMessage`) are reported. A change on disk is awaited before what depends on it: a
body begins, or is given a message, when that is written down. How a message has ended is noted within the change that
ends its run, and written afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from locks import Fence

from ..asking import NewQuestion, Question
from ..body.session import Session
from ..message import Message
from ..run import Outcome, Run


class Journal(Protocol):
    """Keeps what becomes of messages. On the event loop's thread."""

    async def begin(self, messages: Sequence[Message], path: str | None, fence: Fence) -> None:
        """A body is about to be given messages, or to conduct a session. A checkpoint if there is something to keep.

        Args:
            path: the transcript of the session that it conducts.
            fence: its permission to write.

        Raises:
            Exception: it cannot be kept. The body must not begin.
        """

    def was_read(self, messages: Sequence[Message]) -> None:
        """A body was given messages without waiting; it is kept soon. Called within a change: it only takes note."""

    def tried(self, ids: Sequence[int]) -> None:
        """An attempt at a run has failed, and the messages that it was given wait for the next one. Called within a
        change: it only takes note."""

    async def finish(self, session: Session, record: Mapping[str, Any], ids: Sequence[int], result: Any) -> None:
        """Append the answer to messages, and keep that they are answered, though the body goes on. A checkpoint.

        Args:
            result: what is kept as the value of the run.

        Raises:
            Exception: it cannot be kept.
        """

    async def ask(self, run: Run, route: Any, new: NewQuestion) -> Question:
        """Keep a question to a person. A checkpoint; cancelled, it may have been asked.

        Raises:
            InvalidLane: an argument is not allowed; nothing was asked.
            Exception: it cannot be kept.
        """

    async def settled(self) -> None:
        """Wait until all that was noted is kept. A checkpoint.

        Raises:
            Exception: it cannot be kept.
        """

    def cancelled(self, *, lane: str | None, session: str | None, reason: str) -> None:
        """The runs of a lane, of a session, or all were asked to end: what waits on disk only is to end with them.

        Called within a change: it only takes note.
        """

    def reset(self, session: str, reason: str) -> None:
        """A session was reset: as `cancelled`, and its questions are not to be answered any more. As above."""

    def ended(self, run: Run, messages: Sequence[Message], outcome: Outcome, *, parked: bool, by_process: bool) -> None:
        """A run that was to answer messages has ended. Called within a change: it only takes note.

        Args:
            parked: whether it is kept for an operator to decide.
            by_process: whether it ended because its supervisor stops, restarts or has failed.
        """
