"""How a run ended, in words and as an `Outcome`: everything about an end that changes no state."""

from __future__ import annotations

from typing import Any

from locks import _clock
from locks._events import log

from ..run import Outcome, RunState
from ..run_errors import RunAbandoned, RunAbandonedAfterTimeout, RunCancelled, RunError, RunSuperseded, RunTimedOut
from .execution import Execution
from .needs import Kind, needs_of
from .raised import Raised

_ERRORS: dict[RunState, type[RunError]] = {
    RunState.TIMED_OUT: RunTimedOut,
    RunState.CANCELLED: RunCancelled,
    RunState.SUPERSEDED: RunSuperseded,
    RunState.ABANDONED: RunAbandoned,
}


def outcome_of(execution: Execution, state: RunState, reason: str, value: Any, raised: Raised | None) -> Outcome:
    """The outcome of an execution that ends now.

    Args:
        value: what its body returned, if it did.
        raised: what its body raised, or what kept it from starting.
    """
    run, now = execution.run, _clock.clock.now()
    error = raised.error if raised is not None else None
    kind = _ERRORS.get(state)
    if kind is not None:
        if kind is RunAbandoned and execution.cause is not None and execution.cause[0] is RunState.TIMED_OUT:
            kind = RunAbandonedAfterTimeout  # so that it is a TimeoutError still
        ended = kind(f"run {run.id} on lane {run.lane} {reason}", run)
        ended.__cause__, error = error, ended
    started = run.started_at
    ran_s = execution.ran_before_s + (0.0 if started is None else now - started)
    return Outcome(
        state=state,
        value=value,
        error=error,
        reason=reason,
        waited_s=max(0.0, now - run.enqueued_at - ran_s),
        ran_s=ran_s,
        late_s=execution.late_s,
        traceback=raised.traceback if raised is not None else None,
        attempts=run.attempt,
    )


FROM_OUTSIDE = "cancelled from outside the supervisor"


def of_the_process(cause: tuple[RunState, str] | None) -> bool:
    """Whether a run was asked to end because its supervisor stops, restarts or has failed, not for its own sake."""
    return cause is not None and (cause[1] == FROM_OUTSIDE or cause[1].startswith("the supervisor "))


def deadline_reason(execution: Execution) -> str:
    """Which deadline a running run has passed."""
    deadline = execution.run.deadline
    if deadline is not None and deadline < execution.hard_deadline:
        return f"made no progress for {execution.spec.idle_timeout:g} s"
    parent = execution.parent
    extended = f", extended by {execution.extended_s:g} s" if execution.extended_s else ""
    if parent is not None and execution.ends_with_parent:
        return f"reached the deadline of its parent, run {parent.run.id}{extended}"
    wait = execution.wait
    waited = f"; it waited for a grant of pool {wait.claim.pool.spec.name}" if wait is not None and wait.claim else ""
    return f"timed out after {execution.timeout:g} s{extended}{waited}"


def queue_reason(execution: Execution) -> str:
    """What a run has waited for, for as long as it may."""
    run, spec, lane, board = execution.run, execution.spec, execution.lane, execution.owner.board
    kinds = {need.kind for need in needs_of(execution)}
    front = board.turns.front(execution.file) if execution.file is not None else None
    if front is not None and kinds & {Kind.TURN, Kind.READER}:
        what = f"{front.fence.holder} has the turn of session {run.session!r}"
    elif Kind.HELD in kinds and execution.turn_scope is not None:  # else it lacks a place, and has not asked for it yet
        what = f"another process has the turn of session {run.session!r}"
    else:
        group = board.groups[spec.group]
        what = (
            f"{len(lane.running)} of {spec.capacity} run on the lane, "
            f"{group.running} of {group.spec.slots} in group {spec.group}"
        )
    return f"waited {spec.queue_timeout:g} s in the queue: {what}"


def fields(execution: Execution) -> dict[str, Any]:
    """What every log line about a run names."""
    run = execution.run
    return {"run": run.id, "lane": run.lane, "session": run.session, "holder": str(execution.fence.holder)}


def log_timeout(execution: Execution, reason: str) -> None:
    """The one line per run that timed out, in the queue or running."""
    limit = execution.timeout if execution.run.started_at is not None else execution.spec.queue_timeout
    log(
        "run_timed_out",
        level="warning",
        **fields(execution),
        timeout_s=limit,
        late_s=round(execution.late_s, 3),
        reason=reason,
    )
