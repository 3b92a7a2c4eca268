"""What a process does that another one on the same directory asks: neighbours without a database (see `neighbours`)."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from lanes import LaneError, Message, Run
from lanes.core.reset import end_here
from lanes.core.scheduler import Scheduler
from locks import LockError
from locks._events import described

from . import protocol
from .protocol import Answer, Done, Refused, text


class Posting(Protocol):
    """What is needed of a supervisor."""

    @property
    def _scheduler(self) -> Scheduler: ...
    def find(self, run_id: int) -> Run | None: ...


def answer_neighbour(sup: Posting, question: protocol.End | protocol.Post | protocol.Ended) -> Answer:
    """Do it, and answer. On the event loop's thread."""
    try:
        match question:
            case protocol.End():
                end_here(sup._scheduler, question.key)
                return Answer(done=Done(text=f"the runs of session {text(question.key)} were asked to end"))
            case protocol.Post():
                return Answer(outcome=_outcome(_post(sup, question)))
            case protocol.Ended():
                run = sup.find(question.run)
                if run is None:
                    return Answer(error=Refused(kind="unknown_run", message=f"run: {question.run} is not kept here"))
                return Answer(outcome=_outcome(run))
    except (LaneError, LockError) as error:
        return Answer(error=Refused(kind="refused", message=text(str(error)), field=type(error).__name__))


def _post(sup: Posting, question: protocol.Post) -> Run:
    message = Message(msgspec.json.decode(question.body), msgspec.json.decode(question.route))
    when_busy: Any = question.when_busy  # whatever it is: an unknown policy is refused by its name
    return sup._scheduler.intake.post(
        question.lane,
        message,
        session=question.session,
        timeout=question.timeout,
        priority=question.priority,
        when_busy=when_busy,
        dedupe=question.dedupe,
    )


def _outcome(run: Run) -> protocol.Outcome:
    found = run.outcome
    if found is None:
        return protocol.Outcome(run=run.id, state=run.state.value)
    return protocol.Outcome(
        run=run.id,
        state=run.state.value,
        value=_json(found.value),
        error="" if found.error is None else text(described(found.error)),
        reason=text(found.reason),
        waited_s=found.waited_s,
        ran_s=found.ran_s,
        attempts=found.attempts,
    )


def _json(value: Any) -> msgspec.Raw:
    try:
        return msgspec.Raw(msgspec.json.encode(value))
    except (TypeError, ValueError, RecursionError):
        return msgspec.Raw(b"null")
