"""The messages of a plan, sent to an inbox, each under a key until it is acknowledged; and the person who is asked."""

from __future__ import annotations

from collections.abc import Sequence

import anyio

from lanes import Draining, LaneError
from locks import process
from locks._events import log
from runtime.inbox.errors import AskClosed, InboxDown
from runtime.supervisor import Supervisor

from . import wire
from .kept_bodies import OPTIONS, Report, body_of
from .scenario import Plan
from .traffic import Line

_POLL_S = 0.02


class KeptWork:
    """Sends, and answers questions, until it is cancelled. A `Work`."""

    kept = True

    def __init__(self, plan: Plan, names: Sequence[str], report: Report) -> None:
        assert plan.crash is not None
        self.sleeps_at_most = plan.sleeps_at_most
        self._plan, self._names, self._report = plan, names, report
        self._person_s = plan.crash.person

    async def send(self, sup: Supervisor) -> None:
        """Send every message at its time, and answer questions; never returns."""
        start = anyio.current_time()
        async with anyio.create_task_group() as group:
            group.start_soon(self._answer_questions, sup)
            for line, name in zip(self._plan.lines, self._names, strict=True):
                await anyio.sleep_until(start + line.at * self._plan.scale)
                group.start_soon(self._accept, sup, line, name)

    def unsent(self) -> int:
        """What is not acknowledged is sent again by the next process."""
        return 0

    def resume(self) -> None:
        """Nothing was held back."""

    def release(self) -> float:
        """Nothing hangs on purpose."""
        return 0.0

    async def _accept(self, sup: Supervisor, line: Line, name: str) -> None:
        self._report(wire.Posted(name))
        while True:
            try:
                accepted = await sup.accept(line.lane, body_of(line, name), session=line.conducted, dedupe=name)
            except Draining:
                await anyio.sleep(_POLL_S)  # a restart; a stop cancels this
            except InboxDown:
                raise
            except LaneError as error:
                self._report(wire.Outcome(name, "failed", "refused"))
                log("message_refused", level="warning", lane=line.lane, session=line.conducted, error=str(error))
                return
            else:
                self._report(wire.Kept(name, accepted.id, accepted.state))
                return

    async def _answer_questions(self, sup: Supervisor) -> None:
        """Be the person: answer what was asked long enough ago, and press the other button as well."""
        while True:
            for question in await sup.asks():
                if question.expires_at is None and process.wall() - question.asked_at >= self._person_s:
                    first = int(question.id, 16) % len(OPTIONS)
                    for value in (OPTIONS[first], OPTIONS[1 - first]):
                        try:
                            _ = await sup.answer(question.id, value, by="a person")
                        except AskClosed:
                            continue
                        except Draining:
                            break
                        self._report(wire.Answered(question.id, value))
            await anyio.sleep(_POLL_S)
