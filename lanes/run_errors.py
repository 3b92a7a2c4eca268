"""How a run can end other than well: what `Run.result` raises."""

from __future__ import annotations

import weakref
from typing import Any

from .run import Run


class RunError(Exception):
    """A run ended without a value of its own. What it wrote until then stands; its turn and lane are free.

    `run` is the run, so that a parent can tell its child's error from its own; `None` when that run is forgotten.
    """

    def __init__(self, message: str, run: Run | None = None) -> None:
        super().__init__(message)
        # Weak, because a run's outcome holds its error: a finished run must not need the garbage collector to go away.
        self._run = weakref.ref(run) if run is not None else None

    @property
    def run(self) -> Run | None:
        """The run that ended so."""
        return self._run() if self._run is not None else None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.args


class RunTimedOut(RunError, TimeoutError):
    """The run passed its deadline, or waited longer than its queue budget."""


class RunCancelled(RunError):
    """The run was cancelled, while it was queued or while it ran; the message says why."""


class RunSuperseded(RunError):
    """A newer run took its place."""


class RunAbandoned(RunError):
    """The body ignored its cancellation past the grace: it is fenced, and nothing waits for it any more."""


class RunAbandonedAfterTimeout(RunAbandoned, RunTimedOut):
    """As `RunAbandoned`; its deadline had cancelled the body."""
