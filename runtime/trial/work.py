"""What is done under supervision: the messages of a scenario, or a program of the user's own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import anyio
import msgspec

from lanes import Draining, LaneError, Message, Run, RunState
from locks._events import log
from runtime.supervisor import Supervisor

from .ledger import Ledger, Sent
from .model_bodies import ModelBodies
from .report import Result
from .scenario import Plan
from .traffic import Line

_POLL_S = 0.01


class Work(Protocol):
    """Something to supervise."""

    sleeps_at_most: float
    """Seconds after which the rest counts as stuck when no run has begun or ended meanwhile."""
    kept: bool
    """Whether an inbox keeps what waits: at the end it is left there, and not cancelled."""

    async def send(self, sup: Supervisor) -> None:
        """Give the supervisor its work; returns when no more comes of its own accord. A checkpoint."""

    def unsent(self) -> int:
        """How many messages are about to be posted."""

    def resume(self) -> None:
        """Post what was held back while nothing was taken."""

    def release(self) -> float:
        """End what hangs on purpose; returns the seconds that this may take."""


class Scenario:
    """The messages of a plan, each at its time; what is not answered is posted again as often as it says."""

    kept = False

    def __init__(self, plan: Plan, bodies: ModelBodies, ledger: Ledger, ids: Sequence[str] = ()) -> None:
        self._ids = ids or [ledger.new_message() for _ in plan.lines]
        self._held: list[Line] = []
        """What is to be posted again, and came during a restart."""
        self.sleeps_at_most = plan.sleeps_at_most
        self._plan, self._bodies, self._ledger = plan, bodies, ledger
        self._sup: Supervisor | None = None
        self._unsent = 0
        ledger.on_end = self._ended

    async def send(self, sup: Supervisor) -> None:
        """Post every message at its time."""
        self._sup = sup
        start = anyio.current_time()
        for line, name in zip(self._plan.lines, self._ids, strict=True):
            await anyio.sleep_until(start + line.at * self._plan.scale)
            while sup.state == "restarting":
                await anyio.sleep(_POLL_S)
            self._post(Sent(line, id=name))

    def unsent(self) -> int:
        """How many messages are about to be posted again."""
        return self._unsent

    def release(self) -> float:
        """End what hangs on purpose; returns the seconds that this may take."""
        self._bodies.release()
        return 2.0

    def resume(self) -> None:
        """Post what was held back while nothing was taken."""
        held, self._held = self._held, []
        for line in held:
            self._post_again(line)

    def _post(self, sent: Sent) -> None:
        """Send one message; a refused message counts as failed, for its sender has the error."""
        assert self._sup is not None
        line = sent.line
        try:
            if line.turn:
                message = Message(sent, line.route)
                run = self._sup.post(
                    line.lane, message, session=line.conducted, when_busy=line.when_busy, dedupe=line.dedupe
                )
            else:
                run = self._sup.submit(line.lane, self._bodies.note, sent, session=line.conducted, turn=False)
        except Draining:
            return  # it stays with its sender: nothing was accepted, nothing counts
        except LaneError as error:
            self._ledger.refused(sent)
            log("message_refused", level="warning", lane=line.lane, session=line.conducted, error=str(error))
            return
        self._ledger.accepted(sent, run)

    def _ended(self, run: Run, messages: Sequence[Sent]) -> None:
        if run.state in (RunState.DONE, RunState.CANCELLED, RunState.SUPERSEDED):
            return
        for sent in messages:
            if sent.line.again > 0:
                self._unsent += 1
                self._post_again(msgspec.structs.replace(sent.line, again=sent.line.again - 1))

    def _post_again(self, line: Line) -> None:
        assert self._sup is not None
        if self._sup.state == "restarting":
            self._held.append(line)
            return
        self._unsent -= 1
        self._post(Sent(line, id=self._ledger.new_message()))


class Program:
    """A user's `async def main(sup)`."""

    sleeps_at_most = 302.0  # timeout and grace of the default lanes
    kept = False

    def __init__(
        self, name: str, main: Callable[[Supervisor], Awaitable[object]], result: Result, duration: float | None
    ) -> None:
        self._name, self._main, self._result = name, main, result
        self._duration = duration

    async def send(self, sup: Supervisor) -> None:
        """Call it; what it raises makes the verdict red."""
        try:
            with anyio.move_on_after(self._duration):
                await self._main(sup)
        except (Exception, SystemExit) as error:
            self._result.failure = f"{self._name} raised {type(error).__name__}: {error}"
            log("program_failed", level="error", program=self._name, exc_info=error)

    def unsent(self) -> int:
        """Nothing is posted by itself."""
        return 0

    def resume(self) -> None:
        """Nothing was held back."""

    def release(self) -> float:
        """Nothing hangs on purpose; what was abandoned has just had its grace."""
        return 0.1
