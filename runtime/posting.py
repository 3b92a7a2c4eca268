"""A message for a session that another process on the directory conducts: posted there, and waited for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_args

import anyio
import msgspec

from lanes import (
    DedupeConflict,
    Draining,
    InvalidLane,
    LaneBusy,
    LaneError,
    LaneFull,
    Outcome,
    Run,
    RunCancelled,
    RunError,
    RunState,
    RunSuperseded,
    checks,
)
from lanes.core.intake import Intake, check_dedupe
from lanes.layout import check_key
from lanes.message import message_of
from lanes.spec import WhenBusy
from locks import InvalidSession

from .neighbours import Neighbours, Unreached

if TYPE_CHECKING:
    from .status import protocol
    from .status.client import Found

MOST_BYTES = 60_000
"""Of a message to another process, with its route: a question of the status socket has room for so much."""
_SOON_S, _LATEST_S = 0.02, 0.5
_REFUSALS = {
    kind.__name__: kind for kind in (DedupeConflict, Draining, InvalidLane, InvalidSession, LaneBusy, LaneFull)
}
_ENDS = {RunState.CANCELLED: RunCancelled, RunState.SUPERSEDED: RunSuperseded}


class Posted:
    """A message that was posted in the process that conducts its session. On the event loop's thread."""

    __slots__ = ("_found", "_neighbours", "_outcome", "id", "node", "run")

    def __init__(self, run: Run | None, run_id: int, found: Found | None, neighbours: Neighbours | None) -> None:
        self.run = run
        """The run that will answer, where that is one of this process."""
        self.id = run_id
        """Of that run, in its process."""
        self.node = "" if found is None else f"process {found.pid}"
        """The process; empty for this one."""
        self._found, self._neighbours = found, neighbours
        self._outcome: Outcome | None = None

    def __repr__(self) -> str:
        return f"<Posted run {self.id} of {self.node or 'this process'}>"

    async def wait(self, timeout: float | None = None) -> Outcome:
        """Wait until the run has ended. A checkpoint; cancelled, the run goes on.

        Returns:
            How it has ended. Of a run of another process, the value is what JSON makes of it, `None` where it has
            none, and the error is a `RunError` that says what the body raised.

        Raises:
            TimeoutError: it goes on.
            Unreached: its process has gone, or does not answer: how it ends is not known here.
        """
        with anyio.fail_after(timeout):
            if self.run is not None:
                return await self.run.wait()
            pause_s = _SOON_S
            while self._outcome is None:
                self._outcome = await self._look()
                if self._outcome is None:
                    await anyio.sleep(pause_s)
                    pause_s = min(2 * pause_s, _LATEST_S)
        return self._outcome

    async def _look(self) -> Outcome | None:
        from .status import protocol  # noqa: PLC0415 -- most programs never ask

        assert self._found is not None and self._neighbours is not None
        answer = await self._neighbours.ask(self._found, protocol.Ended(run=self.id))
        if answer.outcome is None:
            why = answer.error.message if answer.error is not None else "another answer"
            raise Unreached(f"{self.node} does not know how run {self.id} has ended: {why}", processes=(self.node,))
        return _outcome_of(answer.outcome, self.node)


async def post_to_conductor(
    intake: Intake, neighbours: Neighbours | None, lane: str, message: Any, session: str, options: Mapping[str, Any]
) -> Posted:
    """Post where the session is conducted; see `Everywhere.post`."""
    check_key(session)
    found = None if neighbours is None else await neighbours.conductor(session)
    if found is None or neighbours is None:
        run = intake.post(lane, message, session=session, **options)
        return Posted(run, run.id, None, None)
    question = _question_of(lane, message, session, options)
    answer = await neighbours.ask(found, question)
    if answer.outcome is not None:
        return Posted(None, answer.outcome.run, found, neighbours)
    if answer.error is None:
        raise Unreached(f"process {found.pid} answers something else", processes=(f"process {found.pid}",))
    unread = answer.error.kind == "bad_question"  # such as what an older version does not know
    kind = InvalidLane if unread else _REFUSALS.get(answer.error.field, LaneError)
    raise kind(f"process {found.pid} refuses: {answer.error.message}")


def _question_of(lane: str, message: Any, session: str, options: Mapping[str, Any]) -> protocol.Question:
    from .inbox.door import as_json, storable  # noqa: PLC0415 -- most programs never ask
    from .status import protocol  # noqa: PLC0415 -- as above

    given = message_of(message)
    body, route = as_json("message", given.body), as_json("route", given.route)
    if len(body) + len(route) > MOST_BYTES:
        raise InvalidLane(
            f"message: {len(body) + len(route)} bytes cannot be posted in another process, which conducts the session; "
            f"allowed: {MOST_BYTES} bytes of JSON"
        )
    _check(options)
    question = protocol.Post(
        lane=storable("lane", lane), session=session, body=msgspec.Raw(body), route=msgspec.Raw(route), **options
    )
    if (size := len(protocol.encoded(question))) > protocol.LONGEST_LINE:
        raise InvalidLane(
            f"message: {size} bytes, with the names of lane and session and the key, cannot be posted in another "
            f"process, which conducts the session; allowed: {protocol.LONGEST_LINE} bytes of JSON"
        )
    return question


def _check(options: Mapping[str, Any]) -> None:
    """Refuse here what the other process would refuse by the type of a field only, or would read as something else."""
    if options["timeout"] is not None:
        checks.seconds("timeout", options["timeout"])
    if options["priority"] is not None:
        checks.priority(options["priority"])
    if options["when_busy"] is not None:
        checks.choice("when_busy", options["when_busy"], get_args(WhenBusy))
    if options["dedupe"] is not None:
        from .inbox.door import storable  # noqa: PLC0415 -- most programs never ask

        storable("dedupe", check_dedupe(options["dedupe"]))


def _outcome_of(told: protocol.Outcome, node: str) -> Outcome | None:
    state = RunState(told.state)
    if state in (RunState.QUEUED, RunState.RUNNING):
        return None
    error: Exception | None = None
    if state is not RunState.DONE:
        kind = _ENDS.get(state, RunError)
        error = kind(
            f"run {told.run} of {node} ended as {told.state}: {told.error or told.reason or 'no reason given'}"
        )
    return Outcome(
        state=state,
        value=msgspec.json.decode(told.value),
        error=error,
        reason=told.reason,
        waited_s=told.waited_s,
        ran_s=told.ran_s,
        attempts=told.attempts,
    )
