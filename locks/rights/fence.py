"""The permission of one run to write: until when, and to which files.

Every append asks it inside the write, so a run that was ended writes nothing, whichever of its threads or tasks still
tries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, Protocol

from .. import _clock
from ..checks import identity_or_none, text_or_none
from ..errors import LeaseLost, Revoked, RunEnded, Superseded
from ..holder import Holder

_NOTHING: Mapping[str, str] = {}


class Held(Protocol):
    """What a run holds, as its fence and its scheduler see it: a claim."""

    def catch_up(self, now: float) -> None:
        """Start the grace again if the process stood still past the end of it."""

    def end_with_run(self, kind: type[LeaseLost]) -> None:
        """Take the right away: its run has ended."""


class Fence:
    """One run's permission to write, until it is closed or its last instant passes.

    Thread-safe: `close`, `bar` and `end_by` are single assignments under the interpreter lock, and each write asks
    `check` while it holds the mutex of its file, which revocation takes too.
    """

    __slots__ = (
        "_barred",
        "_by",
        "_closed",
        "_holder",
        "began_at",
        "claims",
        "deadline",
        "end_at",
        "lane",
        "on_refused",
        "permit",
        "run_id",
        "scope_ends",
        "task",
    )

    def __init__(
        self,
        *,
        lane: str | None = None,
        run_id: int | str | None = None,
        deadline: float = math.inf,
        end_at: float = math.inf,
        on_refused: Callable[[], Any] | None = None,
        scope_ends: float = math.inf,
    ) -> None:
        text_or_none("lane", lane)
        identity_or_none("run_id", run_id)
        self.lane = lane
        self.run_id = run_id
        self._holder: Holder | None = None
        self.began_at = _clock.clock.now()
        """When its time began to count; it is set together with `deadline` and `end_at`."""
        self.deadline = deadline
        """When the run is asked to stop, on the clock of this package."""
        self.end_at = end_at
        """The first instant at which none of its writes is legal any more: deadline + grace."""
        self.scope_ends = scope_ends
        """When the scope that its run lives in ends, on the loop's clock; an earlier limit of a wait is its own."""
        self.on_refused = on_refused
        """Called for each write that is refused, on the thread that tried it."""
        self.claims: dict[Held, None] = {}
        """What the run holds; changed on the event loop's thread only."""
        self.task: object = None
        """The task that runs its body: what the run holds is not given back before it goes on."""
        self.permit: Any = None
        """What a store that other machines share knows its run by, while the run conducts a session."""
        self._closed: type[LeaseLost] | None = None
        self._by: Holder | None = None
        self._barred = _NOTHING
        """The files that it may not write to any more, each with the reason; replaced whole, never changed."""

    def __repr__(self) -> str:
        state = self._closed.__name__ if self._closed else f"open for {self.end_at - _clock.clock.now():.3f} s"
        return f"<Fence of {self.holder}: {state}>"

    @property
    def holder(self) -> Holder:
        """The run, by name."""
        if self._holder is None:
            self._holder = Holder(self.lane, self.run_id)
        return self._holder

    @property
    def closed(self) -> bool:
        """Whether the run may no longer write."""
        return self._closed is not None or _clock.clock.now() >= self.end_at

    def end_by(self, at: float) -> None:
        """Let the run write until `at` at most. It moves later only by `restart_grace`."""
        self.deadline = min(self.deadline, _clock.clock.now())
        self.end_at = min(self.end_at, at)

    def restart_grace(self, now: float) -> None:
        """Start the grace again, if the deadline has passed: the process stood still, and the run with it."""
        if self.deadline <= now and not self._closed:
            # The deadline moves along: it is what the next one measures the grace from.
            self.end_at, self.deadline = max(self.end_at, now + self.end_at - self.deadline), now

    def close(self, kind: type[LeaseLost] = RunEnded, by: Holder | None = None) -> None:
        """Refuse every later write. The first cause stands.

        Args:
            by: the holder that took over.
        """
        if self._closed is None:
            self._by = by
            self._closed = kind

    def bar(self, path: str, why: str) -> None:
        """Refuse every later write to one file, and every lease on it; all else stays allowed. The last reason counts.

        What it holds of the file already stays held, until it is given back or taken away, but is good for no write.
        Call it on the event loop's thread; writers may be on any.

        Args:
            path: the file, in the very text by which the run asks for it: another name of it is not barred.
            why: what follows "may no longer write to …: " in the error.
        """
        self._barred = {**self._barred, path: why}

    def check(self, path: str) -> None:
        """Raise if the run may not write any more, or not to this file any more.

        Raises:
            RunEnded: the run has ended or overstayed, or the file is barred to it.
            Superseded: a newer run took its place.
        """
        if self._closed is None and _clock.clock.now() < self.end_at and path not in self._barred:
            return
        if self.on_refused is not None:
            self.on_refused()
        if not self.closed:
            message = f"{self.holder} may no longer write to {path}: {self._barred[path]}"
            raise RunEnded(message, path=path, holder=self.holder)
        kind = self._closed or RunEnded
        why = {Superseded: "was superseded", Revoked: "was revoked"}.get(kind, "has ended")
        whom = f" by {self._by}" if self._by is not None else ""
        raise kind(f"{self.holder} {why}{whom}: nothing written to {path}", path=path, holder=self.holder, by=self._by)


current_fence: ContextVar[Fence | None] = ContextVar("locks.current_fence", default=None)
"""The fence of the run that the current task belongs to. Tasks started by a run inherit it; sub-runs get their own."""
