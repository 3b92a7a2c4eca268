"""The face of an inbox store: what the rest of the inbox asks of a disk or a database.

Changes are handed over in order by plain functions, which never block, and reported on the event loop in that order
(`Report`); a change that is reported is as durable as the store was asked to make it. `None` as a report means that
nothing waits for it. Questions are coroutines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from .rows import Ask, AskedFor, InboxRow, MessageState, NewRow, Traffic

Report = Callable[[Any, BaseException | None], None]
"""Called on the event loop with what came of a change, or with why it was not made."""


class InboxStore(Protocol):
    """Keeps accepted messages. On the event loop's thread."""

    path: str
    """Where, for errors and logs."""

    @property
    def failure(self) -> BaseException | None:
        """Why nothing is written any more; `None` while it works."""

    @property
    def traffic(self) -> Traffic:
        """What it has done since it was opened; also after it was closed. Cheap."""

    async def open(self) -> None:
        """Open it, make it if there is none. A checkpoint.

        Raises:
            InboxInvalid: it cannot be used, and was not touched.
            InboxDown: it cannot be opened.
        """

    async def close(self) -> None:
        """Commit what was handed over, and close. A checkpoint that is not interrupted."""

    def let_go(self) -> None:
        """As `close`, without waiting: the event loop is gone."""

    def accept(self, new: NewRow, replayed: int, report: Report) -> None:
        """Keep a message, unless its key is known; reports a `Taken`.

        Args:
            replayed: the id up to which what was on disk at the start is in memory.
        """

    def begin(self, ids: Sequence[int], report: Report | None) -> None:
        """Messages are given to a body."""

    def wait_again(self, ids: Sequence[int]) -> None:
        """The body that was given messages has failed, and they wait for another attempt."""

    def take_back(self, ids: Sequence[int]) -> None:
        """No body was given messages that were accepted as started."""

    def end(
        self, ids: Sequence[int], state: MessageState, reason: str, result: bytes | None, report: Report | None
    ) -> None:
        """Messages have ended, unless they had ended before."""

    def refuse(self, message: int, reason: str, report: Report) -> None:
        """A message that was accepted found no room, and its sender is told so: it is dropped, and its key is free."""

    def cancel_waiting(
        self,
        lane: str | None,
        session: str | None,
        reason: str,
        report: Report,
        *,
        message: int | None = None,
        upto: int | None = None,
    ) -> None:
        """Messages that wait, of a lane, of a session or all, end as cancelled; reports their ids.

        Args:
            message: that one only.
            upto: only those up to that id.
        """

    def withdraw(self, session: str, reason: str) -> None:
        """The open questions of a session are withdrawn; messages that wait for an answer end as cancelled."""

    def ask(self, ask: Ask, report: Report) -> None:
        """Keep a question, unless one of its key is open; reports the one that is open then (`Ask`)."""

    def close_ask(self, how: AskedFor, new: NewRow, replayed: int, report: Report) -> None:
        """Close a question, and keep the message that says so; reports a `Taken`, or `AskClosed`.

        Messages that wait for it are done.
        """

    def wait_for(self, ids: Sequence[int], ask: str, report: Report | None) -> None:
        """Messages wait for the answer to a question; or are done, where it is closed already."""

    async def find_ask(self, ask: str) -> Ask | None:
        """A question that is kept."""

    async def open_asks(self, lane: str | None, session: str | None, at_most: int) -> list[Ask]:
        """The questions that are open, of a lane, of a session or all, the oldest first."""

    async def due_asks(self, now: float, at_most: int) -> list[Ask]:
        """The open questions that have expired by an instant."""

    async def next_expiry(self) -> float | None:
        """When the next open question expires."""

    def accept_served(self, schedule: str, instant: float, new: NewRow, replayed: int, report: Report) -> None:
        """As `accept`, for an instant of a schedule, which is noted as served in the same transaction."""

    def serve(self, schedule: str, instant: float) -> None:
        """A schedule is served up to an instant."""

    async def served(self, schedule: str) -> float | None:
        """Up to which instant a schedule is served; `None` for one that is not known."""

    def settle(self, report: Report) -> None:
        """Change nothing: the report comes when all that was handed over before is kept."""

    def requeue(self, message: int, report: Report) -> None:
        """Have a message that was parked, dropped or left unknown wait again; reports whether it does."""

    async def recover(self, ids: Sequence[int] | None = None) -> tuple[int, int]:
        """Put right what was started and cut off; returns how many wait again, and how many are unknown.

        Args:
            ids: of which messages; by default of all, for the process that had started them is gone.
        """

    def waiting(self, lane: str | None, after: int, at_most: int, report: Report) -> None:
        """Report a page of the messages that wait (`InboxRow`), by id.

        Args:
            lane: of that lane only.
        """

    async def said(self, lane: str, session: str | None, key: str, digest: bytes) -> tuple[int, bool] | None:
        """The message that is kept under a key, and whether its body has that digest."""

    async def accepted_among(self, ids: Sequence[int]) -> list[InboxRow]:
        """Those of some messages that wait, by id."""

    async def untold(self, after: int, at_most: int) -> list[InboxRow]:
        """A page of the messages whose end is unknown, and that their lane was not told of, by id."""

    def told(self, ids: Sequence[int]) -> None:
        """The lane of messages whose end is unknown was told of them."""

    async def find(self, message: int) -> InboxRow | None:
        """A message that is kept."""

    async def in_state(self, state: MessageState, at_most: int) -> list[InboxRow]:
        """The oldest messages in a state."""

    async def last_id(self) -> int:
        """The id of the newest message there ever was; 0 for none."""

    def census(self, report: Report) -> None:
        """Count what still asks for something, and report it (`Census`). It takes a time in proportion to that."""

    async def changes(self) -> int:
        """A number that another one follows when another process has changed the inbox."""

    async def comes_back(self) -> bool:
        """Wait until it takes changes again; `False` if it never will. A checkpoint."""

    async def ended_among(self, ids: Sequence[int]) -> list[int]:
        """Those of some messages for which nothing is to be done any more, forgotten ones with them."""

    async def purge(self, before: float, at_most: int) -> int:
        """Forget what ended before an instant of the wall clock, up to a number; returns how many."""
