"""An accepted message, as its sender sees it."""

from __future__ import annotations

from typing import Any

import anyio

from lanes import Outcome, Run, RunCancelled, RunError, RunState, RunSuperseded

from .errors import OutcomeUnknown
from .rows import Ask, InboxRow, MessageState, decoded, question_of

_STATES = {
    MessageState.DONE: RunState.DONE,
    MessageState.WAITING: RunState.DONE,
    MessageState.CANCELLED: RunState.CANCELLED,
    MessageState.DROPPED: RunState.CANCELLED,
    MessageState.SUPERSEDED: RunState.SUPERSEDED,
}


class Fate:
    """What becomes of a message; shared by all that wait for it."""

    __slots__ = ("__weakref__", "ended", "failure", "outcome", "run", "state")

    def __init__(self, state: MessageState) -> None:
        self.state = state
        self.run: Run | None = None
        self.outcome: Outcome | None = None
        self.failure: BaseException | None = None
        """Why its end is not kept."""
        self.ended = anyio.Event()

    def end(self, state: MessageState, outcome: Outcome) -> None:
        """It has ended, and that is kept."""
        self.state, self.outcome = state, outcome
        self.ended.set()

    def fail(self, error: BaseException) -> None:
        """It has ended, and that could not be kept."""
        self.failure = error
        self.ended.set()


class Accepted:
    """A message that is kept. On the event loop's thread; all its fields are for reading."""

    __slots__ = ("_fate", "id", "new")

    def __init__(self, message_id: int, fate: Fate, *, new: bool) -> None:
        self.id = message_id
        """Counts up within the inbox, over restarts."""
        self.new = new
        """`False` when the message of that `dedupe` key was kept already."""
        self._fate = fate

    def __repr__(self) -> str:
        return f"<Accepted {self.id}, {self.state}{'' if self.new else ', known before'}>"

    @property
    def state(self) -> MessageState:
        """Where it stands; what becomes of it once it was parked, waits for a person, or was left to the next process
        or generation: `Supervisor.find_message`."""
        fate = self._fate
        running = fate.state is MessageState.ACCEPTED and fate.run is not None and fate.run.state is RunState.RUNNING
        return MessageState.STARTED if running else fate.state

    @property
    def run(self) -> Run | None:
        """The run that answers it; `None` while it waits on disk only, and where an earlier process has answered it.

        It may have begun before `accept` has returned: what its body emits in its first step, `Run.events` may miss.
        """
        return self._fate.run

    @property
    def outcome(self) -> Outcome | None:
        """What `wait` returns; `None` while it waits."""
        return self._fate.outcome

    async def wait(self, timeout: float | None = None) -> Outcome:
        """Wait until the message has ended, and that is kept. A checkpoint; cancelled, the message goes on.

        A message that this process leaves unanswered when it stops has the outcome of its run here, `cancelled`; it is
        kept, and the next process goes on with it.

        Args:
            timeout: seconds to wait at most.

        Returns:
            How its run ended; the value is the `Question` where a person was asked. Of a message that ended in an
            earlier process, only state, reason and value are known, and the value is what JSON makes of it.

        Raises:
            TimeoutError: it goes on.
            DeadlockError: as `Run.wait`.
            InboxDown: how it ended could not be kept.
        """
        fate = self._fate
        with anyio.fail_after(timeout):
            if fate.run is not None and not fate.ended.is_set():
                await fate.run.wait()
            await fate.ended.wait()
        if fate.failure is not None:
            raise fate.failure
        assert fate.outcome is not None
        return fate.outcome


_ERRORS = {
    MessageState.CANCELLED: RunCancelled,
    MessageState.DROPPED: RunCancelled,
    MessageState.SUPERSEDED: RunSuperseded,
}


def outcome_of_row(row: InboxRow, asked: Ask | None) -> Outcome:
    """How a message ended, as far as its row says.

    Args:
        asked: the question with which its run ended, if it did.
    """
    value: Any = None if row.result is None else decoded(row.result)
    if asked is not None and value is None:
        value = question_of(asked)
    error: Exception | None = None
    if row.state is MessageState.UNKNOWN:
        error = OutcomeUnknown(
            f"message {row.id} on lane {row.lane!r}: {row.reason}; allowed: `on_unknown`, or to requeue it",
            message_id=row.id,
        )
    elif row.state not in (MessageState.DONE, MessageState.WAITING):
        error = _ERRORS.get(row.state, RunError)(
            f"message {row.id} on lane {row.lane!r} ended as {row.state}: {row.reason or 'no reason given'}"
        )
    return Outcome(
        state=_STATES.get(row.state, RunState.FAILED),
        value=value,
        error=error,
        reason=row.reason or ("" if row.state is MessageState.DONE else str(row.state)),
        attempts=max(1, row.attempt),
    )
